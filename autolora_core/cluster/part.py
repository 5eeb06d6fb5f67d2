"""What a shard's answer holds, read whole before anything of it is merged: what is wrong with it is no fault of the
library's own file."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LibraryError
from ..library.store import SCHEMA_VERSION
from ..portable import remove
from .worker import answer

# What a shard says of contents, in the order that they are merged; its places are rewritten to the driver's own.
CONTENT_TABLES = ("layouts", "contents", "features", "responses")
FIX = "run this again: what came before is kept"


@dataclass(frozen=True)
class Place:
    """One file's row, as the worker wrote it; ``text`` and ``problems`` are JSON, ``preview`` is the worker's path."""

    hash: str | None
    text: str
    base_model: str
    autov3: str
    preview: str
    problems: str


@dataclass(frozen=True)
class Part:
    """``tables``: rows by table. ``contents``: ``(hash, kind, family)``. ``places`` by (root, name)."""

    head: dict[str, Any]
    tables: dict[str, list[tuple]]
    contents: list[tuple[str, str, str]]
    places: dict[tuple[str, str], Place]

    def ids(self, table: str) -> set[tuple[str, str]]:
        """``(content, id)`` of every row of ``features`` or ``responses``."""
        return {row[:2] for row in self.tables[table]}


def read_part(data: bytes, folder: Path) -> Part:
    """``data`` as :func:`.worker.read_shard` made it; ``folder`` is for a temporary file. Raises :class:`LibraryError`
    when it is something else."""
    try:
        head, rows = answer(data)
    except ValueError as error:
        raise LibraryError(f"a worker sent what is no answer ({error})", fix=FIX) from error
    handle, path = tempfile.mkstemp(dir=folder, prefix="shard-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(rows)
        with closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            return _read(db, head)
    except sqlite3.Error as error:
        raise LibraryError(f"a worker sent what is no library ({error})", fix=FIX) from error
    finally:
        remove(path)


def _read(db: sqlite3.Connection, head: dict[str, Any]) -> Part:
    db.execute("PRAGMA trusted_schema=OFF")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise LibraryError(f"a worker sent a library of format {version}, not {SCHEMA_VERSION}", fix=FIX)
    places = {}
    for root, name, *row in db.execute(
        "SELECT root, name, hash, text, base_model, autov3, preview, problems FROM files"
    ):
        row[4] = os.fsdecode(row[4])
        places[os.fsdecode(root), os.fsdecode(name)] = Place(*row)
    tables = {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in CONTENT_TABLES}
    return Part(head, tables, db.execute("SELECT hash, kind, family FROM contents").fetchall(), places)
