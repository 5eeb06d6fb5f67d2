"""The library's SQLite file: schema, versions, transactions, atomic files beside it.

Names and paths are stored as the bytes the file system gave (``os.fsencode``), so names that are not UTF-8 survive.
Vectors are stored as raw little-endian float32; nothing is ever pickled.
"""

from __future__ import annotations

import datetime
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import LibraryError, LibraryVersionError
from ..portable import sync_folder, write_bytes
from .damaged import refuse_strange
from .trouble import is_of_the_disk, library_error, open_to_read

log = logging.getLogger(__name__)
DATABASE_NAME = "library.sqlite"
SCHEMA_VERSION = 3

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
-- one row per file content
CREATE TABLE contents (
    hash TEXT PRIMARY KEY, size INTEGER NOT NULL, family TEXT NOT NULL, variant TEXT NOT NULL, evidence TEXT NOT NULL,
    kind TEXT NOT NULL, partial TEXT, rank INTEGER, halves TEXT NOT NULL, layout TEXT, keys TEXT NOT NULL,
    problems TEXT NOT NULL, reader INTEGER NOT NULL, date TEXT NOT NULL);
-- module lists, shared by the many files that one trainer wrote: zlib-packed JSON
CREATE TABLE layouts (id TEXT PRIMARY KEY, modules BLOB NOT NULL);
-- one row per place, hash is NULL when the file could not be read
CREATE TABLE files (
    id INTEGER PRIMARY KEY, root BLOB NOT NULL, name BLOB NOT NULL, path BLOB NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, hash TEXT, sidecars TEXT NOT NULL, text TEXT NOT NULL, base_model TEXT NOT NULL,
    autov3 TEXT NOT NULL, preview BLOB NOT NULL, problems TEXT NOT NULL, missing INTEGER NOT NULL DEFAULT 0,
    shadowed INTEGER NOT NULL DEFAULT 0, date TEXT NOT NULL, UNIQUE (root, name));
CREATE INDEX files_hash ON files (hash);
-- sketches of one content, before any comparison: rows are float16 (modules, width), log_norms float32 (modules)
CREATE TABLE features (
    hash TEXT NOT NULL, sketch_id TEXT NOT NULL, layout TEXT NOT NULL, width INTEGER NOT NULL, rows BLOB NOT NULL,
    log_norms BLOB NOT NULL, skipped TEXT NOT NULL, problem TEXT, date TEXT NOT NULL, PRIMARY KEY (hash, sketch_id));
CREATE TABLE encoders (
    id TEXT PRIMARY KEY, family TEXT NOT NULL, kind TEXT NOT NULL, schema_id TEXT NOT NULL, tower_id TEXT NOT NULL,
    inputs TEXT NOT NULL, info TEXT NOT NULL, current INTEGER NOT NULL, date TEXT NOT NULL);
CREATE TABLE vectors (
    hash TEXT NOT NULL, encoder_id TEXT NOT NULL, schema_id TEXT NOT NULL, tower_id TEXT NOT NULL, vector BLOB NOT NULL,
    date TEXT NOT NULL, PRIMARY KEY (hash, encoder_id));
CREATE TABLE pairs (
    hash_a TEXT NOT NULL, hash_b TEXT NOT NULL, cosine REAL NOT NULL, ratio REAL NOT NULL, common INTEGER NOT NULL,
    only_a INTEGER NOT NULL, only_b INTEGER NOT NULL, date TEXT NOT NULL, PRIMARY KEY (hash_a, hash_b));
"""

# What a library of an older version lacks, by the version that brought it; a new one gets them all.
_ADDED = {
    # 2 had these in another form; whatever it held is read from the files again.
    3: """
DROP TABLE IF EXISTS responses;
-- what a content does to prompts (see responses.py): per space its name and shape, int8 rows, their float32 scale
CREATE TABLE responses (
    hash TEXT NOT NULL, response_id TEXT NOT NULL, spaces TEXT NOT NULL, rows BLOB NOT NULL, scale BLOB NOT NULL,
    problem TEXT, date TEXT NOT NULL, PRIMARY KEY (hash, response_id));
