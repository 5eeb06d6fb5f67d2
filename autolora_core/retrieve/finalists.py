"""Which LoRAs can matter for an answer: all that can reach a level of log odds, found without scoring the others.

What is not among them has less than the level, provably: every part of the evidence of a LoRA that is left out lies
below a bound from which the parts together cannot reach it. So an answer made from the finalists is the answer made
from the whole library, as long as it depends on nothing below the levels (:mod:`.select` and :mod:`.tune` say down to
which level theirs does).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..encode.calibrate import Logistic, sigmoid
from ..library.approximate import Approximate, Found
from ..library.table import Bounds, Table
from .odds import MAX_LOGIT, bounded
from .sayings import LEXICAL_MODEL, distinct, ranges, without
from .score import Asked, Scorer

# A library of so many LoRAs is scored whole: it takes no longer.
WHOLE = 1024
# How many LoRAs each part of the evidence proposes to begin with.
BEGIN = 6
# Of a text that many LoRAs say so many are proposed.
TELLERS = 2
# Words that claim less than this part of what they would have to are many: then weights are searched exactly.
FEWER_WORDS = 0.5
# Words that share nothing still have the odds of that.
_FLOOR = float(sigmoid(LEXICAL_MODEL.bias)) * (1 + 1e-9)
# More candidates than these are looked at by their bounds before they are scored.
MANY = 256


class Finalists:
    """``asked`` are the phrases; ``hint`` (S,) is the most that a LoRA's role can add to its log odds for each,
    ``loss`` (S,) what the phrase itself costs. ``begin``: how many LoRAs each part proposes at first. ``shut`` (N,)
    bool are not looked for. ``quick``: weights may be searched approximately where the library is that large; what is
    said of levels then holds as far as that search finds what it should."""

    def __init__(
        self, scorer: Scorer, asked: Asked, hint: np.ndarray, loss: np.ndarray, begin: int = BEGIN,
        shut: np.ndarray | None = None, quick: bool = False,
    ):  # fmt: skip
        self.scorer, self.asked, self.hint, self.loss, self.begin = scorer, asked, hint, loss, begin
        self.count = len(scorer.entries)
        self.shut = shut if shut is not None and shut.any() else None
        self.everyone = scorer.everyone if self.shut is None else np.flatnonzero(~self.shut)
        self.whole = len(self.everyone) <= WHOLE or not len(asked.texts)
        if self.whole:
            return
        speaks = asked.use_text and len(scorer.sayings)
        self._words = scorer.sayings.table.bounds(asked.vectors) if speaks else None
        self._weighed = asked.use_weights
        self._weights: list[Bounds] | list[Found] | None = None
        self._table: Table | Approximate = scorer.weight_table
        self._quick = quick
        self.whole = not self._weighed and self._words is None and asked.answers is None
        self._told = np.full(len(asked.texts), np.inf)
        if self._weighed and not self._words_decide():
            self._scan_weights()

    def _words_decide(self) -> bool:
        """Whether some LoRA's words may be surer than any weights can be: then weights may never be needed."""
        if self._words is None:
            return False
        most = max(float(bound.tops.max(initial=-np.inf)) for bound in self._words)
        return most > _logit(self.scorer.weight_claim)

    def _scan_weights(self) -> None:
        self._table = (self.scorer.quick.ready() if self._quick else None) or self._table
        self._weights = self._table.bounds(self.asked.query)

    def note(self) -> str | None:
        """How weights were searched, where that is to be told."""
        if self.whole or self._weights is None:
            return None
        return self.scorer.quick.note(self._table if isinstance(self._table, Approximate) else None)

    def first(self) -> np.ndarray:
        """LoRAs to begin with, ascending."""
        if self.whole:
            return self.everyone
        return self._open([self._proposed(row) for row in range(len(self.asked.texts))])

    def missing(self, levels: np.ndarray, known: np.ndarray) -> np.ndarray:
        """LoRAs that are not ``known`` (ascending) and may reach ``levels[s]`` of log odds for a phrase s, ascending.
        When there are none, all that reach them are known."""
        if self.whole or (levels == -np.inf).any():
            return without(self.everyone, known)
        if self._weighed and self._weights is None and self._by_weights_alone(levels):
            self._scan_weights()
            proposed = without(self.first(), known)
            if len(proposed):
                return proposed  # they may raise the levels
        rows = np.flatnonzero(np.isfinite(levels) & (levels < self._told))
        self._told[rows] = levels[rows]
        parts = [self._split(row, float(levels[row])) for row in rows]
        deeper = [bool(part) and self._too_deep(row, part[2]) for row, part in zip(rows, parts, strict=True)]
        self._search_deeper(rows[np.array(deeper, bool)])
        found = [self._reaching(row, float(levels[row]), part) for row, part in zip(rows, parts, strict=True)]
        return without(self._open(found), known)

    def _too_deep(self, row: int, z: float) -> bool:
        """Whether an approximate search does not know all LoRAs with such a z-score."""
        return self._weighed and self._weights is not None and z < self._weights[row].trusted

    def _search_deeper(self, rows: np.ndarray) -> None:
        if len(rows):
            for row, bounds in zip(rows, self._table.exact(self.asked.query[rows]), strict=True):
                self._weights[row] = bounds

    def _by_weights_alone(self, levels: np.ndarray) -> bool:
        """Whether weights could bring a LoRA to its level whose words do not."""
        model, claim = self.scorer.weight_model, self.scorer.weight_claim
        found = [self._parts(row, float(levels[row])) for row in np.flatnonzero(np.isfinite(levels))]
        return any(parts is None or (len(parts) and _z_of(model, claim, parts[1]) < np.inf) for parts in found)

    def _open(self, found: Sequence[np.ndarray]) -> np.ndarray:
        loras = _together(found)
        return loras if self.shut is None else loras[~self.shut[loras]]

    def _proposed(self, row: int) -> np.ndarray:
        scorer, found = self.scorer, []
        if self._weights is not None:
            found.append(scorer.loras_of(self._weights[row].likely(self.begin)))
        if self._words is not None:
            found.append(self._some(self._words[row].likely(self.begin)))
            texts, overlap = self.asked.shared.of(row)
            few = len(texts) <= self.begin
            found.append(self._some(texts if few else texts[np.argpartition(-overlap, self.begin)[: self.begin]]))
        if self.asked.answers is not None:
            z = np.nan_to_num(self.asked.answers[row], nan=-np.inf)
            found.append(np.argsort(-z, kind="stable")[: self.begin])
        return _together(found)

    def _some(self, texts: np.ndarray) -> np.ndarray:
        """A few of the LoRAs that say these texts: the first of each."""
        sayings = self.scorer.sayings
        order, starts = sayings.tellers
        at = ranges(starts[texts], np.minimum(starts[texts + 1], starts[texts] + TELLERS))
        return sayings.owners[order[at]]

    def _wanted(self, row: int, level: float) -> float:
        """Log odds that the parts of a LoRA must come to."""
        return level + float(self.loss[row]) - abs(float(self.hint[row])) - 1e-9

    def _parts(self, row: int, level: float) -> tuple[float, float] | tuple[()] | None:
        """As :meth:`_least`; () when nothing reaches the level."""
        wanted = self._wanted(row, level)
        if wanted > MAX_LOGIT:
            return ()
        return self._least(float(sigmoid(wanted))) if wanted > -MAX_LOGIT else None

    def _split(self, row: int, level: float) -> tuple[float, float, float] | tuple[()] | None:
        """As :meth:`_parts`, and the z-score of weights that the second comes to."""
        parts = self._parts(row, level)
        if not parts:
            return parts
        words, others = parts
        z = _z_of(self.scorer.weight_model, self.scorer.weight_claim, others)
        if self._too_deep(row, z):
            words, z = self._with_fewer_words(row, self._wanted(row, level), words, z)
        return words, others, z

    def _reaching(self, row: int, level: float, parts: tuple[float, float, float] | tuple[()] | None) -> np.ndarray:
        if parts is None:
            return self.scorer.everyone
        if not parts:
            return np.zeros(0, np.int64)
        words, others, z = parts
        found = []
        if self._weighed:
            found.append(self._by_weights(row, z))
        if self.asked.answers is not None:
            z = _z_of(self.scorer.response_model, self.scorer.response_claim, others)
            found.append(np.flatnonzero(np.nan_to_num(self.asked.answers[row], nan=-np.inf) >= z))
        if self._words is not None:
            found.append(self._by_words(row, words))
        return self._able(row, _together(found), self._wanted(row, level))

    def _least(self, wanted: float) -> tuple[float, float] | None:
        """Probabilities such that a LoRA whose words stay below the first and whose weights and answer stay below the
        second cannot reach ``wanted`` together; None when nothing can be left out."""
        others = self._weighed + (self.asked.answers is not None)
        if self._words is None:
            return 1.0, 1 - (1 - wanted) ** (1 / max(others, 1))
        if wanted <= _FLOOR:
            return None
        words = max(1 - (1 - wanted) ** (1 / (1 + others)), _FLOOR)
        return words, 1 - ((1 - wanted) / (1 - words)) ** (1 / max(others, 1))

    def _with_fewer_words(self, row: int, wanted: float, words: float, z: float) -> tuple[float, float]:
        """Less of words, and a z-score that an approximate search knows all LoRAs of, which together are as much; as
        they were where that would be too many words."""
        model, claim, known = self.scorer.weight_model, self.scorer.weight_claim, self._weights[row].trusted
        if self._words is None or self.asked.answers is not None:
            return words, z
        fewer = 1 - float((1 - sigmoid(wanted)) / (1 - bounded(model.probability(np.array([known])), claim)))
        return (fewer, known) if fewer > max(FEWER_WORDS * words, _FLOOR) else (words, z)

    def _by_weights(self, row: int, z: float) -> np.ndarray:
        scorer = self.scorer
        if not np.isfinite(z):
            return scorer.everyone if z < 0 else np.zeros(0, np.int64)
        return scorer.loras_of(self._table.at_least(self._weights[row], self.asked.query[row], z))

    def _by_words(self, row: int, least: float) -> np.ndarray:
        sayings, logit = self.scorer.sayings, _logit(least)
        texts, overlap = self.asked.shared.of(row)
        near = texts[LEXICAL_MODEL.logit(overlap[:, None]) >= logit - 1e-9]
        said = sayings.table.at_least(self._words[row], self.asked.vectors[row], logit - 1e-9)
        return sayings.owners[sayings.phrases_saying(distinct(np.concatenate([near, said])))]

    def _able(self, row: int, loras: np.ndarray, wanted: float) -> np.ndarray:
        """Those whose parts together can reach ``wanted`` log odds, by their bounds."""
        if len(loras) <= MANY:
            return loras
        scorer, miss = self.scorer, np.ones(len(loras))
        if self._weighed:
            z = np.full(len(loras), 1e9)
            if self._weights is not None:
                at = scorer.row[loras]
                z = np.where(at >= 0, self._weights[row].of(at), -np.inf)
            miss *= 1 - bounded(scorer.weight_model.probability(z[:, None]), scorer.weight_claim)
        if self.asked.answers is not None:
            z = np.nan_to_num(self.asked.answers[row, loras], nan=-np.inf)
            miss *= 1 - bounded(scorer.response_model.probability(z[:, None]), scorer.response_claim)
        if self._words is not None:
            has = scorer.has_text[loras]
            most = scorer.sayings.bound(row, self._words[row].values, self.asked.shared, loras[has])
            miss[has] *= 1 - sigmoid(most)
        return loras[np.clip(miss, sigmoid(-MAX_LOGIT), 1) <= 1 - sigmoid(wanted) + 1e-12]


def _together(found: Sequence[np.ndarray]) -> np.ndarray:
    return distinct(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _logit(p: float) -> float:
    p = min(max(p, 1e-300), 1 - 1e-16)
    return float(np.log(p) - np.log1p(-p))


def _z_of(model: Logistic, claim: float, least: float) -> float:
    """The smallest z-score whose bounded probability is ``least``; −∞ when all have it, ∞ when none can."""
    odds = 1 / max(least, 1e-300) - 1 / max(claim, 1e-12) + 1  # one over the probability before it is bounded
    if odds <= 1:
        return np.inf
    slope = float(model.slope[0])
    if slope <= 0:
        return -np.inf if model.bias >= _logit(1 / odds) - 1e-9 else np.inf
    return (_logit(1 / odds) - 1e-9 - model.bias) / slope
