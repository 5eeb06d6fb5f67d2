"""A SQLite file that is only a cache: whatever is wrong with it, it is begun anew, or done without."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from .trouble import is_damage, open_to_read

log = logging.getLogger(__name__)


class CacheFile:
    """``db`` is open, to be read only unless ``writable``, or None; where it cannot be written ``instead`` was logged.

    ``schema``: the statements that make its tables. Readers and writers of several processes may share the file.
    """

    def __init__(self, path: Path, schema: Iterable[str], instead: str):
        self.path, self._schema = path, tuple(schema)
        self.db: sqlite3.Connection | None = None
        self.writable = True
        try:
            self.db = self._open()
        except sqlite3.DatabaseError as error:
            # Only what is damaged is thrown away: a full disk passes, and another process may be at work in there.
            if is_damage(error):
                log.warning("%s cannot be used (%s); starting a new one", path, error)
                self._start_anew(instead)
            else:
                self.db, self.writable = open_to_read(path), False
                log.warning("%s cannot be written (%s); %s", path, error, instead)

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
        try:
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", *self._schema):
                db.execute(statement)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _start_anew(self, instead: str) -> None:
        try:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            self.db = self._open()
        except (OSError, sqlite3.Error) as error:
            self.writable = False
            log.warning("%s cannot be written (%s); %s", self.path, error, instead)

    def close(self) -> None:
        """Close the file; ``db`` is None from then on."""
        if self.db is not None:
            self.db.close()
            self.db = None


def storable(text: str) -> str:
    """SQLite takes no lone surrogates; they only come from broken names, and are told apart by their code."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