""",
}


def now() -> str:
    """The time, UTC, to the second, as every ``date`` column has it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either its old content or all of the new one, whenever the power fails."""
    write_bytes(path, data)


def sweep(folder: Path, older_than: float = 600.0) -> None:
    """Delete what a killed process left half written. Young files may be another process's, at work just now."""
    for path in folder.glob("*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > older_than:
                path.unlink()
        except OSError as error:
            log.info("%s stays: %s", path, error)


def newer(version: int, path: Path) -> LibraryVersionError:
    """What to raise for a library of a format that is not known yet."""
    return LibraryVersionError(
        f"the library has format {version}, this version reads up to {SCHEMA_VERSION}",
        path=path,
        fix="update ComfyUI-AutoLoRA, or encode into a library of another name",
    )


def _refuse_newer(path: Path) -> None:
    """Before SQLite opens the file, which may change it: the version is a number in its header."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(64)
    except OSError:
        return  # not there, or not to be read: what follows says so
    version = int.from_bytes(head[60:64], "big")
    if head.startswith(b"SQLite format 3\0") and version > SCHEMA_VERSION:
        raise newer(version, path)


class Store:
    """An open library database. Close it, or use it in a ``with`` block.

    Where nothing can be written (a read-only share, a full disk) it is opened to be read: :attr:`read_only`. Raises
    :class:`LibraryVersionError` for a library written by a newer version, which is left as it is to the byte, and
    :class:`LibraryError` when the folder or the file cannot be used.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.path = self.folder / DATABASE_NAME
        self._why_not_written: LibraryError | None = None
        _refuse_newer(self.path)
        try:
            self._create_folder()
            self.db = sqlite3.connect(self.path, timeout=30.0, isolation_level=None, check_same_thread=False)
            refuse_strange(self.db, self.path)
            self.db.execute("PRAGMA journal_mode=WAL")
            # A commit is on the disk when it returns, whatever happens to the power then.
            self.db.execute("PRAGMA synchronous=FULL")
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            self._read_only(error)

    def _create_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder.parent)

    def _read_only(self, error: Exception) -> None:
        """Open what can only be read, because of ``error``; :class:`LibraryError` where that cannot be either."""
        if hasattr(self, "db"):
            self.db.close()
        told = library_error(error, self.path)
        found = open_to_read(self.path) if is_of_the_disk(error) else None
        if found is None:
            raise told from error
        (version,) = found.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            found.close()
            raise told from error
        refuse_strange(found, self.path)
        log.warning("%s; it is only read", told)
        self.db, self._why_not_written = found, told

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written here."""
        return self._why_not_written is not None

    def require_writable(self) -> None:
        """Raise the :class:`LibraryError` that says why nothing can be written, where nothing can."""
        if self._why_not_written is not None:
            raise self._why_not_written

    def _prepare(self) -> None:
        """Create the tables in a new file, add what an old one lacks, or refuse a newer one."""
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        if version < SCHEMA_VERSION:
            with self.transaction():
                # Another process may have done it between the check and this lock.
                (version,) = self.db.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    self._run(_SCHEMA)
                    # From a number of its own: a library made anew never repeats an old one's, whatever the clock says.
                    first = str(secrets.randbits(48))
                    self.db.execute("INSERT INTO meta VALUES ('created', ?), ('generation', ?)", (now(), first))
                    self.db.execute("INSERT INTO meta VALUES ('settled', '0')")  # see places.py
                for number in sorted(number for number in _ADDED if number > version):
                    self._run(_ADDED[number])
                if version < SCHEMA_VERSION:
                    self.db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif version > SCHEMA_VERSION:
            self.db.close()
            raise newer(version, self.path)

    def _run(self, statements: str) -> None:
        for statement in filter(str.strip, statements.split(";")):
            self.db.execute(statement)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing: commit at the end of the block, roll back on any exception."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
            self.db.execute("COMMIT")
        except BaseException:
            self.roll_back()
            raise

    def roll_back(self) -> None:
        """Undo what is not committed. A full disk may have done so already, and a failing one cannot: then SQLite does
        it when the file is opened next."""
        if self.db.in_transaction:
            try:
                self.db.execute("ROLLBACK")
            except sqlite3.Error as error:
                log.warning("%s: %s", self.path, error)

    @property
    def generation(self) -> int:
        """Grows by one with every change to what the library says."""
        return int(self.db.execute("SELECT value FROM meta WHERE key='generation'").fetchone()[0])

    def get(self, key: str) -> str | None:
        """A value of the meta table."""
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def bump(self) -> None:
        """Count one change; call it inside the transaction that makes the change."""
        self.db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'generation'")

    def close(self) -> None:
        self.db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Batch:
    """Changes gathered into transactions of at most ``rows`` changes or ``seconds``, whichever is first.

    Use: :meth:`begin` before writing, :meth:`changed` after each change that leaves the rows consistent, and
    :meth:`commit` at the end, also after an exception: what was changed so far stays.
    """

    def __init__(self, store: Store, rows: int, seconds: float):
        self.store, self.rows, self.seconds = store, rows, seconds
        self._pending, self._counted, self._last = 0, False, time.monotonic()

    def begin(self) -> None:
        """Open a transaction unless one is open."""
        if not self.store.db.in_transaction:
            self.store.db.execute("BEGIN IMMEDIATE")
            self._pending, self._counted = 0, False

    def changed(self) -> None:
        """Count a change, and commit when enough has gathered."""
        self.begin()
        if not self._counted:
            self.store.bump()
            self._counted = True
        self._pending += 1
        if self._pending >= self.rows or time.monotonic() - self._last >= self.seconds:
            self.commit()

    def commit_late(self) -> None:
        """Commit what has waited long enough, although nothing more came."""
        if time.monotonic() - self._last >= self.seconds:
            self.commit()

    def commit(self) -> None:
        """Make everything so far permanent."""
        if self.store.db.in_transaction:
            try:
                self.store.db.execute("COMMIT")
            except sqlite3.Error:
                self.store.roll_back()
                raise
        self._last = time.monotonic()
