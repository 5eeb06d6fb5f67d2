"""Response factors in the database: computed once a content beside its sketch, read back as one table."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache

import numpy as np

from ..encode.factor_table import FactorTable, quantised
from ..encode.response_factors import MAX_BYTES, RESPONSE_VERSION, ROWS, ResponseFactors
from ..encode.spaces import FAMILIES
from .store import now

# Of a LoRA whose family has rules but which trains no module that a prompt reaches.
NOT_REACHED = "it changes no layer that a prompt reaches"
MAX_TABLES = 2
_tables: OrderedDict[tuple, FactorTable] = OrderedDict()
_tables_lock = threading.Lock()


@cache
def response_id(family: str) -> str:
    """Changes whenever the stored numbers of a family would."""
    return f"{RESPONSE_VERSION}-{family}-{ROWS}-{MAX_BYTES}"


def answered(db: sqlite3.Connection) -> set[tuple[str, str]]:
    """``(content, response id)`` of everything that is computed already, or known to have no response."""
    return set(db.execute("SELECT hash, response_id FROM responses"))


def has_response(family: str) -> bool:
    """Whether it is known which layers of this base a prompt reaches."""
    return family in FAMILIES


def store_response(
    db: sqlite3.Connection, digest: str, family: str, found: ResponseFactors | None, problem: str | None
) -> None:
    """Store the factors of a content, or the reason why it has none."""
    packed = {name: quantised(rows) for name, rows in found.rows.items()} if found else {}
    shapes = json.dumps([[name, *rows.shape] for name, (rows, _) in packed.items()])
    rows = b"".join(rows.tobytes() for rows, _ in packed.values())
    scale = b"".join(scale.astype("<f4").tobytes() for _, scale in packed.values())
    problem = problem if packed else problem or NOT_REACHED
    db.execute(
        "INSERT OR REPLACE INTO responses VALUES (?,?,?,?,?,?,?)",
        (digest, response_id(family), shapes, rows, scale, problem, now()),
    )


def held_responses(db: sqlite3.Connection, state: tuple[str, int], hashes: tuple[str, ...], family: str) -> FactorTable:
    """:func:`read_responses`, one table for all who ask: of ten thousand files it takes 960 MB at most.

    ``state``: folder and generation of the library. The table must not be changed.
    """
    key = (state, hashes, family)
    with _tables_lock:
        if key not in _tables:
            while len(_tables) >= MAX_TABLES:
                _tables.popitem(last=False)
            _tables[key] = read_responses(db, hashes, family)
        _tables.move_to_end(key)
        return _tables[key]


def read_responses(db: sqlite3.Connection, hashes: Sequence[str], family: str) -> FactorTable:
    """The factors of those of ``hashes`` that have some."""
    query = "SELECT spaces, rows, scale FROM responses WHERE hash = ? AND response_id = ? AND problem IS NULL"
    found = {}
    for digest in hashes:
        row = db.execute(query, (digest, response_id(family))).fetchone()
        if row is not None:
            found[digest] = _unpacked(*row)
    return FactorTable.packed(found)


def _unpacked(shapes: str, rows: bytes, scale: bytes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Space → (rows (r, d) int8, scale (r,)), as :func:`store_response` laid them after one another."""
    out, at, row = {}, 0, 0
    for name, depth, width in json.loads(shapes):
        own = np.frombuffer(rows, np.int8, depth * width, at).reshape(depth, width)
        out[name] = own, np.frombuffer(scale, "<f4", depth, 4 * row)
        at, row = at + depth * width, row + depth
    return out
