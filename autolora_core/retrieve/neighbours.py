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
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..encode.threads import product
from ..library.grid import Grid
from ..library.table import Table
from .sayings import Sayings
from .selection import Neighbour
from .view import EntryLike

MOST = 3
STANDS_OUT = 6.0
LEAST_DEVIATION = 0.05  # a few files may happen to be equally far away; and estimates are off by 0.03 to 0.06
# Neighbours in line to be looked at from their side: those that are near to everything do not take all the places.
IN_LINE = 16
# What is usual is read off so many rows, taken evenly (by hash): of all in a library that has no more.
SAMPLED = 1024
BLOCK, MAX_KNOWN = 16384, 20_000
# What says most of a LoRA's subject comes first; a trigger word may be made up.
_FIELDS = ("title", "tags", "description", "tag", "trigger")


@dataclass(frozen=True)
class _Some:
    """Some of the rows, read when they are asked for: a copy would take four kilobytes each."""

    rows: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: np.ndarray | slice) -> np.ndarray:
        return self.rows[self.places[at]]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.places), self.rows.shape[1]


class Neighbourhood:
    """The weights and words of one family's LoRAs, ``entries`` as the scorer has them."""

    def __init__(self, entries: Sequence[EntryLike], sayings: Sayings, grid: Grid):
        self.entries, self.sayings, self.grid = entries, sayings, grid
        self._named: dict[str, list[int]] = {}
        for i in np.flatnonzero(sayings.speaking).tolist():
            self._named.setdefault(entries[i].hash, []).append(i)
        self._worded = np.array([digest in self._named for digest in grid.hashes], bool)
        self._known: dict[int, tuple[Neighbour, ...]] = {}
        self._usually: dict[int, tuple[float, float]] = {}

    @cached_property
    def _scale(self) -> np.ndarray:
        """One over the rows' lengths."""
        rows = self.grid.rows
        norms = np.concatenate(
            [np.linalg.norm(rows[start : start + BLOCK], axis=1) for start in range(0, len(rows), BLOCK)]
        )
        return 1 / np.maximum(norms, 1e-20).astype(np.float64)

    @cached_property
    def _places(self) -> np.ndarray:
        """The rows of contents with words, ascending: no others are looked for."""
        return np.flatnonzero(self._worded)

    @cached_property
    def _table(self) -> Table:
        """Cosines of :attr:`_places` with a row of length one."""
        return Table(_Some(self.grid.rows, self._places), self._scale[self._places])

    @cached_property
    def _sample(self) -> np.ndarray:
        """Rows that stand for all when it comes to what is usual."""
        return np.unique(np.linspace(0, len(self.grid.rows) - 1, min(len(self.grid.rows), SAMPLED)).astype(int))

    @cached_property
    def _sampled_rows(self) -> frozenset[int]:
        return frozenset(self._sample.tolist())

    @cached_property
    def _sampled(self) -> np.ndarray:
        return self._units(self._sample).astype(np.float32)

    def nearest(self, loras: Sequence[int]) -> list[tuple[Neighbour, ...]]:
        """Up to :data:`MOST` LoRAs with words that stand out as near to each of the entries ``loras``, nearest first.

        Files of the very same content come first, whatever the rest of the library is like.
        """
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        new = [lora for lora in dict.fromkeys(loras) if lora not in self._known]
        places = {lora: self.grid.places[self.entries[lora].hash] for lora in new if self._has_row(lora)}
        near = self._standing_out(sorted(set(places.values())))
        for lora in new:
            twins = [self._neighbour(i, 1.0) for i in self._named.get(self.entries[lora].hash, ()) if i != lora]
            found = near.get(places.get(lora), ())
            others = [self._neighbour(i, c) for row, c in found for i in self._named[self.grid.hashes[row]]]
            self._known[lora] = _different([*twins, *others])[:MOST]
        return [self._known[lora] for lora in loras]

    def _has_row(self, lora: int) -> bool:
        return self.entries[lora].hash in self.grid.places

    def _neighbour(self, i: int, cosine: float) -> Neighbour:
        return Neighbour(self.entries[i].name, self._words(i), round(min(cosine, 1.0), 3))

    def _words(self, lora: int) -> str:
        """What says most of a LoRA."""
        said = self.sayings
        phrases = [said.phrase(at) for at in range(said.starts[lora], said.starts[lora + 1])]
        return min(phrases, key=lambda phrase: _FIELDS.index(phrase.field)).text

    def _standing_out(self, rows: Sequence[int]) -> dict[int, list[tuple[int, float]]]:
        """Row → ``(row, cosine)`` of the contents with words that are near to it, seen from both sides."""
        if not rows:
            return {}
        units, lines = self._units(rows), {}
        bounds = self._table.bounds(units) if len(self.grid.rows) > len(self._sample) else [None] * len(rows)
        for row, unit, bound, (middle, deviation) in zip(rows, units, bounds, self._usual(rows), strict=True):
            level = middle + STANDS_OUT * deviation
            at = np.arange(len(self._places)) if bound is None else self._table.at_least(bound, unit, level)
            at = at[self._places[at] != row]
            cosines = self._table.scores(at, unit[None])[0]
            first = np.argsort(-cosines, kind="stable")[:IN_LINE]  # ties by hash: rows are in that order
            line = zip(self._places[at[first]].tolist(), cosines[first].tolist(), strict=True)
            lines[row] = [(i, c) for i, c in line if c >= level]
        others = sorted({i for line in lines.values() for i, _ in line})
        back = dict(zip(others, self._usual(others), strict=True))
        return {
            row: [(i, c) for i, c in line if c - back[i][0] >= STANDS_OUT * back[i][1]] for row, line in lines.items()
        }

    def _units(self, rows: Sequence[int]) -> np.ndarray:
        """(len(rows), width) float64 rows of length one."""
        return self.grid.rows[rows].astype(np.float64) * self._scale[rows][:, None]

    def _usual(self, rows: Sequence[int]) -> list[tuple[float, float]]:
        """Middle and deviation of each row's cosines with the others, itself left out."""
        if len(self._usually) > MAX_KNOWN:
            self._usually.clear()
        new = [row for row in rows if row not in self._usually]
        if new:
            cosines = product(self._units(new).astype(np.float32), self._sampled.T)
            inside = np.array([row in self._sampled_rows for row in new])
            found = dict(zip(np.array(new)[~inside].tolist(), _spreads(cosines[~inside]), strict=True))
            for row, mine in zip(np.array(new)[inside].tolist(), cosines[inside], strict=True):
                found |= {row: _spreads(mine[None, self._sample != row])[0]}
            self._usually |= found
        return [self._usually[row] for row in rows]


def _spreads(others: np.ndarray) -> list[tuple[float, float]]:
    """Of each row of cosines (r, n)."""
    if not others.shape[1]:
        return [(np.inf, LEAST_DEVIATION)] * len(others)
    middle = np.median(others, axis=1)
    deviation = 1.4826 * np.median(np.abs(others - middle[:, None]), axis=1).astype(np.float64)
    return list(zip(middle.tolist(), np.maximum(deviation, LEAST_DEVIATION).tolist(), strict=True))


def _different(found: Sequence[Neighbour]) -> tuple[Neighbour, ...]:
    """The nearest of those that say the same."""
    first: dict[str, Neighbour] = {}
    for neighbour in found:
        first.setdefault(neighbour.words.casefold(), neighbour)
    return tuple(first.values())
