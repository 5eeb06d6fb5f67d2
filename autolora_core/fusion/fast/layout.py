"""Where the factors of a layer's LoRAs stand in a few large matrices: all down factors stacked, so that one product
makes every hidden part, and for a gated span all up factors side by side (see :mod:`.packed`).

Pieces of one LoRA that read the same hidden part (slices of a fused file) share its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..gate import Tilt
from ..plan import Group, ModulePlan
from .packed import filled

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Piece:
    """One branch: the LoRA's number, its columns of the hidden parts, its output channels, its scale.

    ``louder``: what its up factor is multiplied by, where the slices of one LoRA have scales of their own: a gate sees
    a LoRA as a whole."""

    lora: int
    columns: tuple[int, int]
    span: tuple[int, int]
    scale: float
    louder: float = 1.0


@dataclass(frozen=True)
class Section:
    """One gated group: its place among the plan's, its channels, its columns of the hidden parts. ``members``: of each
    LoRA its branches; ``bounds`` their columns, from the section's first, filled up; ``scales`` and ``tilts`` one a
    LoRA."""

    group: int
    span: tuple[int, int]
    columns: tuple[int, int]
    members: tuple[tuple[int, ...], ...]
    bounds: tuple[tuple[int, int], ...]
    scales: tuple[float, ...]
    tilts: tuple[Tilt, ...] | None
    eps: float

    @property
    def rank(self) -> int:
        """The largest."""
        return max(last - first for first, last in self.bounds)


@dataclass(frozen=True)
class Layout:
    """``columns`` of the stacked down factors; a piece a branch; ``plain``: branches that are only added."""

    columns: int
    pieces: tuple[Piece, ...]
    sections: tuple[Section, ...]
    plain: tuple[int, ...]


def can_be_packed(plan: ModulePlan) -> bool:
    """Whether all of a linear layer's branches are low rank, and are gated or summed, not fused by another rule."""
    lowrank = all(one.kind == "lowrank" and one.mid is None and one.down.ndim == 2 for one in plan.branches)
    return bool(plan.branches) and lowrank and all(group.rule is None for group in plan.groups)


def arrange(plan: ModulePlan) -> Layout:
    """The layout of a plan that :func:`can_be_packed`."""
    return _Arranger(plan).layout()


def stacked_down(plan: ModulePlan, layout: Layout, dtype: torch.dtype) -> Tensor:
    """(R, in)."""
    first = plan.branches[0].down
    out = torch.zeros(layout.columns, first.shape[1], dtype=dtype, device=first.device)
    for branch, piece in zip(plan.branches, layout.pieces, strict=True):
        out[slice(*piece.columns)] = branch.down
    return out


def whole_ups(plan: ModulePlan, layout: Layout, section: Section) -> list[Tensor]:
    """Of each LoRA of a section, (d, r): its branches' columns behind one another, each on its own channels."""
    return [_whole_up(plan, layout, section, members) for members in section.members]


def _whole_up(plan: ModulePlan, layout: Layout, section: Section, members: Sequence[int]) -> Tensor:
    parts, (start, stop) = [layout.pieces[index] for index in members], section.span
    ups = [plan.branches[index].up for index in members]
    if parts[0].span == section.span and len(parts) == 1:
        return ups[0]
    low, high = parts[0].columns[0], parts[-1].columns[1]
    whole = torch.zeros(stop - start, high - low, device=ups[0].device)
    for part, up in zip(parts, ups, strict=True):
        first, last = part.columns
        whole[part.span[0] - start : part.span[1] - start, first - low : last - low] = up * part.louder
    return whole


class _Arranger:
    def __init__(self, plan: ModulePlan):
        self.plan, self.width = plan, 0
        self.known: dict[tuple[int, ...], int] = {}  # the down factors of a run of columns → its first
        self.columns: dict[int, tuple[int, int]] = {}  # branch → columns
        self.scales = [(branch.scale, 1.0) for branch in plan.branches]

    def layout(self) -> Layout:
        sections, plain = [], []
        for number, group in enumerate(self.plan.groups):
            if group.vectors is not None:
                sections.append(self._section(number, group))
        for group in self.plan.groups:
            if group.vectors is None:
                plain += [index for lora in group.loras for index in lora]
        for index in plain:
            first = self._place(index)
            self.columns[index] = (first, first + self._rank(index))
        width = filled(self.width) if sections else self.width
        pieces = [
            Piece(branch.lora_index, self.columns[index], branch.span(self.plan.channels), *self.scales[index])
            for index, branch in enumerate(self.plan.branches)
        ]
        return Layout(width, tuple(pieces), tuple(sections), tuple(plain))

    def _section(self, number: int, group: Group) -> Section:
        start = self._place_loras(group.loras)
        bounds, at = [], start
        for lora in group.loras:
            first = at
            for index in lora:
                self.columns[index] = (at, at + self._rank(index))
                at += self._rank(index)
            at = first + filled(at - first)
            bounds.append((first - start, at - start))
            whole = max((self.plan.branches[index].scale for index in lora), key=abs)
            for index in lora:
                self.scales[index] = (whole, self.plan.branches[index].scale / whole if whole else 1.0)
        scales = tuple(self.scales[lora[0]][0] for lora in group.loras)
        span, tilts = (group.start, group.stop), group.tilts
        return Section(number, span, (start, at), group.loras, tuple(bounds), scales, tilts, group.vectors.eps)

    def _place_loras(self, loras: Sequence[tuple[int, ...]]) -> int:
        """The first column of a group; one with the very same down factors may be there."""
        key = tuple(self._down(index) for lora in loras for index in lora)
        if key not in self.known:
            self.known[key] = self.width
            for lora in loras:
                at = self.width
                for index in lora:
                    self.known.setdefault((self._down(index),), at)
                    at += self._rank(index)
                self.width += filled(at - self.width)
        return self.known[key]

    def _place(self, index: int) -> int:
        """The first column of a branch that is only added."""
        key = (self._down(index),)
        if key not in self.known:
            self.known[key] = self.width
            self.width += self._rank(index)
        return self.known[key]

    def _down(self, index: int) -> int:
        return id(self.plan.branches[index].down)

    def _rank(self, index: int) -> int:
        return self.plan.branches[index].up.shape[1]
