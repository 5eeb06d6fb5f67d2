"""Is a LoRA a weighted sum of two others? The small least squares that says so, with both weights.

Three ways of merging are in use, and each leaves a trace that is exact up to rounding:

``sum``        ΔW = w₁ΔW₁ + w₂ΔW₂, stored with the ranks added up
``truncated``  the same sum cut to fewer directions by an SVD. With Q_out, Q_in the file's own row and column spaces,
               Q_outᵀ (w₁ΔW₁ + w₂ΔW₂) Q_in is again exactly the file, so the fit is made inside those spaces; and the
               file must be as near to the sum as its rank allows
``matrices``   the down matrices averaged, and the up matrices averaged: down = x₁A₁ + x₂A₂, up = y₁B₁ + y₂B₂, which
               also brings in the cross products B₁A₂ and B₂A₁ (w = x·y)

Of three files tied by one sum each is a sum of the other two. :attr:`Merge.rank_lead` and :attr:`Merge.backwards` tell
which one was made from the others: the one of the highest rank, else the one whose sum has no minus sign.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .duplicates import Piece, inner
from .relations import TRUNCATION_SHORTFALL, rounding_limit, shortfall
from .weights import Weights, cut, numerical_rank

LEAST_SHARE = 0.05  # of the file's norm that each of the two must bring
DIRECTION = 2e-3  # of a layer's largest singular value: smaller ones are rounding
MOST_ALIKE = 0.999  # two parts nearer than this cannot be told apart


@dataclass(frozen=True)
class Merge:
    """``weights`` of the two parts; ``how`` is sum, truncated or matrices. Relative to the file's norm: ``left_over``,
    what the two do not explain, and ``share``, the norm of what each brings. ``rank_lead``: the file's ranks, summed,
    less those of the part that has more. ``backwards``: the sum needs a minus sign."""

    weights: tuple[float, float]
    how: str
    left_over: float
    share: tuple[float, float]
    rank_lead: int
    backwards: bool

    @property
    def order(self) -> tuple:
        """Sort key: the likeliest reading of three files first."""
        return (self.rank_lead <= 0, self.backwards, self.left_over)


def find_merge(whole: Weights, first: Weights, second: Weights) -> Merge | None:
    """How ``whole`` is made of the two others, or None when it is not."""
    limit = left_over_limit(whole, first, second)
    for fit in (fit_sum, fit_matrices):
        found = fit(whole, first, second)
        if found is not None and found.left_over <= limit and min(found.share) >= LEAST_SHARE:
            return found
    return None


def left_over_limit(whole: Weights, first: Weights, second: Weights) -> float:
    """What rounding may leave over. No more: the middle one of three epochs is a sum of the others to 0.4 %."""
    return rounding_limit(max(whole.rounding, first.rounding, second.rounding))


def _solve(gram: Tensor, right: Tensor, square: float) -> tuple[Tensor, float] | None:
    """Weights (2,) and relative left-over of ``min ‖whole − Σ wᵢ partᵢ‖`` from inner products; None if ill-posed."""
    norm = (gram[0, 0] * gram[1, 1]).sqrt()
    if square <= 0 or norm <= 0 or abs(float(gram[0, 1] / norm)) > MOST_ALIKE:
        return None
    weights = torch.linalg.solve(gram, right)
    return weights, max(0.0, 1 - float(weights @ right) / square) ** 0.5


def fit_sum(whole: Weights, first: Weights, second: Weights) -> Merge | None:
    """The best sum, whole or cut off, however much it leaves over; None when no sum can be fitted."""
    gram, right = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for name, parts in whole.modules.items():
        others = [side.modules.get(name, []) for side in (first, second)]
        for part in parts:
            products = _inside(part, others)
            gram += products[:2, :2]
            right += products[:2, 2]
    solved = _solve(gram, right, whole.square)
    if solved is None:
        return None
    weights, left = solved
    pair = (float(weights[0]), float(weights[1]))
    share = (weights.abs() * gram.diagonal().sqrt() / whole.square**0.5).tolist()
    total = first.scaled(pair[0]).plus(second.scaled(pair[1]))
    how = _cut_or_not(whole, total) if _adds_directions(total, first, second, whole.modules) else None
    return Merge(pair, how, left, tuple(share), _lead(whole, first, second), min(pair) < 0) if how else None


def _adds_directions(total: Weights, first: Weights, second: Weights, names: Iterable[str]) -> bool:
    """Whether the sum of two has more directions than either, as it must unless one takes the other out again."""
    ranks = [numerical_rank(side, names, DIRECTION) for side in (total, first, second)]
    return None in ranks or ranks[0] >= max(ranks[1:]) + min(ranks[1:]) / 2


def _cut_or_not(whole: Weights, total: Weights) -> str | None:
    """sum: ``whole`` is all of ``total``; truncated: the best of its rank; None: neither."""
    shared = sorted(whole.modules.keys() & total.modules.keys())
    square = sum(total.squares[name] for name in shared)
    cross = sum(inner(whole.modules[name], total.modules[name]) for name in shared)
    cosine = cross / (square * whole.square) ** 0.5 if square > 0 else 0.0
    if cosine > 1 - 1e-3:
        return "sum"
    short = shortfall(whole, total, shared, cosine)
    return "truncated" if short is not None and short <= TRUNCATION_SHORTFALL else None


def _lead(whole: Weights, first: Weights, second: Weights) -> int:
    return whole.rank - max(first.rank, second.rank)


def _inside(part: Piece, others: list[list[Piece]]) -> Tensor:
    """(3, 3) inner products of the two others' rows and the piece itself, all inside the piece's own spaces."""
    cuts = [cut(other, part.start, part.stop) for other in others]
    if part.down is None or any(found is None and other for found, other in zip(cuts, others, strict=True)):
        return _outright(part, others)
    left, right = torch.linalg.qr(part.up).Q, torch.linalg.qr(part.down.T).Q
    cores = [
        torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64)
        if found is None or found[1].shape[1] != right.shape[0]
        else (left.T @ found[0]) @ (found[1] @ right)
        for found in cuts
    ]
    stacked = torch.stack([core.flatten() for core in [*cores, (left.T @ part.up) @ (part.down @ right)]])
    return stacked @ stacked.T


def _outright(part: Piece, others: list[list[Piece]]) -> Tensor:
    """The same products without the spaces, for dense updates. Rows of the others outside the piece count fully."""
    sides = [*others, [part]]
    return torch.tensor([[inner(a, b) for b in sides] for a in sides], dtype=torch.float64)


def fit_matrices(whole: Weights, first: Weights, second: Weights) -> Merge | None:
    """The best average of matrices, however much it leaves over; None when their ranks differ."""
    groups = _matching_pieces(whole, first, second)
    if not groups:
        return None
    solved = []
    for matrices in ([[p.down for p in group] for group in groups], [[p.up for p in group] for group in groups]):
        products = torch.zeros(3, 3, dtype=torch.float64)
        for group in matrices:
            # Every layer weighs the same: norms of single matrices depend on where an alpha was put.
            stacked = torch.stack([m.flatten() for m in group]) / torch.linalg.vector_norm(group[2])
            products += stacked @ stacked.T
        solved.append(_solve(products[:2, :2], products[:2, 2], float(products[2, 2])))
    if solved[0] is None or solved[1] is None:
        return None
    (downs, left_down), (ups, left_up) = solved
    weights = downs * ups
    norms = torch.tensor([first.square, second.square], dtype=torch.float64).sqrt()
    share = (weights.abs() * norms / whole.square**0.5).tolist()
    lead = _lead(whole, first, second)
    pair = (float(weights[0]), float(weights[1]))
    return Merge(pair, "matrices", max(left_down, left_up), tuple(share), lead, float(downs.min()) < 0)


def _matching_pieces(whole: Weights, first: Weights, second: Weights) -> list[tuple[Piece, Piece, Piece]]:
    """``(first's, second's, whole's)`` pieces of every module; empty unless rows, ranks and widths agree throughout."""
    groups = []
    for name, parts in whole.modules.items():
        sides = [first.modules.get(name, []), second.modules.get(name, []), parts]
        if len({len(side) for side in sides}) > 1:
            return []
        for group in zip(*sides, strict=True):
            if any(piece.down is None for piece in group):
                return []
            if len({(p.start, p.stop, tuple(p.down.shape), tuple(p.up.shape)) for p in group}) > 1:
                return []
            groups.append(group)
    return groups
