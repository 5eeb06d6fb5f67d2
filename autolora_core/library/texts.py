"""Text vectors kept on disk: a mapping for :class:`~autolora_core.encode.text_cache.CachedTower`.

A file of its own beside the library, so that a reader that meets a new prompt never waits for a scan. It is a cache:
whatever is wrong with it, texts are encoded again. Keys carry the tower's id, so towers never mix.
"""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from .cache_file import CacheFile, storable

log = logging.getLogger(__name__)
FILE_NAME = "texts.sqlite"
_TABLE = "CREATE TABLE IF NOT EXISTS texts (key TEXT PRIMARY KEY, vector BLOB NOT NULL)"


def sealed(key: str, value: bytes) -> bytes:
    """The value with a checksum behind it, as the file keeps it: a vector that lost a bit would be a wrong answer."""
    return value + zlib.crc32(key.encode() + value).to_bytes(4, "little")


def unsealed(key: str, stored: object) -> bytes | None:
    """What :func:`sealed` was given; None when it is not what was written, or of a version without checksums."""
    if not isinstance(stored, bytes) or sealed(key, stored[:-4]) != stored:
        return None
    return stored[:-4]


class TextStore(MutableMapping[str, bytes]):
    """``"<tower id>\\n<text>"`` → float32 bytes. Falls back to memory when the file (``name``) cannot be used."""

    def __init__(self, folder: Path, name: str = FILE_NAME):
        self.path = folder / name
        self._memory: dict[str, bytes] = {}
        self._file = CacheFile(self.path, [_TABLE], "text vectors are kept in memory")

    def __getitem__(self, key: str) -> bytes:
        key = storable(key)
        if key not in self._memory:
            row = self._ask("SELECT vector FROM texts WHERE key = ?", (key,))
            value = None if row is None else unsealed(key, row[0])
            if value is None:
                raise KeyError(key)
            self._memory[key] = value
        return self._memory[key]

    def __setitem__(self, key: str, value: bytes) -> None:
        key = storable(key)
        self._memory[key] = value
        self._do("INSERT OR REPLACE INTO texts VALUES (?, ?)", (key, sealed(key, value)))

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._memory.pop(storable(key), None)
        self._do("DELETE FROM texts WHERE key = ?", (storable(key),))

    def _do(self, query: str, values: tuple) -> None:
        if self._file.writable:
            self._ask(query, values)

    def _ask(self, query: str, values: tuple) -> tuple | None:
        if self._file.db is None:
            return None
        try:
            return self._file.db.execute(query, values).fetchone()
        except sqlite3.Error as error:
            log.warning("%s: %s; this text vector is kept in memory only", self.path, error)
            return None

    def __iter__(self) -> Iterator[str]:
        rows = self._file.db.execute("SELECT key FROM texts ORDER BY key").fetchall() if self._file.db else []
        return iter(dict.fromkeys([row[0] for row in rows] + list(self._memory)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def close(self) -> None:
        """Close the file; the mapping goes on in memory."""
        self._file.close()
