"""Near-duplicates and versions of a whole library: every pair that is one LoRA over again, and every merge.

Pairs come from one product of the grid with itself, in blocks; only those near each other are opened. What was decided
is kept in ``versions-<sketch id>.json`` beside the library, so that a second look reads no file: a cache, by the rules
that made it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..encode.threads import one_thread
from .grid import VERSION, Grid
from .index import Library
from .linked import linked_groups
from .merges import Merge
from .relations import RULES, SAME, VERSIONS, Measured, Relation, decide, measure
from .shelf import MergeFound, Shelf, Tick, likeliest, silent
from .similar import MERGE_FROM
from .sketches import sketch_id
from .store import write_atomically

log = logging.getLogger(__name__)
# A truncation that keeps a quarter of the energy, or a part of as much: nearer files are opened.
PAIR_FROM = 0.4
NEIGHBOURS = 16
FIRSTS = 3


@dataclass(frozen=True)
class PairFound:
    """``relation.smaller`` and the strength factor are those of (a, b) in this order; hashes."""

    a: str
    b: str
    relation: Relation


@dataclass(frozen=True)
class Versions:
    """``copies``: names of identical files. ``pairs``: same LoRA, or the same training. ``groups``: hashes that hang
    together by such pairs, largest first. ``names``: hash → file name."""

    family: str
    files: int
    copies: tuple[tuple[str, ...], ...] = ()
    pairs: tuple[PairFound, ...] = ()
    merges: tuple[MergeFound, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> list[list[str]]:
        """Connected components of ``pairs``."""
        hashes = sorted({digest for pair in self.pairs for digest in (pair.a, pair.b)})
        numbers = linked_groups(hashes, ((pair.a, pair.b) for pair in self.pairs))
        home: dict[int, list[str]] = {}
        for digest, number in zip(hashes, numbers.tolist(), strict=True):
            home.setdefault(number, []).append(digest)
        return sorted(home.values(), key=lambda group: (-len(group), group))


@one_thread()
def list_versions(library: Library, family: str, tick: Tick = silent) -> Versions:
    """All versions and merges among the present files of ``family``. ``tick(done, total)`` may raise to interrupt;
    what was compared until then is kept."""
    shelf = Shelf(library, family, tick)
    path = library.folder / f"versions-{sketch_id(family)}.json"
    kept = _Kept(path)
    near = list(near_pairs(shelf.grid, min(PAIR_FROM, MERGE_FROM)))
    try:
        pairs = _pairs(shelf, kept, near, tick)
        merges = _merges(shelf, kept, near, pairs, tick)
    finally:
        kept.write()
    names = {digest: group[0].name for digest, group in shelf.entries.items()}
    copies = tuple(tuple(e.name for e in group) for group in shelf.entries.values() if len(group) > 1)
    merged = _merged_pairs(merges, pairs)
    found = [p for p in pairs if p.relation.kind in VERSIONS and frozenset((p.a, p.b)) not in merged]
    found.sort(key=lambda p: (VERSIONS.index(p.relation.kind), -abs(p.relation.measured.cosine), p.a, p.b))
    notes = tuple(f"{names.get(d, d)} could not be read: {why}" for d, why in shelf.unread.items())
    return Versions(family, len(shelf.grid.hashes), copies, tuple(found), merges, names, notes)


def near_pairs(grid: Grid, least: float) -> Iterator[tuple[str, str, float]]:
    """``(hash, hash, estimated cosine)`` of at least ``least`` in size, at most :data:`NEIGHBOURS` a file, smaller hash
    first, in sorted order, each pair once."""
    norms = np.maximum(np.linalg.norm(grid.rows, axis=1, keepdims=True), 1e-20)
    unit = grid.rows / norms
    for start in range(0, len(grid.hashes), 256):
        block = unit[start : start + 256] @ unit.T
        for row, scores in enumerate(block, start):
            scores[: row + 1] = 0
            alike = np.flatnonzero(np.abs(scores) >= least)
            for other in sorted(alike[np.argsort(-np.abs(scores[alike]), kind="stable")][:NEIGHBOURS]):
                yield grid.hashes[row], grid.hashes[other], float(scores[other])


def _pairs(shelf: Shelf, kept: _Kept, near: list[tuple[str, str, float]], tick: Tick) -> list[PairFound]:
    found = []
    wanted = [(a, b) for a, b, score in near if abs(score) >= PAIR_FROM]
    for done, (a, b) in enumerate(wanted):
        tick(done, 2 * len(wanted))
        measured = kept.pair(a, b)
        if measured is None:
            one, other = shelf.weights(a), shelf.weights(b)
            if one is None or other is None:
                continue
            measured = measure(one, other)
            kept.keep_pair(a, b, measured)
        found.append(PairFound(a, b, decide(measured)))
    return found


def _merges(
    shelf: Shelf, kept: _Kept, near: list[tuple[str, str, float]], pairs: list[PairFound], tick: Tick
) -> tuple[MergeFound, ...]:
    """Every file that is a sum of two others: the first part is one of its nearest that is not a copy of it."""
    same = {frozenset((p.a, p.b)) for p in pairs if p.relation.kind in SAME}
    nearest: dict[str, list[tuple[float, str]]] = {}
    for a, b, score in near:
        if frozenset((a, b)) not in same:
            nearest.setdefault(a, []).append((-abs(score), b))
            nearest.setdefault(b, []).append((-abs(score), a))
    found = []
    for done, whole in enumerate(sorted(nearest)):
        tick(len(nearest) + done, 2 * len(nearest))
        firsts = shelf.directions((first for _, first in sorted(nearest[whole])), FIRSTS)
        seconds = [shelf.seconds(whole, group) for group in firsts]
        if not any(seconds):
            continue
        key = f"{whole} {list(zip(firsts, seconds, strict=True))}"
        if not kept.has_merges(key):
            kept.keep_merges(key, list(shelf.merges(whole, firsts)))
        found += kept.merges(key)
    return likeliest(found)


def _merged_pairs(merges: tuple[MergeFound, ...], pairs: list[PairFound]) -> set[frozenset[str]]:
    """Merges with their parts and with copies of these: that is no version, however near."""
    copies: dict[str, set[str]] = {}
    for pair in pairs:
        if pair.relation.kind in SAME:
            copies.setdefault(pair.a, set()).add(pair.b)
            copies.setdefault(pair.b, set()).add(pair.a)
    made = {(one.whole, part) for one in merges for part in (one.first, one.second)}
    return {
        frozenset((whole, part))
        for one, other in made
        for whole in {one} | copies.get(one, set())
        for part in {other} | copies.get(other, set())
    }


class _Kept:
    """What was measured before, on disk. Anything wrong with the file, or other rules: it starts empty."""

    def __init__(self, path: Path):
        self.path, self._pairs, self._merges, self._new = path, {}, {}, False
        try:
            said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if said.get("rules") == self._rules():
                self._pairs, self._merges = dict(said["pairs"]), dict(said["merges"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be used (%s); comparing again", path, error)

    def _rules(self) -> str:
        return f"{RULES} {VERSION}"

    def pair(self, a: str, b: str) -> Measured | None:
        said = self._pairs.get(f"{a} {b}")
        return Measured(**{**said, "factors": tuple(said["factors"])}) if said else None

    def keep_pair(self, a: str, b: str, measured: Measured) -> None:
        self._pairs[f"{a} {b}"], self._new = asdict(measured), True

    def has_merges(self, key: str) -> bool:
        return key in self._merges

    def merges(self, key: str) -> list[MergeFound]:
        return [
            MergeFound(*said[:3], Merge(tuple(said[4]), *said[5:7], tuple(said[7]), *said[8:]), said[3])
            for said in self._merges[key]
        ]

    def keep_merges(self, key: str, found: list[MergeFound]) -> None:
        rows = [[one.whole, one.first, one.second, one.parts_alike, *asdict(one.merge).values()] for one in found]
        self._merges[key], self._new = rows, True

    def write(self) -> None:
        if not self._new:
            return
        said = {"rules": self._rules(), "pairs": self._pairs, "merges": self._merges}
        try:
            write_atomically(self.path, json.dumps(said).encode())
        except OSError as error:
            log.warning("%s could not be written (%s); files are compared again next time", self.path, error)
