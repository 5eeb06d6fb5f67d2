"""Which LoRA comes first for a text, by how much, and what is usual for it: what a calibration reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..encode.calibrate import Ruler
from .finalists import Finalists
from .odds import MAX_LOGIT, combine
from .responding import Progress, either
from .score import Asked, Scorer

LOGIT_FLOOR = 0.5
# A lead beyond these log odds says no more: the runner-up is out of the question anyway.
MAX_LEAD = 3.0
BLOCK = 32
# LoRAs that each part of the evidence proposes at first: a calibration needs the first two.
BEGIN = 8
MARGIN = 1e-6
MAX_KNOWN, ALL_BLOCK = 20_000, 1024
# A generic prompt that a LoRA's own words claim this surely is not an example of "nothing fits".
CLAIMED = 0.5


class Usual:
    """The ruler of the LoRAs' combined log odds over the generic prompts; a LoRA is measured when it is needed, unless
    all were measured before: ``kept`` (N, 2), what :meth:`of_all` gave."""

    def __init__(self, scorer: Scorer, generic: Asked, kept: np.ndarray | None = None):
        self._scorer, self._generic, self._kept = scorer, generic, kept
        self._known: dict[int, tuple[float, float]] = {}

    def of_all(self, tick: Callable[[int, int], None]) -> np.ndarray:
        """(N, 2) mean and deviation of every LoRA, known from now on; ``tick(done, total)`` may raise to interrupt."""
        if self._kept is None:
            found = np.zeros((len(self._scorer.entries), 2))
            for start in range(0, len(found), ALL_BLOCK):
                tick(start, len(found))
                loras = self._scorer.everyone[start : start + ALL_BLOCK]
                ruler = Ruler.measure(log_odds(self._scorer, self._generic, loras)[0].T, LOGIT_FLOOR)
                found[loras] = np.stack([ruler.mean, ruler.deviation], axis=1)
            self._kept = found
        return self._kept

    def of(self, loras: np.ndarray) -> Ruler:
        """Of these LoRAs (n,)."""
        if self._kept is not None:
            return Ruler(self._kept[loras, 0], self._kept[loras, 1])
        missing = np.array(sorted(set(loras.tolist()) - self._known.keys()), int)
        if len(missing):
            if len(self._known) > MAX_KNOWN:
                self._known.clear()
                missing = np.unique(loras)
            ruler = Ruler.measure(log_odds(self._scorer, self._generic, missing)[0].T, LOGIT_FLOOR)
            values = zip(ruler.mean.tolist(), ruler.deviation.tolist(), strict=True)
            self._known |= dict(zip(missing.tolist(), values, strict=True))
        found = np.array([self._known[lora] for lora in loras.tolist()]).reshape(-1, 2)
        return Ruler(found[:, 0], found[:, 1])


def top_of(logit: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Q, C) log odds of LoRAs in ``groups`` (C,) → the best column, its log odds, its lead over the best of another
    group, (Q,) each."""
    best = logit.argmax(axis=1)
    top = logit[np.arange(len(logit)), best]
    rest = np.where(groups[None] == groups[best][:, None], -MAX_LOGIT, logit).max(axis=1, initial=-MAX_LOGIT)
    return best, top, np.minimum(top - rest, MAX_LEAD)


def none_fits_evidence(loras: np.ndarray, top: np.ndarray, lead: np.ndarray, usual: Usual) -> np.ndarray:
    """(Q, 3) as :class:`NoneFits` reads it: log odds, lead, and z-score over the generic prompts."""
    ruler = usual.of(loras)
    return np.stack([top, lead, (top - ruler.mean) / ruler.deviation], axis=1)


@dataclass(frozen=True)
class Leaders:
    """Of each text (Q,): the ``best`` LoRA, its log odds and lead; ``words`` the most that the words of any LoRA claim,
    as far as it is more than a half. ``without``: the same texts without the LoRAs' owners, those left that have any.
    """

    best: np.ndarray
    top: np.ndarray
    lead: np.ndarray
    words: np.ndarray
    without: Leaders | None = None

    def evidence(self, usual: Usual) -> np.ndarray:
        """(Q, 3) for the calibration."""
        return none_fits_evidence(self.best, self.top, self.lead, usual)


@dataclass(frozen=True)
class Asking:
    """Texts for :meth:`Scorer.asked`, some at a time."""

    scorer: Scorer
    texts: Sequence[str]
    vectors: np.ndarray
    use_weights: bool
    use_text: bool
    answers: np.ndarray | None

    @classmethod
    def of(
        cls, scorer: Scorer, texts: Sequence[str], use_weights: bool, use_text: bool, answers: np.ndarray | None
    ) -> Asking:
        """With the library's own tower."""
        return cls(scorer, texts, scorer.tower.encode(texts), use_weights, use_text, answers)

    def asked(self, rows: slice) -> Asked:
        """Some of them, ready."""
        answers = None if self.answers is None else self.answers[rows]
        return self.scorer.asked(self.texts[rows], self.vectors[rows], self.use_weights, self.use_text, answers=answers)


