"""Whose weights a LoRA's are nearest to, among the LoRAs that carry words: what a pick without words can be judged by.

Similarity is the cosine ⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖ ‖ΔW_b‖), estimated from the library's grid (:mod:`..library.grid`), so
it is there without any encoder and is evidence apart from one: an encoder's vectors would repeat what it believes.

How near is near differs from library to library and from LoRA to LoRA: filters of the whole picture lie near each
other, and so do the files of one trainer. A neighbour is named only when it stands out from what is usual for *both*::

    z_a = (cosine − median of a's cosines with all others) / max(1.4826 · median absolute deviation, LEAST_DEVIATION)

and likewise z_b, both at least ``STANDS_OUT``. Looking from both sides keeps out hubs, LoRAs that are near to
everything (as CSLS does for word vectors: Conneau et al. 2018, arXiv 1710.04087). Of the demo library's 113 LoRAs
13 pairs show one thing; 11 pairs stand out, 10 of them among these (from 5 on it would be 14 and 10). In 1,800
libraries of 4 to 40 files drawn from it, 447 of the pairs that stand out show one thing and 23 do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ..library.grid import Grid
from .sayings import Sayings
from .selection import Neighbour
from .view import EntryLike

MOST = 3
STANDS_OUT = 6.0
LEAST_DEVIATION = 0.05  # a few files may happen to be equally far away; and estimates are off by 0.03 to 0.06
# Neighbours in line to be looked at from their side: those that are near to everything do not take all the places.
IN_LINE = 16
# What says most of a LoRA's subject comes first; a trigger word may be made up.
_FIELDS = ("title", "tags", "description", "tag", "trigger")


class Neighbourhood:
    """The weights and words of one family's LoRAs, ``entries`` as the scorer has them."""

    def __init__(self, entries: Sequence[EntryLike], sayings: Sayings, grid: Grid):
        self.entries, self.sayings, self.grid = entries, sayings, grid
        self._named: dict[str, list[int]] = {}
        for i in np.flatnonzero(sayings.speaking).tolist():
            self._named.setdefault(entries[i].hash, []).append(i)
        self._worded = np.array([digest in self._named for digest in grid.hashes], bool)

    @cached_property
    def _norms(self) -> np.ndarray:
        return np.maximum(np.linalg.norm(self.grid.rows, axis=1), 1e-20)

    def nearest(self, lora: int) -> tuple[Neighbour, ...]:
        """Up to :data:`MOST` LoRAs with words that stand out as near to entry ``lora``, nearest first.

        Files of the very same content come first, whatever the rest of the library is like.
        """
        digest = self.entries[lora].hash
        found = [self._neighbour(i, 1.0) for i in self._named.get(digest, ()) if i != lora]
        if digest in self.grid.places:
            for row, cosine in self._standing_out(self.grid.places[digest]):
                found += [self._neighbour(i, cosine) for i in self._named[self.grid.hashes[row]]]
        return _different(found)[:MOST]

    def _neighbour(self, i: int, cosine: float) -> Neighbour:
        return Neighbour(self.entries[i].name, self._words(i), round(min(cosine, 1.0), 3))

    def _words(self, lora: int) -> str:
        """What says most of a LoRA."""
        said = self.sayings
        phrases = [said.phrase(at) for at in range(said.starts[lora], said.starts[lora + 1])]
        return min(phrases, key=lambda phrase: _FIELDS.index(phrase.field)).text

    def _standing_out(self, row: int) -> list[tuple[int, float]]:
        """``(row, cosine)`` of the contents with words that are near to ``row``, seen from both sides."""
        mine = self._cosines([row])[0]
        near = np.argsort(-mine, kind="stable")  # ties by hash: rows are in that order
        line = near[self._worded[near] & (near != row)][:IN_LINE].tolist()
        line = [i for i, z in zip(line, _z(mine, row)[line], strict=True) if z >= STANDS_OUT]
        if not line:
            return []
        theirs = self._cosines(line)
        back = [_z(cosines, i)[row] for i, cosines in zip(line, theirs, strict=True)]
        return [(i, float(mine[i])) for i, z in zip(line, back, strict=True) if z >= STANDS_OUT]

    def _cosines(self, rows: Sequence[int]) -> np.ndarray:
        """(len(rows), n) cosines with all contents."""
        return self.grid.rows[rows] @ self.grid.rows.T / np.outer(self._norms[rows], self._norms)


def _z(cosines: np.ndarray, own: int) -> np.ndarray:
    """(n,) how far each cosine lies from what is usual, ``own`` left out of what is usual."""
    others = np.delete(cosines, own)
    if not len(others):
        return np.zeros_like(cosines)
    middle = np.median(others)
    deviation = 1.4826 * np.median(np.abs(others - middle))
    return (cosines - middle) / max(float(deviation), LEAST_DEVIATION)


def _different(found: Sequence[Neighbour]) -> tuple[Neighbour, ...]:
    """The nearest of those that say the same."""
    first: dict[str, Neighbour] = {}
    for neighbour in found:
        first.setdefault(neighbour.words.casefold(), neighbour)
    return tuple(first.values())
