"""A library's files as the panel lists them, in memory: found by what their words contain, page by page.

A hundred thousand rows are read in two seconds and searched in some hundredths of one, so everything is made once for
each state of the library and kept.
"""

from __future__ import annotations

import os
import threading
import time
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..library.entries import Entry
from ..library.index import Library
from ..previews.shelf import FOLDER, SUFFIXES
from ..retrieve.names import Names, last

MAX_TERMS = 12
MAX_SHOWN = 300  # letters of one text of a row
MAX_DESCRIPTION = 600
HELD_SEARCHES = 16
HELD = 2
# While files are being read in the background the library changes at every commit. A list that took a second to make
# is shown for this many times as long before it is made again.
STALE_FOR = 5.0
UNUSABLE = ("not_a_lora", "all_zero", "control")


@dataclass(frozen=True)
class Found:
    """Places of rows (n,), ascending unless they are ranked, and how many there would be of each family."""

    rows: np.ndarray
    families: dict[str, int]


@dataclass
class Catalogue:
    """``entries``: files there now and not hidden by others of their name, then those that are gone; by name."""

    generation: int
    entries: Sequence[Entry]
    folder: str = ""
    took: float = 0.0
    made: float = field(default_factory=time.monotonic)
    _drawn: tuple[int, frozenset[str]] = (0, frozenset())
    kept: dict = field(default_factory=dict)  # what else was worked out of this state
    _searches: OrderedDict = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def words(self) -> list[str]:
        """What a search looks through, an entry each."""
        return [_comparable("\n".join(_said(entry))) for entry in self.entries]

    @cached_property
    def by_hash(self) -> dict[str, list[int]]:
        """Content → places of its files; files that were never read are in none."""
        found: dict[str, list[int]] = {}
        for at, entry in enumerate(self.entries):
            if entry.hash:
                found.setdefault(entry.hash, []).append(at)
        return found

    @cached_property
    def _namesakes(self) -> dict[str, list[Entry]]:
        """Last part of a name, whatever the case → files there now, where several have it."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            if not entry.missing:
                found.setdefault(last(entry.name), []).append(entry)
        return {name: entries for name, entries in found.items() if len(entries) > 1}

    def _beside(self, entry: Entry) -> list[str]:
        """Other files that a line in pinned may mean: what the page has to know to pin this one."""
        near = self._namesakes.get(last(entry.name), ())
        own = Names(other.name for other in near if other.family in (entry.family, "unknown"))
        return Names(other.name for other in near).beside(entry.name, own)

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Names of the base families, the largest first."""
        counts = Counter(entry.family for entry in self.entries)
        return tuple(sorted(counts, key=lambda name: (-counts[name], name)))

    @cached_property
    def _codes(self) -> np.ndarray:
        number = {name: at for at, name in enumerate(self.families)}
        return np.array([number[entry.family] for entry in self.entries], np.int32)

    def problems(self, reasons: Collection[str] = ()) -> np.ndarray:
        """Files that cannot be used first, then those of which there is something to say, then those that are gone.
        ``reasons``: names of files of which there is something to say that their entry does not know."""
        ranks = [_rank(entry, entry.name in reasons) for entry in self.entries]
        rows = [at for at, rank in enumerate(ranks) if rank < 3]
        return np.array(sorted(rows, key=lambda at: (ranks[at], at)), np.int64)

    def drawn(self) -> frozenset[str]:
        """Contents that a sample was drawn for, in the index folder; listed again when that has changed."""
        folder = os.path.join(self.folder, FOLDER)
        try:
            state = os.stat(folder).st_mtime_ns
            if self._drawn[0] != state:
                names = (os.path.splitext(name) for name in os.listdir(folder))
                self._drawn = state, frozenset(name for name, end in names if end in SUFFIXES)
        except OSError:
            return frozenset()
        return self._drawn[1]

    def select(self, query: str, family: str = "", kind: str = "", among: np.ndarray | None = None) -> Found:
        """The rows whose words contain every word of ``query``, of one family and kind where these are given."""
        key = None if among is not None else (query, family, kind)
        with self._lock:
            if key in self._searches:
                self._searches.move_to_end(key)
                return self._searches[key]
        rows = self._there if among is None else among
        for term in _comparable(query).split()[:MAX_TERMS]:
            rows = np.array([at for at in rows.tolist() if term in self.words[at]], np.int64)
        if kind:
            rows = np.array([at for at in rows.tolist() if self.entries[at].kind == kind], np.int64)
        found = self.of_family(rows, family)
        if key is not None:
            with self._lock:
                self._searches[key] = found
                while len(self._searches) > HELD_SEARCHES:
                    self._searches.popitem(last=False)
        return found

    @cached_property
    def _there(self) -> np.ndarray:
        return np.array([at for at, entry in enumerate(self.entries) if not entry.missing], np.int64)

    @property
    def none(self) -> Found:
        """Nothing found."""
        return Found(np.zeros(0, np.int64), {})

    def of_family(self, rows: np.ndarray, family: str) -> Found:
        """``rows`` of one family (of all when empty), and how many there are of each."""
        codes = self._codes[rows]
        counts = np.bincount(codes, minlength=len(self.families)).tolist()
        families = {name: count for name, count in zip(self.families, counts, strict=True) if count}
        if family:
            rows = rows[codes == self.families.index(family)] if family in self.families else rows[:0]
        return Found(rows, families)

    def rows(self, places: Iterable[int]) -> list[dict]:
        """What is told of these files; no path."""
        drawn = self.drawn()
        return [self._row(self.entries[at], drawn) for at in places]

    def _row(self, entry: Entry, drawn: frozenset[str]) -> dict:
        text = entry.text
        return {
            "name": entry.name, "hash": entry.hash, "autov2": entry.autov2, "family": entry.family,
            "variant": _cut(entry.variant), "kind": entry.kind, "rank": entry.rank, "size": entry.size,
            "title": _cut(text.title), "tags": [_cut(tag) for tag in text.tags[:12]],
            "triggers": [_cut(trigger) for trigger in text.triggers[:8]], "problems": self._problems(entry),
            "base_model": _cut(entry.base_model), "preview": bool(entry.preview) or entry.hash in drawn,
            "beside": self._beside(entry), "by_header": entry.by_header, "missing": entry.missing,
            "description": text.description[:MAX_DESCRIPTION],
        }  # fmt: skip

    @staticmethod
    def _problems(entry: Entry) -> list[str]:
        gone = ["The file was not there at the last scan."] if entry.missing else []
        return [*gone, *(_cut(problem) for problem in entry.problems[:4])]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _rank(entry: Entry, more: bool) -> int:
    if entry.missing:
        return 2
    if not entry.hash or entry.kind in UNUSABLE:
        return 0
    return 1 if entry.problems or more else 3


