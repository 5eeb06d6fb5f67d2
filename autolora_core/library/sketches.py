"""Module features in the database: computed once a content, stored compactly, read back as the encoder wants them."""

from __future__ import annotations

import json
import logging
import sqlite3
from dataclasses import astuple
from functools import cache

import numpy as np

from ..encode.features import SKETCH_VERSION, ModuleFeatures, module_features, size_for
from ..errors import AutoLoRAError
from ..lora.file import LoraFile
from .content import read_layout, store_layout
from .store import now

log = logging.getLogger(__name__)
ENCODABLE_KINDS = ("lora", "text_encoder_only")


@cache
def sketch_id(family: str) -> str:
    """Changes whenever the numbers of a family's sketches would: version and sizes."""
    return f"{SKETCH_VERSION}-{family}-" + "x".join(str(size) for size in astuple(size_for(family)))


def sketched(db: sqlite3.Connection) -> set[tuple[str, str]]:
    """``(content, sketch id)`` of everything that is encoded already, or known not to be encodable."""
    return set(db.execute("SELECT hash, sketch_id FROM features"))


def compute_sketch(db: sqlite3.Connection, digest: str, lora: LoraFile) -> None:
    """Encode an open file and store the result; a file that cannot be encoded gets a row with the reason.

    Raises OSError where its bytes cannot be had just now: such a reason would stay with the content for ever.
    """
    family = lora.family.name
    try:
        found, problem = module_features(lora.updates(), size_for(family)), None
    except OSError:
        raise
    except AutoLoRAError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        found, problem = None, error.message
    except Exception as error:  # one odd file must not end the scan of the others
        log.warning("encoding %r failed: %s: %s", lora.path, type(error).__name__, error, exc_info=True)
        found, problem = None, f"encoding failed ({type(error).__name__}: {error})"
    if found is not None and not found.modules:
        problem = "no module of this file can be encoded"
    store_sketch(db, digest, family, found, problem)


def forget_encoding(db: sqlite3.Connection, digest: str) -> None:
    """Drop what was computed of a content, so that it is computed again."""
    for table in ("features", "responses"):
        db.execute(f"DELETE FROM {table} WHERE hash = ?", (digest,))


def store_sketch(
    db: sqlite3.Connection, digest: str, family: str, found: ModuleFeatures | None, problem: str | None
) -> None:
    """Insert one row. float16 keeps three digits, far finer than the noise of a sketch."""
    modules = found.modules if found else ()
    rows = found.rows.astype("<f2") if found else np.zeros((0, size_for(family).width), "<f2")
    norms = found.log_norms.astype("<f4") if found else np.zeros(0, "<f4")
    skipped = json.dumps(found.skipped if found else {})
    layout = store_layout(db, list(modules))
    db.execute(
        "INSERT OR REPLACE INTO features VALUES (?,?,?,?,?,?,?,?,?)",
        (digest, sketch_id(family), layout, rows.shape[1], rows.tobytes(), norms.tobytes(), skipped, problem, now()),
    )


def read_sketches(db: sqlite3.Connection, hashes: list[str], family: str) -> dict[str, ModuleFeatures]:
    """Content → module features, for those of ``hashes`` that could be encoded."""
    layouts: dict[str, tuple[str, ...]] = {}
    found = {}
    for digest in hashes:
        row = db.execute(
            "SELECT layout, width, rows, log_norms, skipped FROM features"
            " WHERE hash = ? AND sketch_id = ? AND problem IS NULL",
            (digest, sketch_id(family)),
        ).fetchone()
        if row is None:
            continue
        if row[0] not in layouts:
            layouts[row[0]] = tuple(read_layout(db, row[0]))
        rows = np.frombuffer(row[2], "<f2").reshape(-1, row[1]).astype(np.float32)
        norms = np.frombuffer(row[3], "<f4").astype(np.float32)
        found[digest] = ModuleFeatures(layouts[row[0]], rows, norms, json.loads(row[4]))
    return found
