"""Module features in the database: computed once a content, stored compactly, read back as the encoder wants them."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import astuple
from functools import cache

import numpy as np

from ..encode.features import SKETCH_VERSION, ModuleFeatures, size_for
from .content import read_layout, store_layout
from .store import now

ENCODABLE_KINDS = ("lora", "text_encoder_only")


@cache
def sketch_id(family: str) -> str:
    """Changes whenever the numbers of a family's sketches would: version and sizes."""
    return f"{SKETCH_VERSION}-{family}-" + "x".join(str(size) for size in astuple(size_for(family)))


def sketched(db: sqlite3.Connection) -> set[tuple[str, str]]:
    """``(content, sketch id)`` of everything that is encoded already, or known not to be encodable."""
    return set(db.execute("SELECT hash, sketch_id FROM features"))


def store_sketch(
    db: sqlite3.Connection, digest: str, family: str, found: ModuleFeatures | None, problem: str | None
) -> None:
    """Insert one row; ``problem`` says why there is nothing to keep.

    float16 keeps three digits, far finer than the noise of a sketch.
    """
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
