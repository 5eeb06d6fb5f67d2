"""From a set of LoRAs and the name of a method to what has to run where: the one door to the training-free methods.

Every method works module by module, on the LoRAs it is given; those that stay additive (few-step, edit) are only
summed. With a single LoRA every method is that LoRA, untouched: nothing is trimmed, dropped or switched off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..branches import Branch
from ..plan import FusionPlan, build_plan, by_module
from ..rules import Alone, Energy, Rule, Switch
from . import dense, klora, np_lora, ssr
from .roles import STYLE, assign_roles
from .rows import parts_of

METHODS = ("energy", "ties", "dare", "magnitude", "klora", "np", "ssr", "switch", "composite")
# Methods that need the model to be run in their own way: the step known, or several evaluations of each.
STEPWISE = ("klora", "switch", "composite")
# Methods that make one update of all LoRAs before sampling: none of them can be on for a while, or in a place.
STATIC = (*dense.METHODS, "np", "ssr")
Routed = tuple[ssr.Stack, Tensor]


@dataclass(frozen=True)
class Settings:
    """``density`` for ties, dare and magnitude (paper: 0.2 for TIES), ``mu`` for np (paper: 0.5), ``swap_roles`` for np
    and klora, ``interval`` steps for switch (paper: 1)."""

    density: float = 0.2
    mu: float = 0.5
    swap_roles: bool = False
    interval: int = 1


@dataclass(frozen=True)
class Member:
    """One LoRA of the set: ``index`` as in its branches, the retriever's ``role`` if any, a hash of its ``content``."""

    index: int
    name: str
    role: str | None = None
    content: str = ""


@dataclass
class Blend:
    """``plan``: branches and rules beside the layers. ``dense``: module → update to be added to the weight itself.

    ``order``: LoRAs in turn, for composite; ``turns``: who is on when, for switch. ``notes`` say what was decided.
    """

    plan: FusionPlan
    dense: dict[str, dense.DenseMerge] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    turns: Switch | None = None
    notes: list[str] = field(default_factory=list)


def blend(
    method: str,
    branches: Iterable[Branch],
    channels: Mapping[str, int],
    members: Sequence[Member],
    settings: Settings = Settings(),
    routers: Mapping[str, Routed] | None = None,
    device: torch.device | str = "cpu",
    tick: klora.Tick | None = None,
) -> Blend:
    """Fuse the ``members``' branches by ``method``; branches of LoRAs that are no members are summed as they are.

    ``channels``: output channels of every module. ``routers``: module → its stack (see :func:`ssr_stacks`) and R, for
    ssr; a module without them is summed. ``device`` does the heavy counting of klora; ``tick`` is called there module
    by module.
    """
    branches = list(branches)
    inside = {member.index for member in members}
    outside = sorted({branch.lora_index for branch in branches} - inside)
    if method == "sum" or len(members) < 2:
        return Blend(build_plan(branches, channels))
    order = tuple(member.index for member in members)
    blended = Blend(FusionPlan(method, {}), order=order)
    own = by_module(branch for branch in branches if branch.lora_index in inside)
    rest = [branch for branch in branches if branch.lora_index not in inside]
    rules: dict[str, Rule] = {}
    if method in dense.METHODS:
        contents = {member.index: member.content for member in members}
        blended.dense = {
            name: dense.DenseMerge(method, settings.density, tuple(parts_of(parts, contents)), channels[name])
            for name, parts in own.items()
        }
        branches = rest
        blended.notes.append(f"density {settings.density:g}")
    elif method == "np":
        roles = _roles(members, settings, blended.notes)
        branches = [*rest, *(part for parts in own.values() for part in _projected(parts, roles, settings.mu))]
        blended.notes.append(f"μ {settings.mu:g}")
    elif method == "ssr":
        routed = {name: ssr.merge(*one) for name, one in (routers or {}).items()}
        branches = [*rest, *(part for name, parts in own.items() for part in routed.get(name, parts))]
        shift = ssr.mean_shift(router for _, router in (routers or {}).values())
        blended.notes.append(f"routers stand {shift:.0%} from the plain sum")
    elif method == "klora":
        roles = _roles(members, settings, blended.notes)
        parts = {name: parts_of(mine) for name, mine in own.items()}
        rules = dict(klora.timed_rules(parts, channels, roles, device, tick))
    elif method == "switch":
        blended.turns = Switch(order, settings.interval)
        rules = dict.fromkeys(own, blended.turns)
    else:
        rules = dict.fromkeys(own, Energy() if method == "energy" else Alone())
    blended.plan = build_plan(branches, channels, additive=outside, rules=rules, mode=method)
    return blended


def ssr_stacks(branches: Iterable[Branch], channels: Mapping[str, int]) -> dict[str, ssr.Stack]:
    """Module → stacked factors, of the modules where two or more LoRAs meet: those that need a router."""
    return {
        name: ssr.stack(parts, channels[name])
        for name, parts in by_module(branches).items()
        if len({part.lora_index for part in parts}) > 1
    }


def _roles(members: Sequence[Member], settings: Settings, notes: list[str]) -> dict[int, str]:
    roles = assign_roles([member.role for member in members], settings.swap_roles)
    swapped = " (swapped)" if settings.swap_roles else ""
    notes += [f"{member.name} is taken for the {role}{swapped}" for member, role in zip(members, roles, strict=True)]
    return {member.index: role for member, role in zip(members, roles, strict=True)}


def _projected(parts: list[Branch], roles: Mapping[int, str], mu: float) -> list[Branch]:
    styles = [part for part in parts if roles[part.lora_index] == STYLE]
    return np_lora.merge([part for part in parts if roles[part.lora_index] != STYLE], styles, mu)
