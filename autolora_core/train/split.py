"""Which files must stay together when some are held out, and which fifth each belongs to.

A held-out file whose copy, other epoch or namesake was learnt from would be found by remembering it. So everything that
may be one LoRA, or is said to show the same, is one group, and groups are held out whole. Fifths follow from the
content alone: they are the same at every run, on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..library.entries import Entry
from ..library.index import Library
from ..library.names import meaningful_name
from ..library.relations import EPOCH
from ..library.shelf import Tick, silent
from ..library.versions import near_pairs
from ..library.words import Words, plain

FOLDS = 5
SALT = "autolora-train/1"


def alike_pairs(library: Library, family: str, tick: Tick = silent) -> list[tuple[str, str]]:
    """Pairs of contents that may be one LoRA. No file is opened.

    Those known to be near-duplicates, and every two whose estimated cosine is at least that of two epochs of one run
    (either sign, any loudness).
    """
    known = library.near_duplicates(family)
    return [*known, *((a, b) for a, b, _ in near_pairs(library.grid(family, tick), EPOCH))]


def same_words(words: Mapping[str, Words]) -> Iterable[tuple[str, str]]:
    """Pairs of contents that share a caption, chained."""
    first: dict[str, str] = {}
    for digest in sorted(words):
        for form in {plain(line) for line in words[digest].lines}:
            yield first.setdefault(form, digest), digest


def same_names(entries: Iterable[Entry]) -> Iterable[tuple[str, str]]:
    """Pairs of contents whose names mean the same once versions, steps and epochs are left out, chained."""
    first: dict[str, str] = {}
    for entry in sorted(entries, key=lambda e: (e.hash, e.name)):
        stem = entry.name.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
        meaning = meaningful_name(stem)
        if meaning and entry.hash:
            yield first.setdefault(meaning, entry.hash), entry.hash


def folds_of(hashes: Sequence[str], groups: np.ndarray, captioned: np.ndarray, folds: int = FOLDS) -> np.ndarray:
    """(n,) int: which of ``folds`` equal parts each file is in, −1 for groups that nobody captioned.

    Groups are put in the order of a hash of their smallest content and dealt out.
    """
    first = {int(g): min(hashes[i] for i in np.flatnonzero(groups == g)) for g in np.unique(groups[captioned])}
    order = sorted(first, key=lambda g: hashlib.sha256(f"{SALT} {first[g]}".encode()).digest())
    place = {group: at % folds for at, group in enumerate(order)}
    return np.array([place.get(int(group), -1) for group in groups], np.int64)
