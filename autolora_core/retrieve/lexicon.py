"""Exact words: overlap of a phrase of the prompt with a LoRA's own words, rare words counting more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .words import content_stems

_ARRAYS = ("idf", "lengths", "totals", "texts", "starts")


def packed(texts: Iterable[str]) -> np.ndarray:
    """Texts without line breaks as bytes."""
    return np.frombuffer("\n".join(texts).encode("utf-8", "surrogatepass"), np.uint8)


def unpacked(array: np.ndarray) -> list[str]:
    """Inverse of :func:`packed`, whose texts may be none but not empty."""
    return array.tobytes().decode("utf-8", "surrogatepass").split("\n") if len(array) else []


@dataclass(frozen=True)
class Phrase:
    """One thing a LoRA says of itself. ``field`` is ``title``, ``trigger``, ``tag``, ``tags`` or ``description``."""

    owner: int
    field: str
    text: str


@dataclass(frozen=True)
class Shared:
    """What texts of the library share with some asked ones: of pair k, asked ``keys[k] // count`` and text ``keys[k] %
    count`` (ascending), the ``overlap`` in (0, 1] and whether they are ``siblings``. Pairs not listed share nothing."""

    count: int
    keys: np.ndarray
    overlap: np.ndarray
    siblings: np.ndarray

    def dense(self, asked: int, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(asked, len(texts)) overlap float64 and siblings bool, of ``asked`` texts with the library's ``texts``."""
        keys = np.arange(asked)[:, None] * self.count + texts[None]
        if not len(self.keys):
            return np.zeros(keys.shape), np.zeros(keys.shape, bool)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = self.keys[at] == keys
        return np.where(known, self.overlap[at], 0.0), known & self.siblings[at]

    def of(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The texts that share words with the asked text ``row``, ascending, and their overlap."""
        start, stop = np.searchsorted(self.keys, [row * self.count, (row + 1) * self.count])
        return self.keys[start:stop] - row * self.count, self.overlap[start:stop]


class Lexicon:
    """Stems of the library's texts with their inverse document frequency over its LoRAs.

    ``idf = ln(1 + (N − df + ½)/(df + ½))``, as in BM25 (Robertson and Zaragoza 2009). ``owners`` and ``said`` (P,) are
    who says which of ``texts``, ``count`` is N.
    """

    def __init__(self, texts: Sequence[str], said: np.ndarray, owners: np.ndarray, count: int):
        self._names: dict[str, int] = {}
        stems = [sorted({self._names.setdefault(s, len(self._names)) for s in content_stems(text)}) for text in texts]
        lengths = np.array([len(own) for own in stems], np.int64)
        flat = np.fromiter((stem for own in stems for stem in own), np.int64, int(lengths.sum()))
        holders = _holders(flat, lengths, said, owners, len(self._names), count)
        self._idf = np.log(1 + (count - holders + 0.5) / (holders + 0.5))
        self._unknown = math.log(1 + (count + 0.5) / 0.5)
        self._lengths, of_text = lengths, np.repeat(np.arange(len(texts)), lengths)
        self._totals = np.bincount(of_text, self._idf[flat], len(texts)) if len(texts) else np.zeros(0)
        order = np.argsort(flat, kind="stable")  # by stem, then text
        self._texts = of_text[order].astype(np.int32)
        self._starts = np.searchsorted(flat[order], np.arange(len(self._names) + 1))

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self._lengths)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it, for :meth:`of_arrays`."""
        own = {f"lexicon.{name}": getattr(self, f"_{name}") for name in _ARRAYS}
        return {"lexicon.names": packed(self._names), "lexicon.unknown": np.array([self._unknown]), **own}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Lexicon:
        """Inverse of :meth:`to_arrays`. Raises ValueError or KeyError for arrays that do not fit each other."""
        self = cls.__new__(cls)
        self._names = {name: at for at, name in enumerate(unpacked(arrays["lexicon.names"]))}
        self._unknown = float(arrays["lexicon.unknown"][0])
        self._idf, self._lengths, self._totals, self._texts, self._starts = (
            arrays[f"lexicon.{name}"] for name in _ARRAYS
        )
        stems, pairs = len(self._names), len(self._texts)
        fits = len(self._idf) == stems and len(self._starts) == stems + 1 and len(self._totals) == len(self._lengths)
        if not fits or int(self._starts[-1]) != pairs or (pairs and int(self._texts.max()) >= len(self._lengths)):
            raise ValueError("stems that do not fit each other")
        return self

    def shared(self, texts: Sequence[str], wholes: Sequence[frozenset[str]]) -> Shared:
        """What the library's texts share with ``texts``; siblings are told by ``wholes``, the stems of the phrases that
        the texts come from.

        Overlap: harmonic mean of the idf-weighted shares of both sides in common. Siblings share a stem of ``whole``,
        and each side has one that the other lacks.
        """
        count, found = len(self._lengths), []
        for row, (text, whole) in enumerate(zip(texts, wholes, strict=True)):
            wanted = set(content_stems(text))
            total = sum(self._idf[self._names[s]] if s in self._names else self._unknown for s in sorted(wanted))
            at, common, together = self._common(wanted, whole)
            overlap = 2 * common / np.maximum(total + self._totals[at], 1e-300)
            siblings = (together > 0) & (together < len(whole)) & (together < self._lengths[at])
            found.append((row * count + at, overlap, siblings))
        if not found:
            return Shared(count, np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
        return Shared(count, *(np.concatenate(part) for part in zip(*found, strict=True)))

    def _common(self, wanted: set[str], whole: frozenset[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Texts with a stem of either, ascending; the idf they share with ``wanted``, the number with ``whole``."""
        known = sorted(self._names[stem] for stem in wanted | whole if stem in self._names)
        if not known:
            return np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64)
        names = {self._names[stem] for stem in wanted if stem in self._names}
        wholes = {self._names[stem] for stem in whole if stem in self._names}
        lists = [self._texts[self._starts[stem] : self._starts[stem + 1]] for stem in known]
        sizes = [len(one) for one in lists]
        at, places = np.unique(np.concatenate(lists), return_inverse=True)
        worth = np.repeat([self._idf[stem] if stem in names else 0.0 for stem in known], sizes)
        counts = np.repeat([float(stem in wholes) for stem in known], sizes)
        common = np.bincount(places, worth, len(at))
        return at.astype(np.int64), common, np.bincount(places, counts, len(at)).astype(np.int64)


def _holders(flat, lengths, said, owners, stems: int, count: int) -> np.ndarray:
    """(stems,) how many LoRAs have each stem in any of their texts."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    each = lengths[said]
    places = np.repeat(starts[said] - np.concatenate([[0], np.cumsum(each)[:-1]]), each) + np.arange(each.sum())
    pairs = np.unique(flat[places] * max(count, 1) + np.repeat(owners, each))
    return np.bincount(pairs // max(count, 1), minlength=stems).astype(np.float64)
