"""What the LoRAs of a family say of themselves, as arrays: every text once, however many LoRAs say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import zip_longest

import numpy as np

from ..encode.calibrate import Logistic, Ruler, sigmoid
from ..encode.text_cache import CachedTower
from ..encode.threads import product
from ..library.table import Table
from .lexicon import Lexicon, Phrase, Shared, packed, unpacked
from .view import EntryLike
from .words import content_stems, words_of

# On the overlap of words: 0.95 for the very same words, a half at 0.7 (one of two equally rare words shared is 0.67).
LEXICAL_MODEL = Logistic(-10 * 0.7, np.array([10.0]))
FIELDS = ("title", "trigger", "tags", "tag", "description")
# One tag among many says less than a title: log odds.
FIELD_PENALTY = {"title": 0.0, "trigger": 0.0, "tags": 0.0, "description": 0.0, "tag": 1.5}
_PENALTIES = np.array([FIELD_PENALTY[field] for field in FIELDS])
TEXT_FLOOR = 0.05
# Log odds lost when phrase and caption share a word and each has one that the other lacks: purple heart, blue heart.
SIBLING_PENALTY = 2.0
RULER_BLOCK = 16384
_ARRAYS = ("said", "owners", "fields", "starts", "vectors")


def phrases_of(entry: EntryLike, owner: int) -> list[Phrase]:
    """What a LoRA says of itself, once each: title, triggers, tags together and the first six alone, description."""
    text = entry.text
    found = [("title", text.title), *(("trigger", word) for word in text.triggers[:8])]
    found += [("tags", ", ".join(text.tags[:12])), *(("tag", tag) for tag in text.tags[:6])]
    found.append(("description", text.description[:200]))
    seen, phrases = set(), []
    for name, words in found:
        key = _key(words)
        if key and key not in seen:
            seen.add(key)
            phrases.append(Phrase(owner, name, " ".join(words.split())))
    return phrases


@lru_cache(1 << 16)
def _key(text: str) -> str:
    """The words of a text alone; many LoRAs say the same."""
    return " ".join(words_of(text))


def ruler_of(rows: np.ndarray, generic: np.ndarray, floor: float) -> Ruler:
    """Usual score and deviation of each row (n, d) over the ``generic`` vectors, in blocks."""
    parts = [
        Ruler.measure(rows[start : start + RULER_BLOCK] @ generic.T, floor)
        for start in range(0, max(len(rows), 1), RULER_BLOCK)
    ]
    return Ruler(np.concatenate([p.mean for p in parts]), np.concatenate([p.deviation for p in parts]))


def whole_stems(texts: Sequence[str], stems: Sequence[frozenset[str]] = ()) -> list[frozenset[str]]:
    """Stems of the phrase each text comes from, where they are given; else those of the text itself."""
    return [own or frozenset(content_stems(text)) for text, own in zip_longest(texts, stems)]


class Sayings:
    """Phrases in the order of their LoRAs: phrase p is text ``said[p]`` of ``texts``, told by LoRA ``owners[p]`` as
    ``FIELDS[fields[p]]``; LoRA i has the phrases ``starts[i]`` to ``starts[i + 1]``. ``vectors`` (texts, dim) are the
    tower's; ``model`` reads z-score and cosine."""

    def __init__(self, entries: Sequence[EntryLike], tower: CachedTower, generic: np.ndarray, model: Logistic):
        number: dict[str, int] = {}
        said, owners, fields = [], [], []
        for i, entry in enumerate(entries):
            for phrase in phrases_of(entry, i):
                said.append(number.setdefault(phrase.text, len(number)))
                owners.append(i)
                fields.append(FIELDS.index(phrase.field))
        self.texts, self.model, self.count = list(number), model, len(entries)
        self.said, self.owners = np.array(said, np.int64), np.array(owners, np.int64)
        self.fields = np.array(fields, np.int8)
        self.starts = np.searchsorted(self.owners, np.arange(len(entries) + 1))
        self.vectors = tower.encode(self.texts)
        self.ruler = ruler_of(self.vectors, generic, TEXT_FLOOR)
        self.lexicon = Lexicon(self.texts, self.said, self.owners, len(entries))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it, for :meth:`of_arrays`."""
        own = {name: getattr(self, name) for name in _ARRAYS}
        ruler = {"ruler.mean": self.ruler.mean, "ruler.deviation": self.ruler.deviation}
        return {"texts": packed(self.texts), **own, **ruler, **self.lexicon.to_arrays()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], model: Logistic) -> Sayings:
        """Inverse of :meth:`to_arrays`. Raises ValueError or KeyError for arrays that do not fit each other."""
        self = cls.__new__(cls)
        self.texts, self.model = unpacked(arrays["texts"]), model
        for name in _ARRAYS:
            setattr(self, name, arrays[name])
        self.count = len(self.starts) - 1
        self.ruler = Ruler(arrays["ruler.mean"], arrays["ruler.deviation"])
        self.lexicon = Lexicon.of_arrays(arrays)
        texts, phrases = len(self.texts), len(self.said)
        lengths = len(self.vectors), len(self.ruler.mean), len(self.ruler.deviation), len(self.lexicon)
        inside = phrases == 0 or (0 <= self.said.min() and self.said.max() < texts and self.starts[-1] == phrases)
        if {*lengths} != {texts} or len(self.owners) != phrases or len(self.fields) != phrases or not inside:
            raise ValueError("words that do not fit each other")
        return self

    def __len__(self) -> int:
        return len(self.said)

    def phrase(self, at: int) -> Phrase:
        """One of them."""
        return Phrase(int(self.owners[at]), FIELDS[self.fields[at]], self.texts[self.said[at]])

    def first(self, lora: int) -> str | None:
        """The first thing a LoRA says, None when it says nothing."""
        start, stop = self.starts[lora], self.starts[lora + 1]
        return self.texts[self.said[start]] if stop > start else None

    def first_but_tags(self) -> np.ndarray:
        """(N,) the text that each LoRA says first, single tags aside; −1 where there is none."""
        found = np.full(self.count, -1)
        at = np.flatnonzero(self.fields != FIELDS.index("tag"))[::-1]
        found[self.owners[at]] = self.said[at]  # backwards: the first one written last
        return found

    @property
    def speaking(self) -> np.ndarray:
        """(N,) bool: LoRAs that have words."""
        return np.diff(self.starts) > 0

    @cached_property
    def table(self) -> Table:
        """Log odds of each text, before what its field or its siblings cost."""
        z, cosine = self.model.slope
        deviation = self.ruler.deviation.astype(np.float64)
        shift = self.model.bias - z * self.ruler.mean / deviation
        return Table(self.vectors, z / deviation + cosine, shift)

    @cached_property
    def tellers(self) -> tuple[np.ndarray, np.ndarray]:
        """Phrases by text: those of text t are ``order[starts[t] : starts[t + 1]]``."""
        order = np.argsort(self.said, kind="stable")
        return order, np.searchsorted(self.said[order], np.arange(len(self.texts) + 1))

    def phrases_saying(self, texts: np.ndarray) -> np.ndarray:
        """The phrases that are one of ``texts`` (indices)."""
        order, starts = self.tellers
        return order[ranges(starts[texts], starts[texts + 1])]

    def evidence(
        self, asked: np.ndarray, shared: Shared, loras: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Text and lexical probabilities (S, C) of ``loras`` (C,), NaN for those without words, and the index of the
        phrase that matched best (−1). ``asked`` (S, dim) are the vectors of the texts that ``shared`` is of."""
        shape = (len(asked), len(loras))
        text, lexical, best = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, -1)
        starts, stops = self.starts[loras], self.starts[loras + 1]
        rows = ranges(starts, stops)
        if not len(rows) or not len(asked):
            return text, lexical, best
        texts, places = np.unique(self.said[rows], return_inverse=True)
        overlap, siblings = shared.dense(len(asked), texts)
        cosine = product(asked.astype(np.float64), self.vectors[texts].astype(np.float64).T).T
        z = (cosine - self.ruler.mean[texts, None]) / self.ruler.deviation[texts, None]
        loss = (SIBLING_PENALTY * siblings)[:, places] + _PENALTIES[self.fields[rows]]
        by_text = self.model.logit(np.stack([z, cosine], axis=-1)).T[:, places] - loss
        by_word = LEXICAL_MODEL.logit(overlap[..., None])[:, places] - loss
        has = np.flatnonzero(stops > starts)
        lengths = (stops - starts)[has]
        first = np.cumsum(lengths) - lengths
        text[:, has] = sigmoid(np.maximum.reduceat(by_text, first, axis=1))
        lexical[:, has] = sigmoid(np.maximum.reduceat(by_word, first, axis=1))
        either = np.maximum(by_text, by_word)
        top = np.repeat(np.maximum.reduceat(either, first, axis=1), lengths, axis=1)
        best[:, has] = np.minimum.reduceat(np.where(either == top, rows, len(self)), first, axis=1)
        return text, lexical, best

    def bound(self, row: int, bounds: np.ndarray, shared: Shared, loras: np.ndarray) -> np.ndarray:
        """(C,) log odds that the words of ``loras`` (which must have some) do not exceed for asked text ``row``;
        ``bounds`` (texts,) are the table's for it."""
        starts, stops = self.starts[loras], self.starts[loras + 1]
        rows = ranges(starts, stops)
        texts = self.said[rows]
        at, overlap = shared.of(row)
        words = np.full(len(texts), LEXICAL_MODEL.bias)
        if len(at):
            place = np.minimum(np.searchsorted(at, texts), len(at) - 1)
            words += LEXICAL_MODEL.slope[0] * np.where(at[place] == texts, overlap[place], 0.0)
        most = np.maximum(bounds[texts], words) - _PENALTIES[self.fields[rows]]
        return np.maximum.reduceat(most, np.cumsum(stops - starts) - (stops - starts))


def distinct(numbers: np.ndarray) -> np.ndarray:
    """Sorted, each once; of few numbers quicker than ``np.unique``."""
    numbers = np.sort(numbers)
    return numbers[np.diff(numbers, prepend=numbers[:1] - 1) > 0]


def without(numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Those of ``numbers`` (ascending) that are not among ``others`` (ascending)."""
    if not len(others):
        return numbers
    return numbers[others[np.minimum(np.searchsorted(others, numbers), len(others) - 1)] != numbers]


def ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """All whole numbers from each start to its stop, one run after the other."""
    lengths = stops - starts
    return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))
