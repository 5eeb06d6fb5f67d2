"""How far LoRAs stand out, with a ruler of each over a wide bank of words: what the benchmark reads beyond Retrieve.

The *own ruler* is the :data:`OWN_TAIL` quantile of a LoRA's residuals (``autolora_core.retrieve.standout``) over the
bank: a LoRA that answers to many things loudly has to answer louder still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autolora_core.retrieve.standout import RIDGE, Stranger, standardised

# Chosen on the validation part; from 0.988 to 0.997 little changes.
OWN_TAIL = 0.994
# The lead that tells "fits" from "none fits" is over the mean of so many runners-up: one twin does not spoil it.
RUNNERS_UP = 10


@dataclass(frozen=True)
class Standouts:
    """``standard`` and ``residual`` (T, N) of all texts, ``own`` (N,) each LoRA's ruler, in residuals."""

    standard: np.ndarray
    residual: np.ndarray
    own: np.ndarray

    @classmethod
    def read(
        cls,
        scores: np.ndarray,
        generic: Sequence[int],
        bank: Sequence[int],
        pool: np.ndarray | None = None,
        ridge: float = RIDGE,
        tail: float = OWN_TAIL,
    ) -> Standouts:
        """``scores`` (T, N) without NaN; ``generic`` and ``bank`` are rows of it."""
        stranger = Stranger.learn(scores[list(generic)], pool, ridge)
        standard = standardised(scores, stranger.pool)
        residual = stranger.residual(standard)
        residual[list(generic)] = stranger.own_residual()
        return cls(standard, residual, np.quantile(residual[list(bank)], tail, axis=0))


def lead(scores: np.ndarray, runners_up: int = RUNNERS_UP) -> np.ndarray:
    """(Q, N) → (Q,): the best LoRA's score over the mean of the ``runners_up`` behind it."""
    best = -np.sort(-scores, axis=1)[:, : runners_up + 1]
    return best[:, 0] - best[:, 1:].mean(axis=1) if best.shape[1] > 1 else best[:, 0]
