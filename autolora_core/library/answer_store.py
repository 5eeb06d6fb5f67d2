"""The file of :mod:`.answers`: what LoRAs answered, and what a base usually reads."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .cache_file import CacheFile, storable

log = logging.getLogger(__name__)
FILE_NAME = "answers.sqlite"
# Bases, and sets of LoRAs, whose answers are kept; of ten thousand LoRAs a set takes about 16 MB.
MAX_SOURCES, MAX_TABLES = 4, 4
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS sources (id TEXT PRIMARY KEY, used REAL NOT NULL)",
    # float32 (positions, width) of a reading, of one choice of spaces
    "CREATE TABLE IF NOT EXISTS means (source TEXT NOT NULL, spaces TEXT NOT NULL, reading TEXT NOT NULL,"
    " width INTEGER NOT NULL, mean BLOB NOT NULL, PRIMARY KEY (source, spaces, reading))",
    "CREATE TABLE IF NOT EXISTS tables (id TEXT PRIMARY KEY, hashes TEXT NOT NULL, used REAL NOT NULL)",
    # one float32 a LoRA of the table
    "CREATE TABLE IF NOT EXISTS answers (source TEXT NOT NULL, files TEXT NOT NULL, text TEXT NOT NULL,"
    " answers BLOB NOT NULL, PRIMARY KEY (source, files, text))",
)


def _latest(db: sqlite3.Connection, table: str) -> float:
    """Seconds, later than any ``used`` in ``table``: with a clock that was set back what is new would go first."""
    (last,) = db.execute(f"SELECT max(used) FROM {table}").fetchone()
    return max(time.time(), (last or 0.0) + 1e-3)


class AnswerStore:
    """Reads nothing and keeps nothing when the file cannot be used."""

    def __init__(self, folder: Path):
        self.path = folder / FILE_NAME
        self._file = CacheFile(self.path, _SCHEMA, "answers are not kept")

    def read(self, source: str, files: str, hashes: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Text → (n,) float32, of those that are there: kept of these very LoRAs, or of more that were read alike."""
        db = self._file.db
        if db is None or not texts:
            return {}
        try:
            kept = db.execute("SELECT id, hashes FROM tables ORDER BY id = ? DESC, used DESC", (files,)).fetchall()
            for table, packed in kept:
                if table.partition("-")[0] != files.partition("-")[0]:
                    continue
                place = {digest: i for i, digest in enumerate(json.loads(packed))}
                if place.keys() >= set(hashes):
                    rows = np.array([place[digest] for digest in hashes], int)
                    found = self._read(source, table, len(place), texts)
                    if found:
                        return {text: own[rows] for text, own in found.items()}
        except (sqlite3.Error, ValueError) as error:
            log.warning("%s: %s; the model is asked again", self.path, error)
        return {}

    def _read(self, source: str, table: str, count: int, texts: Sequence[str]) -> dict[str, np.ndarray]:
        query = "SELECT answers FROM answers WHERE source = ? AND files = ? AND text = ?"
        found = {}
        for text in texts:
            row = self._file.db.execute(query, (source, table, storable(text))).fetchone()
            if row is not None and len(row[0]) == 4 * count:
                found[text] = np.frombuffer(row[0], "<f4")
        return found

    def write(self, source: str, files: str, hashes: Sequence[str], answers: Mapping[str, np.ndarray]) -> None:
        """``answers``: text → (n,). Sources and tables used longest ago make room."""
        rows = [(source, files, storable(text), own.astype("<f4").tobytes()) for text, own in answers.items()]

        def statements(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR REPLACE INTO answers VALUES (?,?,?,?)", rows)
            db.execute(
                "INSERT OR REPLACE INTO tables VALUES (?,?,?)", (files, json.dumps(list(hashes)), _latest(db, "tables"))
            )
            old = "SELECT id FROM tables ORDER BY used DESC LIMIT -1 OFFSET ?"
            for table, column in (("answers", "files"), ("tables", "id")):
                db.execute(f"DELETE FROM {table} WHERE {column} IN ({old})", (MAX_TABLES,))

        self._write(source, statements)

    def read_means(self, source: str, spaces: Sequence[str]) -> dict[str, np.ndarray] | None:
        """Reading → (positions, width) float32 of these spaces, None when they are not there."""
        if self._file.db is None:
            return None
        query = "SELECT reading, width, mean FROM means WHERE source = ? AND spaces = ?"
        try:
            rows = self._file.db.execute(query, (source, json.dumps(list(spaces)))).fetchall()
            return {reading: np.frombuffer(mean, "<f4").reshape(-1, width) for reading, width, mean in rows} or None
        except (sqlite3.Error, ValueError) as error:
            log.warning("%s: %s; the model is asked again", self.path, error)
            return None

    def write_means(self, source: str, spaces: Sequence[str], means: Mapping[str, np.ndarray]) -> None:
        """Keep what a base usually reads in these spaces; what was kept of others goes."""
        packed = json.dumps(list(spaces))
        rows = [(source, packed, name, mean.shape[1], mean.astype("<f4").tobytes()) for name, mean in means.items()]

        def statements(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM means WHERE source = ?", (source,))
            db.executemany("INSERT INTO means VALUES (?,?,?,?,?)", rows)

        self._write(source, statements)

    def _write(self, source: str, statements: Callable[[sqlite3.Connection], None]) -> None:
        db = self._file.db
        if db is None or not self._file.writable:
            return
        try:
            db.execute("BEGIN IMMEDIATE")
            statements(db)
            db.execute("INSERT OR REPLACE INTO sources VALUES (?,?)", (source, _latest(db, "sources")))
            old = "SELECT id FROM sources ORDER BY used DESC LIMIT -1 OFFSET ?"
            for table, column in (("answers", "source"), ("means", "source"), ("sources", "id")):
                db.execute(f"DELETE FROM {table} WHERE {column} IN ({old})", (MAX_SOURCES,))
            db.execute("COMMIT")
        except sqlite3.Error as error:
            log.warning("%s: %s; these answers are not kept", self.path, error)
            if db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file; nothing is read or kept any more."""
        self._file.close()
