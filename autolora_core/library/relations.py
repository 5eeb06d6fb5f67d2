"""What two LoRA files are to each other, decided from exact numbers of their weights.

:func:`measure` takes the numbers, :func:`decide` names the relation; the first rule that holds counts:

====================  ===============================================================================================
kind                  rule (a and b compared over the modules both change; residual = √(1 − cosine²))
====================  ===============================================================================================
``same_file``         the same SHA-256
``part``              residual within rounding, and one or both have modules that the other lacks
``rescaled``          residual within rounding, one factor for all modules, not 1, and the same two matrices
                      (or one factor a module: "layer by layer")
``resaved``           residual within rounding, factor 1, and the same two matrices up to a number
``refactorised``      residual within rounding, other matrices with the same product
``truncated``         of lower rank, and as near to the other as its rank allows (Eckart and Young 1936: no matrix of
                      rank k is nearer to ΔW than the first k terms of its SVD)
``merged``            a weighted sum of two others: see :mod:`.merges`
``epoch``             cosine of at least ``EPOCH``, and ``down`` matrices that agree (a run keeps much of the numbers it
                      began with): the same run at another step, or one gone on from it
``alike``             a cosine of at least ``ALIKE`` over everything the two files change
``unlike``            none of these
====================  ===============================================================================================

"Within rounding" is :func:`rounding_limit`: twice what storing both factors in the coarser of the two files' number
formats costs. Thresholds were chosen on files made for that purpose (``benchmarks/duplicates.py``), not on the files
that the published precision and recall are counted on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .duplicates import Piece, inner
from .weights import Weights, cut, overlapping, rank_of, singular_values

KINDS = (
    "same_file", "resaved", "rescaled", "refactorised", "part", "truncated", "merged", "epoch", "alike", "unlike",
)  # fmt: skip
# The weights of one LoRA, whole or less; and with other epochs, its versions: applying two is applying one twice.
SAME = KINDS[:6]
VERSIONS = (*SAME, "epoch")
RULES = 3  # raise when a rule or threshold changes, so that stored relations are decided again

LEAST_RESIDUAL = 2e-3  # float16 loses this much of small values
FACTOR_TOLERANCE = 5e-3  # a factor this near 1 is 1
SAME_MATRICES = 0.05  # relative distance of two ``down`` matrices up to a number
TRUNCATION_SHORTFALL = 2e-3  # of the largest cosine that the lower rank allows
TRUNCATION_FROM = 0.25  # cosines below this are not looked at for truncation
EPOCH, ALIGNED = 0.5, 0.9  # averaged matrices agree with those of a part of weight 0.8 to less than 0.9
ALIKE = 0.1


@dataclass(frozen=True)
class Measured:
    """Numbers of a pair. ``cosine`` over everything either changes, ``common_cosine`` over the shared modules.

    ``factor``: the strength of b that gives a (least squares). ``factors``: smallest and largest of it over modules.
    ``residual_by_layer``: what is left of a when every module has a factor of its own. ``matrices``: relative distance
    of the ``down`` matrices up to a number (1 when they have no rank in common). ``aligned``: their mean cosine.
    ``shortfall_a`` (``_b``): how far below the best cosine of its rank a (b) is, as a truncation of the other; None
    when its rank is not lower.
    """

    cosine: float
    common_cosine: float
    factor: float
    factors: tuple[float, float]
    residual_by_layer: float
    shared: int
    only_a: int
    only_b: int
    rounding: float
    matrices: float = 1.0
    aligned: float = 0.0
    shortfall_a: float | None = None
    shortfall_b: float | None = None

    @property
    def residual(self) -> float:
        """‖ΔW_a − factor · ΔW_b‖ / ‖ΔW_a‖ over the shared modules."""
        return max(0.0, 1 - self.common_cosine**2) ** 0.5


@dataclass(frozen=True)
class Relation:
    """``kind`` is one of :data:`KINDS`. ``smaller`` says which of the two is the part or the truncation ("a", "b")."""

    kind: str
    measured: Measured
    smaller: str | None = None


def measure(a: Weights, b: Weights) -> Measured:
    """The numbers of a pair; the costly ones (matrices, truncation) only where the cosine leaves them open."""
    shared = sorted(a.modules.keys() & b.modules.keys())
    cross = {name: inner(a.modules[name], b.modules[name]) for name in shared}
    square_a, square_b = (sum(side.squares[name] for name in shared) for side in (a, b))
    total = sum(cross.values())
    whole, common = (a.square * b.square) ** 0.5, (square_a * square_b) ** 0.5
    ratios = [cross[name] / b.squares[name] for name in shared]
    explained = sum(cross[name] ** 2 / b.squares[name] for name in shared)
    plain = {
        "cosine": total / whole if whole else 0.0,
        "common_cosine": total / common if common else 0.0,
        "factor": total / square_b if square_b else 0.0,
        "factors": (min(ratios), max(ratios)) if ratios else (0.0, 0.0),
        "residual_by_layer": max(0.0, 1 - explained / square_a) ** 0.5 if square_a else 1.0,
        "shared": len(shared),
        "only_a": len(a.modules) - len(shared),
        "only_b": len(b.modules) - len(shared),
        "rounding": max(a.rounding, b.rounding),
    }
    if abs(plain["common_cosine"]) < TRUNCATION_FROM:
        return Measured(**plain)
    matrices, aligned = compare_matrices(a, b, shared)
    limit = rounding_limit(plain["rounding"])
    if plain["residual_by_layer"] <= limit:
        return Measured(**plain, matrices=matrices, aligned=aligned)
    return Measured(
        **plain,
        matrices=matrices,
        aligned=aligned,
        shortfall_a=shortfall(a, b, shared, plain["common_cosine"]),
        shortfall_b=shortfall(b, a, shared, plain["common_cosine"]),
    )


def rounding_limit(rounding: float) -> float:
    """The residual that saving alone explains: twice √2 times (two factors) the rounding of one value."""
    return max(LEAST_RESIDUAL, 2 * 2**0.5 * rounding)


def compare_matrices(a: Weights, b: Weights, shared: list[str]) -> tuple[float, float]:
    """``(distance, cosine)`` of the ``down`` matrices, means over pieces with rows, rank and width in common.

    The distance is relative and after the best number for each piece, so an alpha moved into a matrix is no change.
    Pieces without a partner of their rank count as distance 1 and cosine 0.
    """
    distances, cosines = [], []
    for name in shared:
        for part in a.modules[name]:
            for other in overlapping(b.modules[name], part.start, part.stop):
                cosine = _cosine_of_downs(part, other)
                cosines.append(cosine)
                distances.append(max(0.0, 1 - cosine**2) ** 0.5)
    if not cosines:
        return 1.0, 0.0
    return sum(distances) / len(distances), sum(cosines) / len(cosines)


def _cosine_of_downs(a: Piece, b: Piece) -> float:
    if a.down is None or b.down is None:
        if a.down is not None or b.down is not None or a.up.shape != b.up.shape:
            return 0.0
        one, other = a.up, b.up
    else:
        one, other = a.down, b.down
    if one.shape != other.shape:
        return 0.0
    norm = torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)
    return float((one * other).sum() / norm) if norm > 0 else 0.0


def shortfall(small: Weights, large: Weights, shared: list[str], cosine: float) -> float | None:
    """How far ``cosine`` stays below the best that ``small``'s ranks allow; None when its rank is not lower.

    With k directions in a module the largest cosine with ``large`` is √(Σ σ₁² … σ_k² / Σ σ²) over its singular values.
    """
    kept = total = 0.0
    for name in shared:
        for part in small.modules[name]:
            rank, other = rank_of(part), cut(large.modules[name], part.start, part.stop)
            if rank is None or other is None:
                return None
            squares = singular_values(*other).square()
            kept += float(squares[:rank].sum())
            total += float(squares.sum())
    if total <= 0 or kept > total * (1 - 1e-6):
        return None
    return 1 - abs(cosine) / (kept / total) ** 0.5


def decide(measured: Measured) -> Relation:
    """The relation of two different files, from their numbers alone (a merge needs a third file)."""
    limit = rounding_limit(measured.rounding)
    if measured.shared and measured.residual_by_layer <= limit:
        return _same_weights(measured, limit)
    for side, short in (("b", measured.shortfall_b), ("a", measured.shortfall_a)):
        if short is not None and short <= max(TRUNCATION_SHORTFALL, limit**2):
            return Relation("truncated", measured, side)
    cosine = measured.common_cosine if _mostly_shared(measured) else measured.cosine
    if cosine >= EPOCH and measured.aligned >= ALIGNED:
        return Relation("epoch", measured)
    return Relation("alike" if abs(measured.cosine) >= ALIKE else "unlike", measured)


def _same_weights(measured: Measured, limit: float) -> Relation:
    if measured.only_a or measured.only_b:
        smaller = "b" if measured.only_b == 0 else "a" if measured.only_a == 0 else None
        return Relation("part", measured, smaller)
    tolerance = max(FACTOR_TOLERANCE, measured.rounding)
    if measured.matrices > max(SAME_MATRICES, limit):
        return Relation("refactorised", measured)
    one_factor = measured.residual <= limit
    return Relation("resaved" if one_factor and abs(measured.factor - 1) <= tolerance else "rescaled", measured)


def _mostly_shared(measured: Measured) -> bool:
    """Cosines over a few shared modules of many say little."""
    return measured.shared >= max(measured.only_a, measured.only_b)
