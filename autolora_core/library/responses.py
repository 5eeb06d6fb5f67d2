"""Response factors in the database: computed once a content beside its sketch, read back as one table."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np

from ..encode.response import (
    MAX_BYTES,
    MAX_ROWS,
    MAX_SPACES,
    RESPONSE_VERSION,
    FactorTable,
    quantised,
    response_factors,
)
from ..encode.text_fed import FAMILIES, space_of
from ..errors import AutoLoRAError
from ..lora.file import LoraFile
from .store import now

log = logging.getLogger(__name__)
# Of a LoRA whose family has rules but which trains no module that reads text.
NOT_TEXT_FED = "it changes no layer that reads text"
MAX_TABLES = 2
_tables: OrderedDict[tuple, FactorTable] = OrderedDict()
_tables_lock = threading.Lock()


def response_id(family: str) -> str:
    """Changes whenever the stored numbers of a family would."""
    return f"{RESPONSE_VERSION}-{family}-{MAX_SPACES}x{MAX_ROWS}-{MAX_BYTES}"


def answered(db: sqlite3.Connection) -> set[tuple[str, str]]:
    """``(content, response id)`` of everything that is computed already, or known to have no response."""
    return set(db.execute("SELECT hash, response_id FROM responses"))


def has_response(family: str) -> bool:
    """Whether it is known which layers of this base read text."""
    return family in FAMILIES


def compute_response(db: sqlite3.Connection, digest: str, lora: LoraFile) -> None:
    """Store the factors of an open file, or the reason why it has none. Only layers that read text are read."""
    family, found, problem = lora.family.name, None, None
    fed = [name for name in lora.modules if space_of(family, name.partition("[")[0]) is not None]
    try:
        found = response_factors((lora.update(name) for name in fed), family)
    except AutoLoRAError as error:
        problem = error.message
    except Exception as error:  # one odd file must not end the scan of the others
        log.warning("response of %r failed: %s: %s", lora.path, type(error).__name__, error, exc_info=True)
        problem = f"reading its text layers failed ({type(error).__name__}: {error})"
    if found is None:
        spaces, rows, scale = (), np.zeros((0, 0, 0), np.int8), np.zeros((0, 0), np.float32)
        problem = problem or NOT_TEXT_FED
    else:
        spaces, (rows, scale) = found.spaces, quantised(found.rows)
    values = (json.dumps(spaces), *rows.shape[1:], rows.tobytes(), scale.astype("<f4").tobytes(), problem, now())
    db.execute("INSERT OR REPLACE INTO responses VALUES (?,?,?,?,?,?,?,?,?)", (digest, response_id(family), *values))


def held_responses(
    db: sqlite3.Connection, state: tuple[str, int], hashes: tuple[str, ...], family: str, width: int | None
) -> FactorTable:
    """:func:`read_responses`, one table for all who ask: of ten thousand files it takes 400 MB.

    ``state``: folder and generation of the library. The table must not be changed.
    """
    key = (state, hashes, family, width)
    with _tables_lock:
        if key not in _tables:
            while len(_tables) >= MAX_TABLES:
                _tables.popitem(last=False)
            _tables[key] = read_responses(db, hashes, family, width)
        _tables.move_to_end(key)
        return _tables[key]


def read_responses(db: sqlite3.Connection, hashes: Sequence[str], family: str, width: int | None = None) -> FactorTable:
    """The factors of those of ``hashes`` that have some, for a base whose text states are ``width`` wide.

    One family may have bases of several widths, whose LoRAs cannot be compared; without ``width`` the commonest.
    """
    query = "SELECT spaces, depth, width, rows, scale FROM responses WHERE hash = ? AND response_id = ? AND width > 0"
    found: dict[str, tuple[tuple[str, ...], np.ndarray, np.ndarray]] = {}
    for digest in hashes:
        row = db.execute(query, (digest, response_id(family))).fetchone()
        if row is not None and width in (None, row[2]):
            spaces = tuple(json.loads(row[0]))
            rows = np.frombuffer(row[3], np.int8).reshape(len(spaces), row[1], row[2])
            found[digest] = spaces, rows, np.frombuffer(row[4], "<f4").reshape(rows.shape[:2])
    if width is None and found:
        width = Counter(rows.shape[2] for _, rows, _ in found.values()).most_common(1)[0][0]
    return FactorTable.packed({digest: own for digest, own in found.items() if own[1].shape[2] == width})
