"""What the LoRAs of a library answer to a phrase inside a live base model: the score's part ``response``.

Nothing is learned and no LoRA needs a description (:mod:`..encode.response`). What a LoRA answers to the generic
prompts is its own ruler; a phrase's z-score on it, in a large library what it leaves beside those of the other LoRAs
(:mod:`.standout`), becomes a probability by a logistic that starts as stated and is calibrated on the library's
captioned LoRAs, each asked for by its own words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..encode.calibrate import Logistic, Ruler
from ..encode.factor_table import FactorTable
from ..encode.generic import GENERIC_PROMPTS
from ..library.answers import CachedAnswers
from .standout import Stranger, standardised
from .view import EntryLike, LibraryView

# On the z-score, one LoRA against one stranger, as if it were normal around 0 for strangers and above 4 for the right
# LoRA, with a longer tail than that: phrases near its subject move it too.
RESPONSE_PRIOR = Logistic(-7.0, np.array([3.0]))
DEVIATION_FLOOR = 1e-3
# From so many LoRAs on strangers are known well enough that one LoRA of a thing, or two, do not count among them.
ENOUGH_STRANGERS = 300
# A phrase costs a run of the text encoder and of the base; of a very long prompt the whole phrases come first.
MAX_PHRASES = 64
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Responder:
    """A family's LoRAs measured on a base model; the model itself is not held, so that it can be unloaded.

    ``rows`` (N,) is each LoRA's row of ``table``, −1 where it has none; ``stranger`` is what the library's LoRAs answer
    to the generic prompts, where there are enough of them.
    """

    table: FactorTable
    ruler: Ruler
    rows: np.ndarray
    stranger: Stranger | None = None

    @classmethod
    def measure(
        cls,
        view: LibraryView,
        family: str,
        entries: Sequence[EntryLike],
        base: CachedAnswers,
        progress: Progress | None = None,
    ) -> Responder | None:
        """Ask for the generic prompts and measure every LoRA on them; None when no LoRA fits this base.

        One family may have bases of several widths (SD3 medium and large): LoRAs of another width have no answer.
        """
        table = view.responses(family)
        usual = base.answers(table, GENERIC_PROMPTS, True, progress).astype(np.float64)
        row_of = {digest: row for row, digest in enumerate(table.hashes) if np.isfinite(usual[row]).all()}
        rows = np.array([row_of.get(entry.hash, -1) for entry in entries], int)
        if not (rows >= 0).any():
            return None
        # Mean and deviation rather than the robust ruler of the other parts: on the demo LoRAs they find more.
        usual = np.nan_to_num(usual)
        ruler = Ruler(usual.mean(axis=1), np.maximum(usual.std(axis=1), DEVIATION_FLOOR))
        has = rows >= 0
        if has.sum() < ENOUGH_STRANGERS:
            return cls(table, ruler, rows)
        return cls(table, ruler, rows, Stranger.learn(ruler.z(usual).T[:, rows], has))

    @property
    def has(self) -> np.ndarray:
        """(N,) bool: which LoRAs change layers of this base that a prompt reaches."""
        return self.rows >= 0

    def z(
        self, texts: Sequence[str], base: CachedAnswers, keep: bool = False, progress: Progress | None = None
    ) -> np.ndarray:
        """z-scores (texts, N) float64; NaN for LoRAs that have no response. ``keep`` texts are stored on disk."""
        found = self.ruler.z(base.answers(self.table, texts, keep, progress).astype(np.float64)).T[:, self.rows]
        if self.stranger is not None and len(found):
            found = self._beside_strangers(np.where(self.has, found, 0.0), texts)
        return np.where(self.has, found, np.nan)

    def _beside_strangers(self, found: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """What the generic prompts leave of (texts, N) z-scores; of each of them what the others leave."""
        left = self.stranger.residual(standardised(found, self.has))
        generic = {text: row for row, text in enumerate(GENERIC_PROMPTS)}
        among = [row for row, text in enumerate(texts) if text in generic]
        left[among] = self.stranger.own_residual()[[generic[texts[row]] for row in among]]
        return left


def either(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Probability that one of two readings of the weights is right; a reading that is absent (NaN) says nothing."""
    both = 1 - (1 - np.nan_to_num(one)) * (1 - np.nan_to_num(other))
    return np.where(np.isnan(one) & np.isnan(other), np.nan, both)
