"""From scores to probabilities, honestly with few examples.

Every calibration here is a logistic regression with a Gaussian prior *around stated coefficients* (maximum a
posteriori): with no examples it is the stated prior, with many it is the data, and there is no threshold in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WEIGHT_FLOOR = 0.02  # least spread of a file's vector over the generic prompts


@dataclass(frozen=True)
class Logistic:
    """``p = σ(bias + x · slope)``; ``slope`` (k,). ``examples`` counts what it was fitted on."""

    bias: float
    slope: np.ndarray
    examples: tuple[int, int] = (0, 0)

    def logit(self, x: np.ndarray) -> np.ndarray:
        """(…, k) → (…,) float64."""
        return self.bias + np.asarray(x, np.float64) @ self.slope

    def probability(self, x: np.ndarray) -> np.ndarray:
        """(…, k) → (…,) in (0, 1)."""
        return sigmoid(self.logit(x))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e⁻ˣ), without overflow. NaN, evidence that is absent, stays NaN."""
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0, -np.asarray(x, np.float64)))


def fit_logistic(
    positives: np.ndarray,
    negatives: np.ndarray,
    prior: Logistic,
    *,
    cost: float = 1.0,
    strength: float = 4.0,
) -> Logistic:
    """MAP fit by Newton steps. ``positives`` (n, k), ``negatives`` (m, k).

    The two sides are weighted to the same total (there is no base rate to learn here: the negatives were made up), the
    number of examples of the smaller side; ``cost`` makes the negatives weigh more: how much worse a false yes is than
    a false no. ``strength`` is how many examples the prior is worth, per coefficient; slopes are kept at or above zero,
    since more evidence must never lower a probability.
    """
    if len(positives) == 0 or len(negatives) == 0:
        return prior
    x = np.concatenate([positives, negatives]).astype(np.float64)
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    y = np.concatenate([np.ones(len(positives)), np.zeros(len(negatives))])
    each = min(len(positives), len(negatives))
    weight = np.where(y == 1, each / len(positives), cost * each / len(negatives))
    centre = np.concatenate([[prior.bias], prior.slope])
    # The spread of a coefficient under the prior: as large as itself, and at least a half (the bias: two).
    least = np.where(np.arange(len(centre)) == 0, 2.0, 0.5)
    precision = strength / np.maximum(np.abs(centre), least) ** 2 / 4
    free = np.ones(len(centre), bool)
    while True:
        w = np.zeros(len(centre))
        w[free] = _newton(x[:, free], y, weight, centre[free], precision[free])
        worst = 1 + int(w[1:].argmin())
        if w[worst] >= 0:
            return Logistic(float(w[0]), w[1:], (len(positives), len(negatives)))
        free[worst] = False  # and fit the others again: they had been leaning on it


def _newton(x, y, weight, centre: np.ndarray, precision: np.ndarray, steps: int = 100) -> np.ndarray:
    """Minimise weighted log loss + ½ Σ precision (w − centre)²; steps are bounded, so far-off data cannot overshoot."""
    w = centre.copy()
    for _ in range(steps):
        p = sigmoid(x @ w)
        gradient = x.T @ (weight * (p - y)) + precision * (w - centre)
        hessian = (x * (weight * np.maximum(p * (1 - p), 1e-6))[:, None]).T @ x + np.diag(precision)
        step = np.linalg.solve(hessian, gradient)
        w = w - step / max(1.0, float(np.abs(step).max()) / 2)
        if np.abs(step).max() < 1e-9:
            break
    return w


@dataclass(frozen=True)
class Ruler:
    """Mean and deviation of each LoRA's score over the generic prompts, (n,) each."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def measure(cls, scores: np.ndarray, floor: float = WEIGHT_FLOOR) -> Ruler:
        """``scores`` (n, generic prompts) → robust mean and deviation (median and 1.4826 · MAD, at least ``floor``).

        Robust, because a generic prompt may happen to be exactly what a LoRA is of.
        """
        middle = np.median(scores, axis=1)
        deviation = 1.4826 * np.median(np.abs(scores - middle[:, None]), axis=1)
        return cls(middle, np.maximum(deviation, floor))

    def z(self, scores: np.ndarray) -> np.ndarray:
        """(n, …) → how many deviations above its own usual score each one is."""
        shape = (-1,) + (1,) * (scores.ndim - 1)
        return (scores - self.mean.reshape(shape)) / self.deviation.reshape(shape)


# "None fits", before any example: the top score's own log odds decide, a clear lead over the runner-up helps a little.
NONE_FITS_PRIOR = Logistic(-0.5, np.array([1.0, 0.25, 0.0]))


@dataclass(frozen=True)
class NoneFits:
    """Probability that the best LoRA really fits. Inputs, in this order: its log odds from the parts, its lead over
    the best LoRA that is no near-duplicate of it (log odds), and the z-score of the former over generic prompts.
    """

    model: Logistic

    @classmethod
    def fit(cls, positives: np.ndarray, negatives: np.ndarray, cost: float = 2.0) -> NoneFits:
        """``positives`` (n, 3): captioned LoRAs' own texts, the LoRA present; ``negatives`` (m, 3): the same prompts
        without it and its near-duplicates, and generic prompts; ``cost``: see :func:`fit_logistic`. Without examples
        the stated prior is used."""
        sides = np.reshape(positives, (-1, 3)), np.reshape(negatives, (-1, 3))
        return cls(fit_logistic(*sides, NONE_FITS_PRIOR, cost=cost))

    def probability(self, evidence: np.ndarray) -> np.ndarray:
        """(…, 3) → (…,) probability that it fits."""
        return self.model.probability(evidence)
