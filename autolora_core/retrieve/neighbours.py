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

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import numpy as np

from ..encode.threads import product
from ..library.grid import VERSION, Grid
from ..library.sketches import sketch_id
from ..library.table import Table
from .near_lists import SPARE, NearLists, shortened
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
# Lists are kept of libraries with so many rows; fewer are looked through in a millisecond. They go down to so many
# deviations, so that a file more or less leaves them useful, and so many pairs of rows are compared at a time: ten
# minutes of one processor. What is left is worked out the next time.
LISTED_FROM, LISTED_DOWN_TO, MOST_PAIRS, LISTED_BLOCK = 8192, 4.0, 6e10, 64
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
    """The weights and words of one family's LoRAs, ``entries`` as the scorer has them; ``kept``: where
    :meth:`keep_lists` puts what it works out."""

    def __init__(self, entries: Sequence[EntryLike], sayings: Sayings, grid: Grid, kept: Path | None = None):
        self.entries, self.sayings, self.grid, self._kept = entries, sayings, grid, kept
        speaking = {entries[i].hash for i in np.flatnonzero(sayings.speaking).tolist()}
        self._worded = np.array([digest in speaking for digest in grid.hashes], bool)
        self._known: dict[int, tuple[Neighbour, ...]] = {}
        self._usually: dict[int, tuple[float, float]] = {}

    @cached_property
    def _scale(self) -> np.ndarray:
        """One over the rows' lengths."""
        if self._lists is not None:
            return self._lists.scale
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
            twins = [self._neighbour(i, 1.0) for i in self._named(self.entries[lora].hash) if i != lora]
            found = near.get(places.get(lora), ())
            others = [self._neighbour(i, c) for row, c in found for i in self._named(self.grid.hashes[row])]
            self._known[lora] = _different([*twins, *others])[:MOST]
        return [self._known[lora] for lora in loras]

    def _named(self, digest: str) -> list[int]:
        """The LoRAs of a content that have words; ``entries`` are sorted by content."""
        start, stop = (side(self.entries, digest, key=attrgetter("hash")) for side in (bisect_left, bisect_right))
        return [i for i in range(start, stop) if self.sayings.starts[i + 1] > self.sayings.starts[i]]

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
        levels = [middle + STANDS_OUT * deviation for middle, deviation in self._usual(rows)]
        for row, unit, level, at in zip(rows, units, levels, self._near(rows, units, levels), strict=True):
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

    def _near(self, rows: Sequence[int], units: np.ndarray, levels: Sequence[float]) -> list[np.ndarray]:
        """Of each row: places in :attr:`_places`, ascending, among them the first in line."""
        if len(self.grid.rows) <= len(self._sample):
            return [np.arange(len(self._places))] * len(rows)
        told = [None] * len(rows)
        if self._lists is not None:
            told = [self._lists.of(row, level, IN_LINE) for row, level in zip(rows, levels, strict=True)]
        found = [None if at is None else np.searchsorted(self._places, np.sort(at)) for at in told]
        at = [i for i, one in enumerate(found) if one is None]
        for i, bound in zip(at, self._table.bounds(units[at]) if at else (), strict=True):
            found[i] = self._table.at_least(bound, units[i], levels[i])
        return found

    @cached_property
    def _lists(self) -> NearLists | None:
        """What was kept, when it is of this state of the library."""
        lists = NearLists.open(self._kept, self._kind) if self._kept is not None and self._listed else None
        return lists if lists is not None and lists.are_of(self.grid.hashes, self._worded) else None

    @property
    def _listed(self) -> bool:
        return len(self.grid.rows) >= LISTED_FROM

    @property
    def _kind(self) -> str:
        """Changes when the rows of the same files would."""
        return f"{VERSION} {sketch_id(self.grid.family)}"

    def keep_lists(self, tick: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Work out whose rows each row is nearest to, as far as that is not kept already; ``tick(done, total)`` may
        raise to interrupt: what was done is kept."""
        if self._kept is None or not self._listed or self._lists is not None and self._lists.complete:
            return
        lists = self._brought_up_to_date()
        todo = lists.unknown[: max(int(MOST_PAIRS / max(len(self._places), 1)), LISTED_BLOCK)]
        found, lowest = [], []
        try:
            for start in range(0, len(todo), LISTED_BLOCK):
                tick(start, len(todo))
                some = todo[start : start + LISTED_BLOCK]
                lists.usual[some] = self._usual(some.tolist())
                for near, low in self._all_near(some):
                    found.append(near)
                    lowest.append(low)
            self._note_usual(lists)
        finally:
            self._lists = lists.with_lists(todo[: len(found)], found, np.array(lowest))
            self._lists.save(self._kept, self._kind)

    def _note_usual(self, lists: NearLists) -> None:
        """What is usual for the rows of which ``lists`` do not know it: it changes with every file that comes."""
        rows = np.flatnonzero(np.isnan(lists.usual[:, 0]))
        for start in range(0, len(rows), SAMPLED):
            some = rows[start : start + SAMPLED]
            lists.usual[some] = self._usual(some.tolist())

    def _all_near(self, rows: np.ndarray) -> list[tuple[np.ndarray, float]]:
        """Of each row its list, and down to what it has all."""
        units, found = self._units(rows), []
        bounds = self._table.bounds(units)
        for row, unit, bound, (middle, deviation) in zip(rows, units, bounds, self._usual(rows.tolist()), strict=True):
            level = middle + LISTED_DOWN_TO * deviation
            at = self._table.at_least(bound, unit, level)
            at = at[self._places[at] != row]
            found.append(shortened(self._places[at], self._table.scores(at, unit[None])[0], level + SPARE))
        return found

    def _brought_up_to_date(self) -> NearLists:
        """What was kept of another state of the library, with what came since."""
        old = NearLists.open(self._kept, self._kind)
        if old is None:
            return NearLists.empty(self.grid.hashes, self._worded, self._scale)
        lists, new = old.carried_over(self.grid.hashes, self._worded, self._scale)
        known = np.flatnonzero(np.isfinite(lists.down_to))
        if 2 * len(new) > len(self._places):
            return NearLists.empty(self.grid.hashes, self._worded, self._scale)
        # How much nearer than it need be: not below zero for what belongs into a row's list.
        table = Table(_Some(self.grid.rows, known), self._scale[known], -lists.down_to[known])
        owners, rows = [], []
        for start in range(0, len(new), LISTED_BLOCK):
            some = new[start : start + LISTED_BLOCK]
            units = self._units(some)
            for row, unit, bound in zip(some, units, table.bounds(units), strict=True):
                at = known[table.at_least(bound, unit, 0.0)]
                owners.append(at[at != row])
                rows.append(np.full(len(owners[-1]), row))
        together = (np.concatenate([np.zeros(0, np.int64), *one]) for one in (owners, rows))
        return lists.joined(*together, self._cosines)

    def _cosines(self, row: int, others: np.ndarray) -> np.ndarray:
        """Of a row with others that have words."""
        return self._table.scores(np.searchsorted(self._places, others), self._units([row]))[0]

    def _units(self, rows: Sequence[int]) -> np.ndarray:
        """(len(rows), width) float64 rows of length one."""
        return self.grid.rows[rows].astype(np.float64) * self._scale[rows][:, None]

    def _usual(self, rows: Sequence[int]) -> list[tuple[float, float]]:
        """Middle and deviation of each row's cosines with the others, itself left out."""
        if len(self._usually) > MAX_KNOWN:
            self._usually.clear()
        new = [row for row in rows if row not in self._usually]
        if new and self._lists is not None:
            kept = self._lists.usual[new].tolist()
            self._usually |= {row: (m, d) for row, (m, d) in zip(new, kept, strict=True) if not math.isnan(m)}
            new = [row for row in new if row not in self._usually]
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
