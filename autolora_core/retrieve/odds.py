"""Odds: how far the weights may be believed, and what all parts of the evidence come to together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..encode.calibrate import Logistic, sigmoid
from ..encode.encoder import WeightEncoder

# On the z-score of the weights part, one LoRA against one stranger.
WEIGHT_PRIOR = Logistic(-4.0, np.array([2.0]))
# What an encoder may claim that nobody has measured on files it did not see.
UNKNOWN_HIT_RATE = 0.5
MAX_LOGIT = 7.0


def weight_prior(candidates: int) -> Logistic:
    """The stated model of the weights part among ``candidates`` LoRAs; see :func:`among`.

    As if z were normal with deviation one, around 0 for strangers and around 4 for the right LoRA.
    """
    return among(WEIGHT_PRIOR, candidates)


def among(model: Logistic, candidates: int) -> Logistic:
    """A model of one LoRA against one stranger, turned into one against ``candidates``: prior odds 1 : N (Bayes)."""
    return replace(model, bias=model.bias - float(np.log(max(candidates, 1))))


def hit_rate(encoder: WeightEncoder, right: int = 0, asks: int = 0) -> float:
    """How often the encoder may be believed: ``right`` of ``asks`` LoRAs of this library came first for their words.

    Only LoRAs count that it was not taught about (a ridge encoder leaves each one out): ``(right + 1) / (asks + 2)``,
    between what was seen and "a half, for all we know". Where there is none, an encoder fitted on this very library
    say, the recall counts that its file states for files it never saw; a half when it states nothing.
    """
    if asks:
        return (right + 1) / (asks + 2)
    return UNKNOWN_HIT_RATE if encoder.held_out_recall_at_1 is None else encoder.held_out_recall_at_1


def bounded(claim: np.ndarray, most: float) -> np.ndarray:
    """Probabilities (…) bounded by ``most``: ``1/p' − 1 = (1/p − 1) + (1/most − 1)``. NaN stays NaN."""
    against = 1 / np.maximum(claim, 1e-12) + 1 / max(most, 1e-12) - 1
    return 1 / against


def combine(weights: np.ndarray, text: np.ndarray, lexical: np.ndarray) -> np.ndarray:
    """Log odds of all parts together, each (…) in [0, 1] or NaN; absent parts say nothing, nothing at all is −7.

    ``p = 1 − (1 − weights)(1 − max(text, lexical))``, with ``weights`` bounded by the encoder's hit rate already.
    """
    words = np.fmax(text, lexical)
    miss = (1 - np.nan_to_num(weights, nan=0.0)) * (1 - np.nan_to_num(words, nan=0.0))
    miss = np.clip(miss, sigmoid(-MAX_LOGIT), sigmoid(MAX_LOGIT))
    return np.log1p(-miss) - np.log(miss)
