"""How often a LoRA is found by its own words, how sure that is, and whether it beats knowing nothing.

Ranks count what scores at least as high, so that an encoder with no opinion comes last, not first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from ..encode.calibrate import Ruler

RESAMPLES, SEED = 2000, 7


@dataclass(frozen=True)
class Figures:
    """Shares of asks: the right LoRA first, among the first five; the mean reciprocal rank and its 95 % interval."""

    asks: int
    recall_at_1: float
    recall_at_5: float
    mrr: float
    recall_at_1_interval: tuple[float, float]
    recall_at_5_interval: tuple[float, float]
    mrr_interval: tuple[float, float]

    def to_json(self) -> dict:
        return asdict(self)


def scores_of(vectors: np.ndarray, queries: np.ndarray, generic: np.ndarray) -> np.ndarray:
    """(q, n): cosines of queries (q, d) with vectors (n, d), as z-scores over the generic queries (g, d).

    Without that some vectors would be near to every prompt. A zero vector, of a file the encoder cannot read, scores
    least of all.
    """
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    z = Ruler.measure(vectors @ generic.T).z(vectors @ queries.T).T
    return np.where(np.any(vectors != 0, axis=1)[None], z, -np.inf)


def ranks_of(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(q, n) scores, (q, n) bool which are right → (q,) int: how many wrong ones score at least as high as the best
    right one."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores >= best) & ~right).sum(axis=1)


def figures_of(ranks: np.ndarray) -> Figures:
    """Shares and their bootstrap intervals over asks (Efron 1979, percentiles, fixed seed)."""
    shares = np.stack([ranks < 1, ranks < 5, 1 / (1 + ranks)], axis=1).astype(float)
    low_high = np.percentile(resampled(shares), (2.5, 97.5), axis=0).T
    at_1, at_5, mrr = (float(v) for v in shares.mean(axis=0))
    return Figures(len(ranks), at_1, at_5, mrr, *((float(low), float(high)) for low, high in low_high))


def resampled(values: np.ndarray) -> np.ndarray:
    """(n, k) → (RESAMPLES, k) means of rows drawn with replacement."""
    rng = np.random.default_rng(SEED)
    return np.stack([values[rng.integers(len(values), size=len(values))].mean(axis=0) for _ in range(RESAMPLES)])


def chance(right: np.ndarray, candidates: int) -> tuple[float, float, float]:
    """Recall at 1, at 5 and mean reciprocal rank of guessing; ``right`` (q,) int: how many candidates are right.

    P(none right among the first k) = C(N−r, k) / C(N, k).
    """
    missed = np.ones((len(right), candidates + 1))
    for k in range(1, candidates + 1):
        missed[:, k] = missed[:, k - 1] * np.maximum(candidates - right - k + 1, 0) / (candidates - k + 1)
    first_at = -np.diff(missed, axis=1)  # P(the best right one is k-th)
    mrr = (first_at / np.arange(1, candidates + 1)).sum(axis=1)
    return float(1 - missed[:, 1].mean()), float(1 - missed[:, min(5, candidates)].mean()), float(mrr.mean())


@dataclass(frozen=True)
class Verdict:
    """``knows``: the encoder's mean reciprocal rank lies above chance, and above the control's, with 97.5 % confidence
    each. ``lead`` (low, high): 95 % interval of its lead over the control, ask by ask."""

    knows: bool
    above_chance: bool
    above_control: bool
    lead: tuple[float, float]


def verdict_of(ranks: np.ndarray, control: np.ndarray, chance_mrr: float) -> Verdict:
    """``ranks`` and ``control`` (q,): ranks of the encoder and of the control for the same asks."""
    found = figures_of(ranks)
    lead = resampled((1 / (1 + ranks) - 1 / (1 + control))[:, None])[:, 0]
    low, high = (float(v) for v in np.percentile(lead, (2.5, 97.5)))
    above_chance, above_control = found.mrr_interval[0] > chance_mrr, low > 0
    return Verdict(above_chance and above_control, above_chance, above_control, (low, high))


def beats(ranks: np.ndarray, other: np.ndarray) -> bool:
    """Is the mean reciprocal rank above the other's by more than its standard error? See :func:`leads`."""
    return leads(1 / (1 + ranks) - 1 / (1 + other))


def leads(lead: np.ndarray) -> bool:
    """Is a lead (q,), ask by ask, above zero by more than its standard error? The best of many epochs looks better than
    it is, so a bare lead is not enough."""
    return len(lead) > 1 and float(lead.mean()) > float(lead.std(ddof=1)) / len(lead) ** 0.5
