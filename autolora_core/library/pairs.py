"""Pairs of contents that are one LoRA by their weights: compared once, then stored in the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..encode.features import ModuleFeatures, size_for
from ..errors import AutoLoRAError
from ..lora.file import LoraFile
from . import duplicates
from .duplicates import Pair
from .locks import writing
from .store import Store, now

Known = dict[tuple[str, str], Pair]


def known_pairs(store: Store) -> Known:
    """Every pair that was ever compared, by its two hashes."""
    rows = store.db.execute("SELECT hash_a, hash_b, cosine, ratio, common, only_a, only_b FROM pairs")
    return {(row[0], row[1]): Pair(*row) for row in rows}


def near_hashes(store: Store, mine: set[str]) -> list[tuple[str, str]]:
    """The stored pairs of near-duplicates among the contents ``mine``; no file is opened."""
    known = known_pairs(store)
    return sorted(key for key, pair in known.items() if duplicates.is_near(pair) and mine.issuperset(key))


def compare_family(
    store: Store,
    family: str,
    paths: Mapping[str, str],
    features: Callable[[], dict[str, ModuleFeatures]],
    wait: float,
    tick: Callable[[int, int], None],
) -> list[Pair]:
    """The near-duplicates among the contents of one family, ``paths`` by hash; what is new is stored.

    ``features()`` reads their sketches, and is called only when files have come or gone since the last comparison.
    ``tick(done, total)`` may raise to interrupt: what was compared by then is stored. ``wait``: seconds for the lock.
    """
    known = known_pairs(store)
    files = duplicates.fingerprint(family, paths)
    if store.get(f"compared:{family}") == files:
        near = [pair for key, pair in known.items() if duplicates.is_near(pair) and paths.keys() >= set(key)]
        return sorted(near, key=duplicates.order)
    found, unread = [], []

    def load(digest: str):
        try:
            return list(LoraFile.open(paths[digest]).updates())
        except AutoLoRAError:
            unread.append(digest)  # not readable just now: compared at the next call
            return None

    complete = False
    try:
        for pair in duplicates.near_pairs(features(), size_for(family), load, known, tick):
            found.append(pair)
        complete = not unread
    finally:
        new = [pair for pair in found if (pair.hash_a, pair.hash_b) not in known]
        _store(store, new, {f"compared:{family}": files} if complete else {}, wait)
    return sorted(filter(duplicates.is_near, found), key=duplicates.order)


def _store(store: Store, pairs: list[Pair], notes: Mapping[str, str], wait: float) -> None:
    rows = [(p.hash_a, p.hash_b, p.cosine, p.ratio, p.common, p.only_a, p.only_b, now()) for p in pairs]
    if (not rows and not notes) or store.read_only:
        return
    with writing(store, wait), store.transaction() as db:
        db.executemany("INSERT OR REPLACE INTO pairs VALUES (?,?,?,?,?,?,?,?)", rows)
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", notes.items())
        if rows:
            store.bump()
