"""Which files have no vector of their weights, and why: they can be found by their words alone, or not at all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from .entries import Entry
from .sketches import ENCODABLE_KINDS, sketch_id

KIND_NAMES = {
    "text_encoder_only": "changes the text encoder only",
    "control": "is a control LoRA, which needs a loader of its own",
    "all_zero": "is all zero and changes nothing",
    "not_a_lora": "is not a LoRA",
}
_UNKNOWN = "its layers are of no base model that this pack knows"
_WORDS_ONLY = "changes the text encoder only, and does not say for which base model: found by its words"
_NOT_YET = "not encoded yet. What to do: run Encode LoRA Library again"


def why_not_encoded(db: sqlite3.Connection, entries: Iterable[Entry]) -> list[tuple[Entry, str]]:
    """``(entry, reason)`` of those of ``entries`` whose weights are not encoded, in the order given."""
    found, whole = [], {}
    for entry in entries:
        if entry.by_header:
            continue  # their turn comes; the report counts them
        if entry.family not in whole:  # at once: asked for one by one, a hundred thousand take seconds
            whole[entry.family] = _encoded(db, entry.family)
        if entry.kind in ENCODABLE_KINDS and entry.hash in whole[entry.family]:
            continue
        reason = _reason(db, entry)
        if reason:
            found.append((entry, reason))
    return found


def _encoded(db: sqlite3.Connection, family: str) -> set[str]:
    if family == "unknown":
        return set()
    rows = db.execute("SELECT hash FROM features WHERE sketch_id = ? AND problem IS NULL", (sketch_id(family),))
    return {row[0] for row in rows}


def _reason(db: sqlite3.Connection, entry: Entry) -> str:
    if not entry.hash or entry.kind not in ENCODABLE_KINDS:
        return entry.problems[0] if entry.problems else KIND_NAMES[entry.kind]
    if entry.family == "unknown":
        return _WORDS_ONLY if entry.kind == "text_encoder_only" else _UNKNOWN
    row = db.execute(
        "SELECT problem, skipped FROM features WHERE hash = ? AND sketch_id = ?", (entry.hash, sketch_id(entry.family))
    ).fetchone()
    if row is None:
        return entry.problems[0] if entry.problems else _NOT_YET
    if row[0] is None:
        return ""
    if entry.problems:  # broken values, say: what mends the file is told there
        return entry.problems[0]
    return ": ".join([row[0], *sorted(set(json.loads(row[1]).values()))[:1]])
