"""Text vectors on disk: a small cache that may be deleted at any time."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import closing

log = logging.getLogger(__name__)
_TABLE = "CREATE TABLE IF NOT EXISTS texts (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"


class TextStore(MutableMapping[str, bytes]):
    """Mapping from text to bytes, kept in a SQLite file under the SHA-256 of the text.

    The file is read once, at the first question. What cannot be read or written (read-only folder, damaged file) is
    only not remembered: a warning, once. ``len`` and iteration cover what is known by hash.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._held: dict[bytes, bytes] | None = None
        self._broken = False

    def __getitem__(self, text: str) -> bytes:
        return self._all()[_key(text)]

    def __setitem__(self, text: str, vector: bytes) -> None:
        self.update({text: vector})

    def update(self, new: dict[str, bytes]) -> None:  # type: ignore[override]
        """Add many texts in one transaction."""
        rows = [(_key(text), vector) for text, vector in new.items()]
        self._all().update(rows)
        self._run("INSERT OR REPLACE INTO texts VALUES (?, ?)", rows)

    def __delitem__(self, text: str) -> None:
        del self._all()[_key(text)]
        self._run("DELETE FROM texts WHERE key = ?", [(_key(text),)])

    def __iter__(self) -> Iterator[bytes]:  # type: ignore[override]
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[bytes, bytes]:
        if self._held is None:
            self._held = dict(self._run("SELECT key, vector FROM texts"))
        return self._held

    def _run(self, statement: str, rows: Iterable[tuple] = ()) -> list[tuple]:
        if self._broken:
            return []
        try:
            with closing(sqlite3.connect(self.path, timeout=5)) as db, db:
                db.execute(_TABLE)
                return db.executemany(statement, rows).fetchall() if rows else db.execute(statement).fetchall()
        except sqlite3.Error as error:
            self._broken = True
            log.warning("%s cannot be used (%s); texts are encoded again each session", self.path, error)
            return []


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
