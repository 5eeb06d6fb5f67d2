"""The files of one base family of a library: rows to search by, weights to be sure by, and what is a merge of what."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ..errors import AutoLoRAError
from ..lora.file import LoraFile
from .entries import Entry
from .grid import Grid, open_grid
from .index import Library
from .merges import Merge, find_merge
from .weights import Weights

Tick = Callable[[int, int], None]
SECOND_FROM = 0.2  # estimated cosine of a merge's second part with what the first leaves of it
MAX_SECONDS = 4
ONE_DIRECTION = 0.995  # rows nearer than this are copies of one LoRA
COPIES = 3  # of them are tried as parts of a merge
HELD = 6  # files in memory at a time


def silent(done: int, total: int) -> None:
    """A :data:`Tick` that says nothing."""


@dataclass(frozen=True)
class MergeFound:
    """The content ``whole`` is ``merge.weights[0]`` · ``first`` + ``merge.weights[1]`` · ``second`` (hashes).

    ``parts_alike``: estimated |cosine| of the two parts.
    """

    whole: str
    first: str
    second: str
    merge: Merge
    parts_alike: float = 0.0

    @property
    def order(self) -> tuple:
        """Sort key, the likeliest reading first. Of two merges of the same two LoRAs, each is also a sum of the other
        and one of the two: parts that have nothing in common are likelier."""
        lead, backwards, left = self.merge.order
        return (lead, backwards, round(self.parts_alike, 1), left, self.whole, self.first, self.second)


class Shelf:
    """The files of one base family of a library: rows to search by, and weights, read when asked for."""

    def __init__(self, library: Library, family: str, tick: Tick = silent):
        self.family = family
        self.grid: Grid = open_grid(library, family, tick)
        self.entries: dict[str, list[Entry]] = {}
        for entry in library.entries(family, include_shadowed=True):
            self.entries.setdefault(entry.hash, []).append(entry)
        self.paths = {digest: group[0].path for digest, group in self.entries.items()}
        self.unread: dict[str, str] = {}
        self.opened = 0
        self._held: dict[str, Weights] = {}

    def add(self, digest: str, path: str, row: np.ndarray) -> None:
        """A file that is not in the library takes part in the search."""
        if digest not in self.grid.places:
            at = bisect(self.grid.hashes, digest)
            hashes = (*self.grid.hashes[:at], digest, *self.grid.hashes[at:])
            self.grid = Grid(self.family, hashes, np.insert(self.grid.rows, at, row, axis=0))
        self.paths.setdefault(digest, path)

    def row(self, digest: str) -> np.ndarray:
        """(WIDTH,) float32."""
        return self.grid.rows[self.grid.places[digest]]

    def weights(self, digest: str) -> Weights | None:
        """A file's weights, the last few kept; None (with a note in ``unread``) when it cannot be read now."""
        if digest in self._held:
            self._held[digest] = self._held.pop(digest)
            return self._held[digest]
        if digest in self.unread:
            return None
        try:
            found = Weights.of(LoraFile.open(self.paths[digest]).updates())
        except AutoLoRAError as error:
            self.unread[digest] = error.message
            return None
        self.opened += 1
        while len(self._held) >= HELD:
            self._held.pop(next(iter(self._held)))
        self._held[digest] = found
        return found

    def near(self, row: np.ndarray, least: float, without: Iterable[str] = ()) -> list[tuple[str, float]]:
        """``(hash, estimated cosine)`` of the files at least ``least`` from ``row`` in size, nearest first."""
        left_out = set(without)
        scores = self.grid.cosines(row)
        order = np.argsort(-np.abs(scores), kind="stable")
        return [
            (self.grid.hashes[i], float(scores[i]))
            for i in order[: int((np.abs(scores) >= least).sum())]
            if self.grid.hashes[i] not in left_out
        ]

    def directions(self, digests: Iterable[str], count: int) -> list[list[str]]:
        """The first ``count`` different LoRAs among ``digests``, each with at most :data:`COPIES` of its copies."""
        kept: list[list[str]] = []
        for digest in digests:
            home = next((group for group in kept if abs(self.likeness(digest, group[0])) >= ONE_DIRECTION), None)
            if home is None and len(kept) < count:
                kept.append([digest])
            elif home is not None and len(home) < COPIES:
                home.append(digest)
        return kept

    def likeness(self, one: str, other: str) -> float:
        """The estimated cosine of two files."""
        a, b = self.row(one), self.row(other)
        return float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-20)

    def seconds(self, whole: str, firsts: Sequence[str]) -> list[list[str]]:
        """Files that may be what ``whole`` has beside the LoRA whose copies ``firsts`` are."""
        rest = self.grid.residual(self.row(whole), self.row(firsts[0]))
        if np.linalg.norm(rest) < 1e-3 * np.linalg.norm(self.row(whole)):
            return []
        near = self.near(rest, SECOND_FROM, (whole, *firsts))
        return self.directions((digest for digest, _ in near), MAX_SECONDS)

    def merges(self, whole: str, firsts: Iterable[Sequence[str]]) -> Iterator[MergeFound]:
        """Ways in which ``whole`` is a sum of one of ``firsts`` (copies together) and another file, nearest first."""
        for group in firsts:
            for others in self.seconds(whole, group):
                found = self._merge(whole, group, others)
                if found is not None:
                    yield found

    def _merge(self, whole: str, firsts: Sequence[str], seconds: Sequence[str]) -> MergeFound | None:
        """The copies that fit best. When the first two do not fit, others are tried only where matrices may have been
        averaged one by one: that needs the copy that has those very matrices, a sum does not."""
        found: list[MergeFound] = []
        for first, second in product(firsts, seconds):
            held = [self.weights(digest) for digest in (whole, first, second)]
            if None in held:
                continue
            merge = find_merge(*held)
            if merge is not None:
                found.append(MergeFound(whole, first, second, merge, abs(self.likeness(first, second))))
            elif not found and len({weights.rank for weights in held}) > 1:
                return None
        return min(found, key=lambda one: one.merge.left_over, default=None)


def likeliest(merges: Iterable[MergeFound]) -> tuple[MergeFound, ...]:
    """One reading of three files that are tied by a sum, and one sum for every file: the best of each."""
    kept: list[MergeFound] = []
    for one in sorted(merges, key=lambda one: one.order):
        files = {one.whole, one.first, one.second}
        if all(one.whole != other.whole and files != {other.whole, other.first, other.second} for other in kept):
            kept.append(one)
    return tuple(kept)