def find_leaders(
    asking: Asking,
    groups: np.ndarray,
    hidden: Sequence[np.ndarray | None],
    owners: np.ndarray | None = None,
    progress: Progress | None = None,
) -> list[Leaders]:
    """The leaders of every text, once for each of ``hidden``: (Q,) bool, for which texts the words of its owner
    ``owners[q]`` do not count."""
    blocks: list[list[Leaders]] = [[] for _ in hidden]
    for start in range(0, len(asking.texts), BLOCK):
        if progress is not None:
            progress(start, len(asking.texts), asking.texts[start])
        rows = slice(start, min(start + BLOCK, len(asking.texts)))
        mine = None if owners is None else owners[rows]
        shown = [None if hide is None else hide[rows] for hide in hidden]
        for block, found in zip(blocks, _leaders(asking.scorer, asking.asked(rows), groups, shown, mine), strict=True):
            block.append(found)
    return [_joined(block) for block in blocks]


def _leaders(scorer: Scorer, asked: Asked, groups: np.ndarray, hidden, owners: np.ndarray | None) -> list[Leaders]:
    """Of one block: LoRAs are added until none that is missing could change anything."""
    nothing = np.zeros(len(asked.texts))
    finalists = Finalists(scorer, asked, nothing, nothing, BEGIN)
    loras = finalists.first() if owners is None else np.union1d(finalists.first(), owners)
    logit, words, alone = log_odds(scorer, asked, loras)
    while True:
        levels = np.full(len(asked.texts), np.inf if owners is not None else -MARGIN)
        found = [_read(logit, words, alone, loras, groups, hide, owners, levels) for hide in hidden]
        new = finalists.missing(levels, loras)
        if not len(new):
            return found
        order = np.argsort(np.concatenate([loras, new]))
        more = log_odds(scorer, asked, new)
        logit, words, alone = (
            np.concatenate(pair, axis=1)[:, order] for pair in zip((logit, words, alone), more, strict=True)
        )
        loras = np.concatenate([loras, new])[order]


def log_odds(scorer: Scorer, asked: Asked, loras: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(S, C) each: log odds of all parts together; what words claim; log odds without words."""
    weights, text, lexical, response, _ = scorer.parts(asked, loras)
    silent, words = np.full(weights.shape, np.nan), np.fmax(text, lexical)
    both = either(weights, response)
    return combine(both, words, silent), words, combine(both, silent, silent)


def _read(logit, words, alone, loras, groups, hide, owners, levels) -> Leaders:
    """Leaders among ``loras``; lowers ``levels`` (Q,) to the log odds from which all LoRAs must be among them."""
    groups = groups[loras]
    most = np.nan_to_num(words).max(axis=1)
    if owners is None:
        return Leaders(*_led(logit, groups, loras, levels), most)
    mine = np.arange(len(owners)), np.searchsorted(loras, owners)
    if hide is not None:
        logit = logit.copy()
        logit[mine] = np.where(hide, alone[mine], logit[mine])
    same = groups[None] == groups[mine[1]][:, None]
    without = np.where(same, -np.inf, logit)
    others = np.flatnonzero(~same.all(axis=1))
    levels[same.all(axis=1)] = -np.inf
    lower = levels[others]
    left = Leaders(*_led(without[others], groups, loras, lower), most[others])
    levels[others] = lower
    return Leaders(*_led(logit, groups, loras, levels), most, left)


def _led(logit: np.ndarray, groups: np.ndarray, loras: np.ndarray, levels: np.ndarray):
    best, top, lead = top_of(logit, groups)
    np.minimum(levels, top - lead - MARGIN, out=levels)
    return loras[best], top, lead


def _joined(blocks: list[Leaders]) -> Leaders:
    parts = [np.concatenate([getattr(block, name) for block in blocks]) for name in ("best", "top", "lead", "words")]
    without = None if blocks[0].without is None else _joined([block.without for block in blocks])
    return Leaders(*parts, without)


def nearest_by_weights(scorer: Scorer, query: np.ndarray) -> np.ndarray:
    """(Q,) the LoRA with the largest z-score of its weights for each query (Q, d), the first of equals."""
    if len(scorer.entries) <= BLOCK * BLOCK:
        z = scorer.weight_z(query, scorer.everyone)
        return np.where(np.isfinite(z), z, -np.inf).argmax(axis=1)
    table, best = scorer.weight_table, []
    bounds = table.bounds(query)
    for bound, one in zip(bounds, query, strict=True):
        level = table.scores(bound.likely(BEGIN), one[None])[0].max()
        loras = scorer.loras_of(table.at_least(bound, one, level - MARGIN))
        loras = loras[scorer.has_vector[loras]]
        best.append(loras[scorer.weight_table.scores(scorer.row[loras], one[None])[0].argmax()])
    return np.array(best)
