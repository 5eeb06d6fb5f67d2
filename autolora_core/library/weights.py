"""Whole files held for exact products of their updates: squares, ranks, rounding, rows cut to another file's pieces.

Everything works on the pieces of :mod:`.duplicates`, low-rank factors in float64; a dense matrix is never made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from ..lora.adapters import Update
from .duplicates import Piece, inner, pieces

# Root mean square of the relative error of rounding to a format, coarsest first: 0.41 · 2^-p for p digits of mantissa.
GRIDS: tuple[tuple[torch.dtype, float], ...] = (
    (torch.float8_e5m2, 5.1e-2),
    (torch.float8_e4m3fn, 2.6e-2),
    (torch.bfloat16, 1.6e-3),
    (torch.float16, 2.0e-4),
)
FINE = 2.5e-8  # float32
SAMPLE = 2048  # values a module looked at to tell the format


@dataclass(frozen=True)
class Weights:
    """One file: base module → pieces, and the squared norm of each module's ΔW.

    ``rounding``: relative error of its values by the coarsest number format that holds them (whatever the file says:
    a bfloat16 LoRA saved again as float32 is still a bfloat16 one).
    """

    modules: dict[str, list[Piece]]
    squares: dict[str, float]
    rounding: float

    @classmethod
    def of(cls, updates: Iterable[Update]) -> Weights:
        """Read all updates; those that are not added as a matrix are left out."""
        found = {name: fused(parts) for name, parts in pieces(updates).items()}
        squares = {name: inner(parts, parts) for name, parts in found.items()}
        kept = {name: parts for name, parts in found.items() if squares[name] > 0}
        errors = [_rounding(part) for parts in kept.values() for part in parts]
        return cls(kept, {name: squares[name] for name in kept}, median(errors) if errors else FINE)

    @property
    def square(self) -> float:
        """‖ΔW‖² over all modules."""
        return sum(self.squares.values())

    @property
    def rank(self) -> int:
        """Ranks of all pieces, summed; a dense piece counts its rows."""
        return sum(len(p.up) if p.down is None else len(p.down) for parts in self.modules.values() for p in parts)

    def scaled(self, by: float) -> Weights:
        """The same at strength ``by``."""
        parts = {name: [replace(p, up=p.up * by) for p in group] for name, group in self.modules.items()}
        return Weights(parts, {name: square * by**2 for name, square in self.squares.items()}, self.rounding)

    def plus(self, other: Weights) -> Weights:
        """Both applied: pieces on top of each other add up."""
        names = self.modules.keys() | other.modules.keys()
        parts = {name: self.modules.get(name, []) + other.modules.get(name, []) for name in names}
        squares = {name: inner(group, group) for name, group in parts.items()}
        return Weights(parts, squares, max(self.rounding, other.rounding))


def fused(parts: list[Piece]) -> list[Piece]:
    """Pieces that lie side by side and share their ``down`` as one: q, k and v of a LoRA on the fused projection, as
    some formats store it."""
    out: list[Piece] = []
    for part in sorted(parts, key=lambda p: (p.start, p.stop)):
        last = out[-1] if out else None
        joined = last is not None and last.stop == part.start and last.down is not None and part.down is not None
        if joined and torch.equal(last.down, part.down):
            out[-1] = Piece(last.start, part.stop, torch.cat([last.up, part.up]), last.down)
        else:
            out.append(part)
    return out


def numerical_rank(weights: Weights, names: Iterable[str], tolerance: float) -> int | None:
    """Singular values above ``tolerance`` times a module's largest, summed over ``names``; None where one is dense."""
    total = 0
    for name in names:
        parts = weights.modules.get(name, [])
        if not parts:
            continue
        rows = cut(parts, min(p.start for p in parts), max(p.stop for p in parts))
        if rows is None:
            return None
        values = singular_values(*rows)
        total += int((values > tolerance * values[0]).sum())
    return total


def _rounding(piece: Piece) -> float:
    """The error of the coarsest format that holds a piece's values; ``down`` tells, ``up`` may hold a scale."""
    values = (piece.up if piece.down is None else piece.down).flatten()[:SAMPLE]
    values = values[values != 0]
    for dtype, error in GRIDS:
        if values.numel() and torch.equal(values.to(dtype).double(), values):
            return error
    return FINE


def overlapping(parts: list[Piece], start: int, stop: int) -> list[Piece]:
    """Those pieces that have rows in ``start:stop``."""
    return [part for part in parts if part.start < stop and start < part.stop]


def cut(parts: list[Piece], start: int, stop: int) -> tuple[Tensor, Tensor] | None:
    """Rows ``start:stop`` of a module's ΔW as ``(up (stop - start, r), down (r, in))``; None where a piece is dense.

    Pieces that lie side by side (q, k and v apart) or on top of each other are stacked: r is the sum of their ranks.
    """
    ups, downs = [], []
    for part in overlapping(parts, start, stop):
        if part.down is None:
            return None
        up = part.up.new_zeros(stop - start, part.up.shape[1])
        low, high = max(start, part.start), min(stop, part.stop)
        up[low - start : high - start] = part.up[low - part.start : high - part.start]
        ups.append(up)
        downs.append(part.down)
    if not ups or len({down.shape[1] for down in downs}) > 1:
        return None
    return torch.cat(ups, dim=1), torch.cat(downs)


def singular_values(up: Tensor, down: Tensor) -> Tensor:
    """Singular values of ``up @ down``, descending, from the r×r core of two thin QRs."""
    return torch.linalg.svdvals(torch.linalg.qr(up, mode="r").R @ torch.linalg.qr(down.T, mode="r").R.T)


def rank_of(piece: Piece) -> int | None:
    """How many directions of a piece are not exactly zero; None for a dense one."""
    if piece.down is None:
        return None
    return int((piece.up.any(dim=0) & piece.down.any(dim=1)).sum())
