"""The fused output of one module, in plain torch: the shipped path and what every faster one must equal.

Everything is per sample and per token: ComfyUI may join or split cond and uncond as memory allows, and the picture
must not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .gate import GateVectors, gated_update
from .moment import Moment
from .plan import Group, ModulePlan
from .rules import Energy, energy_factor, energy_sum

BranchOutput = Callable[[int], Tensor]
Listener = Callable[[int, Tensor], None]  # a LoRA's number, and what of it is added to the layer
VectorsOf = Callable[[int], GateVectors | None]
START = Moment()


def fuse(
    y0: Tensor, plan: ModulePlan, output: BranchOutput, vectors: VectorsOf, dim: int = -1, moment: Moment = START,
    listen: Listener | None = None,
) -> Tensor:  # fmt: skip
    """``y0`` plus the module's branches, as its groups' gates and rules have it at this ``moment`` of sampling.

    ``y0`` (…, d) or (n, d, …) with ``dim`` = 1; ``output(i)`` computes branch ``i`` on the layer's input, on that
    branch's own channels; ``vectors(g)`` gives the gate of group ``g`` on the right device, None for a plain sum.
    The plan itself may be a skeleton, without tensors. ``listen`` is told what each LoRA adds. ``y0`` is never changed;
    without groups it is returned itself.
    """
    out = y0
    for number, group in enumerate(plan.groups):
        gate = vectors(number)
        loras = group.loras if group.rule is None else _live(group, plan, moment)
        if gate is None and not isinstance(group.rule, Energy):
            for index in (index for lora in loras for index in lora):
                value = output(index)
                if listen:
                    listen(plan.branches[index].lora_index, value)
                out = _add(out, y0, value, plan.branches[index].span(plan.channels), dim)
            continue
        base = y0.narrow(dim, group.start, group.stop - group.start)
        values = (_assemble(lora, base, group, plan, output, dim) for lora in loras)
        members = [plan.branches[lora[0]].lora_index for lora in loras]
        if gate is None:
            update = energy_sum(_heard(values, members, listen, dim), dim)
        else:
            tell = listen and (lambda number, term, own=members: listen(own[number], term))
            update = gated_update(base, values, gate, dim, group.tilts, moment.share, tell)
        out = _add(out, y0, update, (group.start, group.stop), dim)
    return out


def _heard(values: Iterable[Tensor], members: Sequence[int], listen: Listener | None, dim: int) -> Iterable[Tensor]:
    """``values`` of an energy sum; its one factor is known only once all are there."""
    if listen is None:
        return values
    values = list(values)
    factor = energy_factor(values, dim)
    for lora, value in zip(members, values, strict=True):
        listen(lora, value * factor.to(value.dtype))
    return values


def _live(group: Group, plan: ModulePlan, moment: Moment) -> tuple[tuple[int, ...], ...]:
    """The LoRAs of a group that its rule lets speak."""
    chosen = group.rule.live(moment)
    if chosen is None:
        return group.loras
    return tuple(lora for lora in group.loras if plan.branches[lora[0]].lora_index == chosen)


def _add(out: Tensor, y0: Tensor, value: Tensor, span: tuple[int, int], dim: int) -> Tensor:
    """``out`` with ``value`` added on some channels; copies first while ``out`` still is ``y0``."""
    value = value.to(out.dtype)
    if span == (0, out.shape[dim]):
        return out + value
    if out is y0:
        out = y0.clone()
    out.narrow(dim, span[0], span[1] - span[0]).add_(value)
    return out


def _assemble(
    lora: tuple[int, ...], base: Tensor, group: Group, plan: ModulePlan, output: BranchOutput, dim: int
) -> Tensor:
    """One LoRA's ``y_k`` over the group: its only branch, or its slices side by side, zero where it has none."""
    spans = [plan.branches[index].span(plan.channels) for index in lora]
    return side_by_side(
        base, [(start - group.start, stop - group.start) for start, stop in spans], map(output, lora), dim
    )


def side_by_side(like: Tensor, spans: Sequence[tuple[int, int]], values: Iterable[Tensor], dim: int) -> Tensor:
    """``values`` on their channels of a tensor shaped ``like``, zero elsewhere; the only one itself if it is whole."""
    if list(spans) == [(0, like.shape[dim])]:
        return next(iter(values))
    whole = torch.zeros_like(like)
    for (start, stop), value in zip(spans, values, strict=True):
        whole.narrow(dim, start, stop - start).add_(value.to(like.dtype))
    return whole
