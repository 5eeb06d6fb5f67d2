"""Subject or style: what a LoRA's own words say, and where a vector lies between the two kinds."""

from __future__ import annotations

import numpy as np

from ..encode.generic import GENERIC_MANNERS, GENERIC_SUBJECTS
from .view import EntryLike
from .words import MANNERS, content_stems, words_of

_STYLE_TAGS = frozenset({"style", "art style", "artstyle", "artist", "aesthetic"})
_SUBJECT_TAGS = frozenset({"character", "subject", "object", "animal", "person", "clothing", "vehicle", "food"})


def said_role(entry: EntryLike) -> float:
    """1 when a LoRA's own words call it a style, −1 when they call it a subject, 0 when they do not say."""
    tags = {" ".join(words_of(tag)) for tag in entry.text.tags}
    title = words_of(entry.text.title)
    if tags & _STYLE_TAGS or {"style", "aesthetic"} & set(title):
        return 1.0
    if tags & _SUBJECT_TAGS:
        return -1.0
    return 1.0 if " ".join(content_stems(entry.text.title)) in MANNERS else 0.0


def along_kinds(rows: np.ndarray, generic: np.ndarray) -> np.ndarray:
    """(n,) −1 … 1 along the line from the generic subjects to the generic manners."""
    subjects = generic[: len(GENERIC_SUBJECTS)].mean(axis=0)
    manners = generic[-len(GENERIC_MANNERS) :].mean(axis=0)
    axis = manners - subjects
    middle, half = axis @ (manners + subjects) / 2, max(float(axis @ axis) / 2, 1e-9)
    return np.clip((rows @ axis - middle) / half, -1, 1)
