"""The nearest rows of every LoRA's weights, worked out once and kept beside the library.

A question that shows six LoRAs has to look through the rows of all LoRAs with words, a kilobyte each. Whose rows those
of a LoRA are nearest to is a matter of the files alone, so Encode works it out ahead: for each row a list, best first,
that has *every* row with words whose cosine is at least ``down_to``. What is read off a list is therefore what a search
finds, as long as nothing below ``down_to`` is asked for; else the search is made.

A list stays true when files come or go: new rows with words are compared with all rows, rows that went are struck off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..library.array_file import open_arrays, save_arrays
from .lexicon import packed, unpacked

VERSION = 1
# The longest list: more than are ever looked at, so that rows may go.
MOST = 32
# A list promises this much more than it was made for, so that rounding decides nothing.
SPARE = 1e-9
_ARRAYS = {"worded": "b", "starts": "i", "rows": "i", "down_to": "f", "scale": "f", "usual": "f"}


@dataclass
class NearLists:
    """Of the contents ``hashes`` (n,), those with words ``worded`` (n,) bool: row r has ``rows[starts[r] : starts[r +
    1]]``, all that are worded, other than itself, and at least ``down_to[r]`` near; ∞ where nothing is known.

    ``scale`` (n,) is one over the rows' lengths: to work it out all rows would have to be read. ``usual`` (n, 2) is
    what is usual for each row, NaN where it is not known for this state."""

    hashes: tuple[str, ...]
    worded: np.ndarray
    starts: np.ndarray
    rows: np.ndarray
    down_to: np.ndarray
    scale: np.ndarray
    usual: np.ndarray

    @classmethod
    def empty(cls, hashes: Sequence[str], worded: np.ndarray, scale: np.ndarray) -> NearLists:
        """Nothing is known."""
        starts, unknown = np.zeros(len(hashes) + 1, np.int64), np.full(len(hashes), np.inf)
        return cls(tuple(hashes), worded, starts, np.zeros(0, np.int32), unknown, scale, _unusual(hashes))

    @classmethod
    def open(cls, path: Path, kind: str) -> NearLists | None:
        """What was kept of rows of this ``kind``, in whatever state of the library; None when there is nothing."""
        found = open_arrays(path)
        if found is None or found[0] != {"near": VERSION, "rows": kind}:
            return None
        kinds = {name: array.dtype.kind for name, array in found[1].items()}
        if kinds != {"hashes": "u", **_ARRAYS}:
            return None
        try:
            hashes = tuple(unpacked(found[1]["hashes"]))
        except ValueError:
            return None
        lists = cls(hashes, *(found[1][name] for name in _ARRAYS))
        return lists if lists._sound() else None

    def _sound(self) -> bool:
        """Whether the arrays fit each other: whoever wrote them may have had other ideas."""
        count, starts = len(self.hashes), self.starts
        shapes = self.worded.shape == self.down_to.shape == self.scale.shape == (count,) and starts.shape == (
            count + 1,
        )
        return bool(
            shapes and starts[0] == 0 and starts[-1] == len(self.rows) and (np.diff(starts) >= 0).all()
            and (not len(self.rows) or (self.rows.min() >= 0 and self.rows.max() < count))
        )  # fmt: skip

    def save(self, path: Path, kind: str) -> bool:
        """Keep it; False where nothing can be written."""
        arrays = {"hashes": packed(self.hashes), **{name: getattr(self, name) for name in _ARRAYS}}
        return save_arrays(path, {"near": VERSION, "rows": kind}, arrays)

    def are_of(self, hashes: Sequence[str], worded: np.ndarray) -> bool:
        """Whether it is of this very state of a library."""
        return self.hashes == tuple(hashes) and np.array_equal(self.worded, worded)

    def of(self, row: int, level: float, count: int) -> np.ndarray | None:
        """Rows among which are the first ``count`` that are at least ``level`` near; None when it cannot be told."""
        found = self.rows[self.starts[row] : self.starts[row + 1]]
        return found.astype(np.int64) if len(found) >= count or level >= self.down_to[row] else None

    @property
    def unknown(self) -> np.ndarray:
        """The rows that have no list yet, ascending."""
        return np.flatnonzero(np.isinf(self.down_to))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be worked out."""
        return not len(self.unknown) and not np.isnan(self.usual).any()

    def with_lists(self, rows: np.ndarray, found: Sequence[np.ndarray], down_to: np.ndarray) -> NearLists:
        """The same with other lists for ``rows`` (ascending, each once)."""
        counts = np.diff(self.starts)
        kept = np.ones(len(self.hashes), bool)
        kept[rows] = False
        old = self.rows[np.repeat(kept, counts)]
        counts[rows] = [len(one) for one in found]
        starts = np.concatenate([[0], np.cumsum(counts)])
        flat = np.empty(int(starts[-1]), np.int32)
        fresh = np.repeat(~kept, counts)
        flat[~fresh] = old
        flat[fresh] = np.concatenate([*found, np.zeros(0, np.int32)])
        lowest = self.down_to.copy()
        lowest[rows] = down_to
        return NearLists(self.hashes, self.worded, starts, flat, lowest, self.scale, self.usual)

    def carried_over(
        self, hashes: Sequence[str], worded: np.ndarray, scale: np.ndarray
    ) -> tuple[NearLists, np.ndarray]:
        """The lists of those contents that are still there, without those that went or lost their words; and the rows
        with words (ascending) that they were not compared with yet."""
        place = {digest: row for row, digest in enumerate(hashes)}
        new = np.array([place.get(digest, -1) for digest in self.hashes], np.int64)
        seen = np.zeros(len(hashes), bool)
        seen[new[(new >= 0) & self.worded]] = True
        targets = np.where(new >= 0, worded[new], False)
        owners = np.repeat(np.arange(len(self.hashes)), np.diff(self.starts))
        stays = (new[owners] >= 0) & targets[self.rows]
        owners, rows = new[owners[stays]], new[self.rows[stays]]
        order = np.argsort(owners, kind="stable")
        starts = np.searchsorted(owners[order], np.arange(len(hashes) + 1))
        usual = self.usual if self.hashes == tuple(hashes) else _unusual(hashes)
        down_to = np.full(len(hashes), np.inf)
        down_to[new[new >= 0]] = self.down_to[new >= 0]
        lists = NearLists(tuple(hashes), worded, starts, rows[order].astype(np.int32), down_to, scale, usual)
        return lists, np.flatnonzero(worded & ~seen)

    def joined(
        self, owners: np.ndarray, rows: np.ndarray, cosines: Callable[[int, np.ndarray], np.ndarray]
    ) -> NearLists:
        """With ``rows[k]`` in the list of row ``owners[k]`` for every k; ``cosines(row, others)`` says how near."""
        if not len(owners):
            return self
        order = np.argsort(owners, kind="stable")
        changed, first = np.unique(owners[order], return_index=True)
        found, lowest = [], []
        for row, more in zip(changed.tolist(), np.split(rows[order], first[1:]), strict=True):
            mine = np.concatenate([self.rows[self.starts[row] : self.starts[row + 1]], more]).astype(np.int64)
            kept, low = shortened(mine, cosines(row, mine), float(self.down_to[row]))
            found.append(kept)
            lowest.append(low)
        return self.with_lists(changed, found, np.array(lowest))


def shortened(rows: np.ndarray, cosines: np.ndarray, down_to: float) -> tuple[np.ndarray, float]:
    """At most :data:`MOST` of the nearest of ``rows``, best first, and down to which cosine none is missing."""
    order = np.lexsort((rows, -cosines))
    if len(order) > MOST:
        down_to = max(down_to, float(cosines[order[MOST]]) + SPARE)
        order = order[cosines[order] >= down_to]  # of equals all or none
    return rows[order].astype(np.int32), down_to


def _unusual(hashes: Sequence[str]) -> np.ndarray:
    """What is usual is not known."""
    return np.full((len(hashes), 2), np.nan)
