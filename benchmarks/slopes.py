"""How fast a series grows, by Theil and Sen: the median of the slopes of all pairs, which single jumps do not move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Slope:
    """Growth per unit of x, and the ends of its interval."""

    value: float
    low: float
    high: float


def theil_sen(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> Slope:
    """The slope of ``y`` over ``x`` (3 points or more, x all different) with Sen's interval.

    The interval takes the points as independent: give it medians of blocks (`block_medians`), not single samples of
    a process that remembers, as a process's memory does. Raises ValueError for fewer than 3 points.
    """
    if len(x) < 3:
        raise ValueError(f"a slope needs 3 points or more, not {len(x)}")
    one, other = np.triu_indices(len(x), 1)
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    slopes = np.sort((ys[other] - ys[one]) / (xs[other] - xs[one]))
    count = len(x)
    spread = (count * (count - 1) * (2 * count + 5) / 18) ** 0.5  # of Kendall's S when nothing grows
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread / 2
    middle, last = len(slopes) / 2, len(slopes) - 1
    low, high = max(0, int(np.floor(middle - half))), min(last, int(np.ceil(middle + half)))
    return Slope(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))


def block_medians(y: Sequence[float], block: int) -> tuple[list[float], list[float]]:
    """Middles (in samples) and medians of blocks of ``block`` samples; an unfilled last block is left out."""
    starts = range(0, len(y) - block + 1, block)
    return [start + (block - 1) / 2 for start in starts], [float(np.median(y[s : s + block])) for s in starts]
