"""What happens at every module: which branches there are, which are gated and over which output channels.

A gate file says how fine the gate is. Vectors for a whole fused ``qkv`` gate it as a whole, and the q, k and v slices
of an unfused LoRA are laid side by side first; vectors for ``qkv[0:256]`` gate that slice alone, and a fused LoRA is
cut to it. So a fused and an unfused file of the same LoRA always give the same picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..errors import GateError
from .branches import Branch
from .gate import GateVectors, Tilt
from .rules import Rule

UNASKED = 0.01  # a LoRA that is asked for less than this is left out
_SLICE = re.compile(r"(.+)\[(\d+):(\d+)\]")


@dataclass(frozen=True)
class Group:
    """Output channels ``start:stop`` of a module, with their gate or ``rule`` (neither: plain sum).

    ``loras`` has one entry a LoRA: the numbers of its branches in ``ModulePlan.branches``, together one ``y_k``.
    ``tilts``: one a LoRA, where the gate makes a difference between them.
    """

    start: int
    stop: int
    vectors: GateVectors | None
    loras: tuple[tuple[int, ...], ...]
    rule: Rule | None = None
    tilts: tuple[Tilt, ...] | None = None


@dataclass(frozen=True)
class Standing:
    """What is known of a LoRA besides its weights: ``role`` subject, style or other; ``asked`` for, in [0, 1]."""

    role: str | None = None
    asked: float = 1.0


@dataclass(frozen=True)
class ModulePlan:
    """``branches[i].slice`` are absolute output channels of the module; ``channels`` is their number."""

    name: str
    channels: int
    branches: tuple[Branch, ...]
    groups: tuple[Group, ...]

    @property
    def gated(self) -> bool:
        return any(group.vectors is not None for group in self.groups)

    def skeleton(self) -> ModulePlan:
        """The same layout without tensors, for whoever keeps those elsewhere."""
        empty = (Branch(self.name, branch.lora_index, slice=branch.span(self.channels)) for branch in self.branches)
        return replace(self, branches=tuple(empty), groups=tuple(replace(group, vectors=None) for group in self.groups))


@dataclass(frozen=True)
class FusionPlan:
    """Everything the model needs to know about a set of LoRAs."""

    mode: str
    modules: dict[str, ModulePlan]

    @property
    def gated_modules(self) -> int:
        return sum(plan.gated for plan in self.modules.values())

    @property
    def timed(self) -> bool:
        """Whether a gate moves with the sampling."""
        groups = (group for plan in self.modules.values() for group in plan.groups)
        return any(tilt.timed for group in groups for tilt in group.tilts or ())


def split_slice(name: str) -> tuple[str, tuple[int, int] | None]:
    """``"a.qkv[0:64]"`` → ``("a.qkv", (0, 64))``; a plain name gives None as slice."""
    found = _SLICE.fullmatch(name)
    return (found[1], (int(found[2]), int(found[3]))) if found else (name, None)


def by_module(branches: Iterable[Branch]) -> dict[str, list[Branch]]:
    """Branches sorted by their module, in the order they came."""
    found: dict[str, list[Branch]] = {}
    for branch in branches:
        found.setdefault(branch.module, []).append(branch)
    return found


def build_plan(
    branches: Iterable[Branch],
    channels: Mapping[str, int],
    gates: Mapping[str, GateVectors] | None = None,
    additive: Iterable[int] = (),
    rules: Mapping[str, Rule] | None = None,
    mode: str | None = None,
    standings: Mapping[int, Standing] | None = None,
) -> FusionPlan:
    """Sort branches into modules and groups.

    ``channels``: output channels of every module that occurs. ``gates``: module or ``module[start:stop]`` → vectors;
    None is sum mode. ``rules``: module → how its LoRAs are fused instead. ``additive``: LoRA numbers that stay outside
    the gate and the rules. ``mode`` names the result. ``standings``: LoRA number → what else is known of it; a LoRA
    speaks as loudly as it is asked for, and K counts how many are. Raises ``GateError`` when vectors do not fit their
    module.
    """
    entries = _gate_entries(gates or {}, channels)
    outside = frozenset(additive)
    crowd = Crowd(standings or {})
    branches = crowd.asked(branches, outside)
    modules = {
        name: _plan_module(name, channels[name], parts, entries.get(name, []), outside, crowd, (rules or {}).get(name))
        for name, parts in by_module(branches).items()
    }
    return FusionPlan(mode or ("sum" if gates is None else "gate"), modules)


@dataclass
class Crowd:
    """The LoRAs that meet; ``count`` is how many of them are asked for, at least one."""

    standings: Mapping[int, Standing]
    count: float = 1.0

    def of(self, lora: int) -> Standing:
        return self.standings.get(lora, Standing())

    def asked(self, branches: Iterable[Branch], outside: frozenset) -> list[Branch]:
        """Branches as loud as their LoRA is asked for, the LoRAs counted but for those ``outside`` the gate."""
        branches = list(branches)
        inside = {branch.lora_index for branch in branches} - outside
        self.count = max(1.0, sum(self.of(lora).asked for lora in inside))
        found = ((branch, self.of(branch.lora_index).asked) for branch in branches)
        return [
            branch if asked == 1 else replace(branch, scale=branch.scale * asked)
            for branch, asked in found
            if asked >= UNASKED
        ]

    def tilts(self, vectors: GateVectors | None, loras: Iterable[int]) -> tuple[Tilt, ...] | None:
        """None where the gate treats all alike."""
        if vectors is None:
            return None
        found = tuple(vectors.tilt(self.of(lora).role, self.count) for lora in loras)
        return None if all(tilt == Tilt() for tilt in found) else found


Entry = tuple[int, int, GateVectors]


def _gate_entries(gates: Mapping[str, GateVectors], channels: Mapping[str, int]) -> dict[str, list[Entry]]:
    """Module → its gated spans; whole-module vectors win over slices."""
    entries: dict[str, list[Entry]] = {}
    for key, vectors in gates.items():
        name, span = split_slice(key)
        if name not in channels:
            continue
        start, stop = span or (0, channels[name])
        if stop - start != vectors.channels or stop > channels[name]:
            raise GateError(
                f"the gate has {vectors.channels} channels for {key}, the model's layer has {channels[name]}",
                key=key,
                fix="choose a gate made for this base model, or mode 'sum'",
            )
        entries.setdefault(name, []).append((start, stop, vectors))
    return {name: _whole_or_slices(found, channels[name]) for name, found in entries.items()}


def _whole_or_slices(entries: list[Entry], channels: int) -> list[Entry]:
    whole = [entry for entry in entries if entry[:2] == (0, channels)]
    return whole or sorted(entries, key=lambda entry: entry[0])


def _plan_module(
    name: str, channels: int, parts: list[Branch], entries: list[Entry], outside: frozenset, crowd: Crowd,
    rule: Rule | None = None,
) -> ModulePlan:  # fmt: skip
    """A rule takes the module as a whole: its slices are laid side by side, as under a gate for the whole module."""
    branches: list[Branch] = []
    if rule is not None:
        entries = [(0, channels, None)]
    gated: dict[int, dict[int, list[int]]] = {number: {} for number in range(len(entries))}
    plain: dict[int, list[int]] = {}
    for part in parts:
        covered = entries if part.lora_index not in outside else []
        for piece, number in _cut(part, covered, channels):
            group = plain if number is None else gated[number]
            group.setdefault(piece.lora_index, []).append(len(branches))
            branches.append(piece)
    groups = [_group(0, channels, None, plain, crowd)] if plain else []
    groups += [_group(*entries[number], members, crowd, rule) for number, members in gated.items() if members]
    return ModulePlan(name, channels, tuple(branches), tuple(groups))


def _group(
    start: int, stop: int, vectors: GateVectors | None, members: dict[int, list[int]], crowd: Crowd,
    rule: Rule | None = None,
) -> Group:  # fmt: skip
    loras = sorted(members)
    return Group(start, stop, vectors, tuple(tuple(members[k]) for k in loras), rule, crowd.tilts(vectors, loras))


def _cut(part: Branch, entries: list[Entry], channels: int) -> list[tuple[Branch, int | None]]:
    """Pieces of a branch with the number of the gate entry each belongs to (None: no gate there)."""
    start, stop = part.span(channels)
    if len(entries) == 1 and entries[0][:2] == (0, channels):
        return [(part.rows(start, stop), 0)]
    pieces, at = [], start
    for number, (low, high, _) in enumerate(entries):
        if low >= at and high <= stop:
            if low > at:
                pieces.append((part.rows(at, low), None))
            pieces.append((part.rows(low, high), number))
            at = high
    if at < stop:
        pieces.append((part.rows(at, stop), None))
    return pieces
