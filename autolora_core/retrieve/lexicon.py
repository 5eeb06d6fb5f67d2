"""Exact words: overlap of a phrase of the prompt with a LoRA's own words, rare words counting more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .words import content_stems


@dataclass(frozen=True)
class Phrase:
    """One thing a LoRA says of itself. ``field`` is ``title``, ``trigger``, ``tag``, ``tags`` or ``description``."""

    owner: int
    field: str
    text: str


class Lexicon:
    """Stems of all phrases with their inverse document frequency over the library's LoRAs.

    ``idf = ln(1 + (N − df + ½)/(df + ½))``, as in BM25 (Robertson and Zaragoza 2009).
    """

    def __init__(self, phrases: Sequence[Phrase], count: int):
        self.stems = [content_stems(phrase.text) for phrase in phrases]
        self.owners = [phrase.owner for phrase in phrases]
        holders: dict[str, set[int]] = {}
        self._where: dict[str, list[int]] = {}
        for i, (stems, owner) in enumerate(zip(self.stems, self.owners, strict=True)):
            for stem in set(stems):
                holders.setdefault(stem, set()).add(owner)
                self._where.setdefault(stem, []).append(i)
        self._idf = {s: math.log(1 + (count - len(who) + 0.5) / (len(who) + 0.5)) for s, who in holders.items()}
        self._unknown = math.log(1 + (count + 0.5) / 0.5)

    def idf(self, stem: str) -> float:
        """How rare a stem is; a stem no LoRA has is the rarest."""
        return self._idf.get(stem, self._unknown)

    def siblings(self, stems: frozenset[str]) -> np.ndarray:
        """(phrases,) bool: shares a stem with ``stems``, and each side has one that the other lacks."""
        found = np.zeros(len(self.stems), bool)
        for i in {i for stem in stems for i in self._where.get(stem, ())}:
            own = set(self.stems[i])
            found[i] = bool(own - stems and stems - own)
        return found

    def overlap(self, text: str) -> np.ndarray:
        """(phrases,) in [0, 1]: harmonic mean of the idf-weighted shares of ``text`` and of the phrase in common."""
        wanted = set(content_stems(text))
        scores = np.zeros(len(self.stems))
        total = sum(self.idf(stem) for stem in wanted)
        for i in {i for stem in wanted for i in self._where.get(stem, ())}:
            own = set(self.stems[i])
            common = sum(self.idf(stem) for stem in own & wanted)
            scores[i] = 2 * common / (total + sum(self.idf(stem) for stem in own))
        return scores
