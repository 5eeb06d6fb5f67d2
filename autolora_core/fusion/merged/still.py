"""Which fusions are an update of the weights, the same for every input and moment, and what they add to a module.

Sums, dense merges and projected branches are. A gate is one when it is *flat*: it looks at no activation and does not
move with the sampling, so that it is a factor w_out·sigmoid(bias + shift)·exp(gain) a channel.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ...errors import GateError, SelectionError
from ..branches import Branch
from ..gate import Tilt
from ..plan import FusionPlan, Group, ModulePlan

MOVING = {
    "energy": "scales the sum anew for every token",
    "klora": "changes from one LoRA to another while sampling",
    "switch": "takes another LoRA at every step",
    "composite": "asks the model once for each LoRA",
}
STILL = "modes that can be saved: sum, ties, dare, magnitude, np, ssr, and gate where it is a factor for each channel"


def check_mode(mode: str, loras: int) -> None:
    """Raise ``SelectionError`` when ``mode`` fuses ``loras`` LoRAs in a way that is no change of the weights."""
    if mode in MOVING and loras > 1:
        raise SelectionError(
            f"mode '{mode}' cannot be saved as a LoRA: it {MOVING[mode]}, and a file adds the same always",
            key="mode",
            fix=f"choose another one ({STILL}), or keep Gated Multi-LoRA Apply in the workflow",
        )


def check_plan(plan: FusionPlan, gate: str | None = None) -> None:
    """Raise ``GateError``, naming a layer and the file ``gate``, unless every gate is flat; and ``SelectionError`` for
    rules."""
    for name, own in plan.modules.items():
        for group in own.groups:
            if group.rule is not None:
                check_mode(plan.mode, len(group.loras) + 1)
            why = _movement(group)
            if why:
                raise GateError(
                    f"this gate cannot be saved in a LoRA: at {name} it {why}, and a file adds the same always",
                    path=gate,
                    key=name,
                    fix=f"choose mode 'sum' or another one ({STILL}), or keep Gated Multi-LoRA Apply in the workflow",
                )


def _movement(group: Group) -> str | None:
    """Why a group's gate is not flat; None when it is, or when there is none."""
    if group.vectors is not None and not group.vectors.flat:
        return "looks at the activations"
    if any(tilt.timed for tilt in group.tilts or ()):
        return "moves with the sampling"
    return None


def still_branches(own: ModulePlan) -> list[Branch]:
    """The module's branches with their gates' factors in them: their sum is the update. See :func:`check_plan`."""
    out = []
    for group in own.groups:
        for number, lora in enumerate(group.loras):
            factor = _factor(group, number)
            for branch in (own.branches[index] for index in lora):
                start, stop = branch.span(own.channels)
                rows = None if factor is None else factor[start - group.start : stop - group.start]
                out.append(_times(branch, rows))
    return out


def _factor(group: Group, number: int) -> Tensor | None:
    """(channels of the group,) float64 for its LoRA ``number``; None is 1."""
    if group.vectors is None:
        return None
    return group.vectors.rest(group.tilts[number] if group.tilts else Tilt(), 0.5)


def _times(branch: Branch, rows: Tensor | None) -> Branch:
    """``branch`` with its output channels multiplied by ``rows`` (width,)."""
    if rows is None:
        return branch
    if branch.kind == "lowrank":
        return replace(branch, up=branch.up.double() * rows[:, None])
    delta = branch.delta()
    return replace(branch, left=None, right=None, dense=delta * rows.view(-1, *[1] * (delta.ndim - 1)), scale=1.0)
