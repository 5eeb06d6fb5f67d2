"""What a scan tells about places once it has seen all of them: which files are gone, moved, or hidden by others."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

# The last row of the files table, by number, when a scan last came to its end.
SETTLED = "settled"


class Known(NamedTuple):
    """What the database says about one place and its content."""

    id: int
    size: int
    mtime_ns: int
    hash: str | None
    sidecars: str
    missing: bool
    problems: str
    reader: int | None
    kind: str | None
    family: str | None
    content_problems: str | None


def known_places(db: sqlite3.Connection) -> dict[tuple[str, str], Known]:
    """(root, name) → what the database says of it, of every place."""
    rows = db.execute(
        "SELECT root, name, id, f.size, mtime_ns, f.hash, sidecars, missing, f.problems, reader, kind, family,"
        " c.problems FROM files f LEFT JOIN contents c ON c.hash = f.hash"
    )
    roots, make = {}, Known._make
    coding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # os.fsdecode, at a tenth of the cost
    known = {}
    for row in rows:
        root = roots.get(row[0]) or roots.setdefault(row[0], os.fsdecode(row[0]))
        known[root, row[1].decode(coding, errors)] = make(row[2:])
    return known


def mark_missing(db: sqlite3.Connection, rows: Iterable[int], changed: Callable[[], None]) -> None:
    """Mark file rows (ids) as not there now; they stay, and what is known of their contents stays."""
    for row_id in rows:
        db.execute("UPDATE files SET missing = 1 WHERE id = ?", (row_id,))
        changed()


def follow_moves(db: sqlite3.Connection, new_places: Iterable[tuple[int, str]], offline: Sequence[str]) -> int:
    """A new place (row id, content) whose content went missing elsewhere under a root that is online is a move: the
    old row goes. Returns how many there were.

    New are also the places that a scan wrote which was stopped or killed before it came here; they are not counted.
    """
    roots, new = [os.fsencode(root) for root in offline], list(new_places)
    earlier = _new_before(db, {row_id for row_id, _ in new})
    marks, moved, before = ",".join("?" * len(roots)), 0, 0
    for number, digest in enumerate([*(digest for _, digest in new), *earlier]):
        old = db.execute(
            f"SELECT id FROM files WHERE hash = ? AND missing = 1 AND root NOT IN ({marks}) ORDER BY id LIMIT 1",
            (digest, *roots),
        ).fetchone()
        if old is not None:
            db.execute("DELETE FROM files WHERE id = ?", old)
            moved, before = moved + (number < len(new)), before + (number >= len(new))
    if before:
        db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'generation'")
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM files").fetchone()
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (SETTLED, str(last)))
    return moved


def _new_before(db: sqlite3.Connection, now: set[int]) -> list[str]:
    """Contents of the places written since the last whole scan but not ``now``, of those that are missing elsewhere."""
    settled = db.execute("SELECT value FROM meta WHERE key = ?", (SETTLED,)).fetchone()
    if settled is None:
        return []  # a library of an older version: its first whole scan says from where on places are new
    rows = db.execute(
        "SELECT id, hash FROM files WHERE id > ? AND missing = 0 AND hash IN"
        " (SELECT hash FROM files WHERE missing = 1) ORDER BY id",
        (int(settled[0]),),
    )
    return [digest for row_id, digest in rows if row_id not in now]


def forget_unhashed(db: sqlite3.Connection, offline: Sequence[str], changed: Callable[[], None]) -> None:
    """Of files that were never hashed nothing is worth keeping once they are gone; nor their ids once they are read."""
    marks = ",".join("?" * len(offline))
    where = f"missing = 1 AND hash >= '~' AND root NOT IN ({marks})"
    gone = db.execute(f"DELETE FROM files WHERE {where}", [os.fsencode(root) for root in offline]).rowcount
    gone += db.execute("DELETE FROM contents WHERE hash >= '~' AND hash NOT IN"
                       " (SELECT hash FROM files WHERE hash >= '~')").rowcount  # fmt: skip
    if gone > 0:
        changed()


def mark_shadowed(db: sqlite3.Connection, roots: Sequence[str], changed: Callable[[], None]) -> None:
    """ComfyUI finds a name in the first root that has it; the same name in a later root cannot be reached."""
    order = {os.fsencode(root): rank for rank, root in enumerate(roots)}
    rows = db.execute(
        "SELECT id, root, name, shadowed FROM files WHERE missing = 0 AND (shadowed = 1 OR name IN"
        " (SELECT name FROM files WHERE missing = 0 GROUP BY name HAVING count(*) > 1))"
    ).fetchall()
    first: dict[bytes, int] = {}
    for _, root, name, _ in rows:
        if root in order:
            first[name] = min(first.get(name, len(order)), order[root])
    for row_id, root, name, shadowed in rows:
        hidden = root in order and order[root] > first[name]
        if root in order and hidden != bool(shadowed):
            db.execute("UPDATE files SET shadowed = ? WHERE id = ?", (int(hidden), row_id))
            changed()