def _said(entry: Entry) -> list[str]:
    text = entry.text
    return [entry.name, text.title, *text.tags, *text.triggers, entry.family, entry.variant, entry.base_model,
            text.description[:MAX_DESCRIPTION], entry.hash[:10]]  # fmt: skip


def _comparable(text: str) -> str:
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()


_held: OrderedDict[str, Catalogue] = OrderedDict()
_held_lock = threading.Lock()
_making: dict[str, threading.Lock] = {}


def catalogue_of(library: Library) -> Catalogue:
    """The list of a library's view, kept in memory; made again when the library has changed."""
    key = f"{library.folder}\n{library.scope.to_json() if library.scope else ''}"
    with _held_lock:
        making = _making.setdefault(key, threading.Lock())
    with making:  # two who ask at once: one makes it
        held = _held.get(key)
        if held is not None and _is_fresh(held, library.generation):
            return held
        began = time.monotonic()
        generation = library.generation
        entries = library.entries(include_missing=True)
        found = Catalogue(generation, sorted(entries, key=lambda entry: entry.missing), str(library.folder))
        found.words, found.by_hash  # noqa: B018 - made now, in this thread, not at the first search
        found.took = time.monotonic() - began
        with _held_lock:
            _held[key] = found
            _held.move_to_end(key)
            while len(_held) > HELD:
                _held.popitem(last=False)
        return found


def _is_fresh(held: Catalogue, generation: int) -> bool:
    return held.generation == generation or time.monotonic() - held.made < STALE_FOR * held.took
