"""How far a LoRA's answer to a phrase stands out of what the others answer, in a library that has enough of them.

Scores (texts, LoRAs) of any training-free kind, such as the z-scores of :mod:`.responding`, are read in two steps.

1. *Standardised*: each text's scores about their mean over the LoRAs, in their deviations. Loud texts no longer win.
2. *Residual*: ``r_t = s_t − wᵀ S_G``, where ``S_G`` (G, N) are the standardised scores of the generic prompts and
   ``w = (S_G S_Gᵀ/N + λI)⁻¹ S_G s_t/N``. What a LoRA answers to "a dog" and "a cat" explains its answer to "an otter",
   unless it is of one: for strangers under a normal law this is what the generic prompts leave unexplained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Chosen on the validation part of the retrieval benchmark; from 0.5 to 3 little changes.
RIDGE = 1.0
DEVIATION_FLOOR = 1e-3


@dataclass(frozen=True)
class Stranger:
    """What strangers of a library answer, learnt once: ``known`` (G, N) the standardised generic answers, ``inverse``
    (G, G) of their ridged covariance over the ``pool`` (N,)."""

    known: np.ndarray
    inverse: np.ndarray
    pool: np.ndarray

    @classmethod
    def learn(cls, generic: np.ndarray, pool: np.ndarray | None = None, ridge: float = RIDGE) -> Stranger:
        """``generic`` (G, N): every LoRA's scores for the generic prompts. ``pool`` (N,) bool: the LoRAs whose spread
        counts, all by default."""
        pool = np.ones(generic.shape[1], bool) if pool is None else pool
        known = standardised(generic, pool)
        covariance = known[:, pool] @ known[:, pool].T / max(int(pool.sum()), 1)
        return cls(known, np.linalg.inv(covariance + ridge * np.eye(len(known))), pool)

    def residual(self, standard: np.ndarray) -> np.ndarray:
        """(T, N) standardised scores of other texts → what the generic answers leave of them, in deviations."""
        shared = standard[:, self.pool] @ self.known[:, self.pool].T / max(int(self.pool.sum()), 1)
        return self._scaled(standard - shared @ self.inverse @ self.known)

    def own_residual(self) -> np.ndarray:
        """(G, N): the same of each generic prompt by the others (leave-one-out by the inverse)."""
        return self._scaled(self.inverse @ self.known / np.diag(self.inverse)[:, None])

    def _scaled(self, left: np.ndarray) -> np.ndarray:
        return left / np.maximum(left[:, self.pool].std(axis=1), DEVIATION_FLOOR)[:, None]


def standardised(scores: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """(T, N) about each text's mean over the pool, in its deviations."""
    mean, deviation = scores[:, pool].mean(axis=1), scores[:, pool].std(axis=1)
    return (scores - mean[:, None]) / np.maximum(deviation, DEVIATION_FLOOR)[:, None]
