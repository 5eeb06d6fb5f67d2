"""What there is to learn from in one family of a library: files, words, and how they are split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..encode.features import ModuleFeatures
from ..encode.generic import GENERIC_PROMPTS
from ..encode.towers import TextTower
from ..library.fit import encodable
from ..library.index import Library
from ..library.linked import linked_groups
from ..library.shelf import Tick, silent
from ..library.sketches import read_sketches, sketch_id
from ..library.words import Words, without_common
from . import split
from .captions import words_of_files

VERSION = 1  # raise when the same inputs would give another encoder or other figures
MIN_DISTINCT = 12
MAX_FILES = 3000  # bounds the memory; files with words come first


@dataclass(frozen=True)
class Material:
    """Files of ``family`` by content: ``hashes`` and ``files`` (n). ``words``: content → captions.

    ``groups`` (n,): files of one number stay together. ``folds`` (n,): which fifth a file is held out in, −1 where
    nobody captioned its group. ``notes`` are for the report.
    """

    family: str
    hashes: tuple[str, ...]
    files: tuple[ModuleFeatures, ...]
    words: dict[str, Words]
    groups: np.ndarray
    folds: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def captioned(self) -> np.ndarray:
        """(n,) bool."""
        return np.array([digest in self.words for digest in self.hashes], bool)

    @property
    def distinct(self) -> int:
        """Groups with words: what there really is to learn from."""
        return len(np.unique(self.groups[self.captioned]))

    def inputs_id(self, *more: object) -> str:
        """SHA-256 over everything that decides the result; ``more`` are options."""
        said = [VERSION, sketch_id(self.family), self.family, *more]
        digest = hashlib.sha256(json.dumps(said).encode())
        for content, group, fold in zip(self.hashes, self.groups.tolist(), self.folds.tolist(), strict=True):
            words = self.words.get(content)
            lines = [words.lines, words.weight] if words else None
            digest.update(json.dumps([content, group, fold, lines]).encode())
        return digest.hexdigest()


def gather(
    library: Library, family: str, table: Mapping[str, Sequence[str]] | None = None, tick: Tick = silent
) -> Material:
    """Everything :class:`Material` says, from what the library stored; no file is read again.

    ``table``: content → captions that take the place of the file's own (:func:`.captions.match`).
    ``tick(done, total)`` may raise to interrupt.
    """
    entries = library.entries(family)
    words, common = without_common(words_of_files(entries, table or {}))
    there = {entry.hash for entry in entries}
    hashes = [digest for digest in encodable(library.store, family) if digest in there]
    notes = []
    if common:
        notes.append(f"Said of so many files that it tells none apart, left out: {'; '.join(common[:5])}.")
    if len(hashes) > MAX_FILES:
        notes.append(f"{len(hashes)} files are more than {MAX_FILES}; files without words were left out first.")
    hashes = sorted(sorted(hashes, key=lambda digest: (digest not in words, digest))[:MAX_FILES])
    sketches = read_sketches(library.store.db, hashes, family)
    words = {digest: words[digest] for digest in hashes if digest in words}
    pairs = chain(split.alike_pairs(library, family, tick), split.same_words(words), split.same_names(entries))
    groups = linked_groups(hashes, pairs)
    captioned = np.array([digest in words for digest in hashes], bool)
    folds = split.folds_of(hashes, groups, captioned)
    if captioned.any():
        largest = np.bincount(groups[captioned]).max()
        if largest > 0.3 * captioned.sum() and largest > 4:
            notes.append(f"{largest} of the {captioned.sum()} files with words are copies, versions or namesakes.")
    files = tuple(sketches[digest] for digest in hashes)
    return Material(family, tuple(hashes), files, words, groups, folds, tuple(notes))


def refusal(material: Material) -> str:
    """Why nothing can be learnt from it, in a sentence that says what to do; empty when something may be."""
    what = f"at least {MIN_DISTINCT} different LoRAs that say what they show are needed"
    more = "name the files after what they show, put words beside them (name.txt, name.civitai.info), or give a CSV"
    if not material.files:
        return f"no file of {material.family} could be encoded; the report of Encode LoRA Library says why"
    captioned, distinct = int(material.captioned.sum()), material.distinct
    if not captioned:
        return f"none of its {len(material.files)} files says what it shows; {what}: {more}"
    if distinct < MIN_DISTINCT:
        same = f", of which {distinct} are different" if distinct < captioned else ""
        return f"{captioned} of its {len(material.files)} files say what they show{same}; {what}: {more}"
    return ""


@dataclass(frozen=True)
class Asked:
    """The text side of a :class:`Material`, centred on the generic prompts, unit rows.

    ``targets`` (n, d): mean of a file's captions, zero without. ``lines[i]``: that mean, then the captions one by one.
    ``generic`` (g, d). ``centre`` (d,) in the tower's own space. Asks: one a captioned group, ``asks`` (q,) are rows of
    the files whose words are used, ``right`` (q, n) bool the files of the group, ``folds`` (q,) where it is held out.
    """

    centre: np.ndarray
    targets: np.ndarray
    lines: tuple[np.ndarray, ...]
    generic: np.ndarray
    asks: np.ndarray
    right: np.ndarray
    folds: np.ndarray

    @property
    def queries(self) -> np.ndarray:
        """(q, d) float32."""
        return self.targets[self.asks]

    @classmethod
    def of(cls, material: Material, tower: TextTower) -> Asked:
        """Encode every caption once; the file of a group that says most is asked for."""
        generic = tower.encode(list(GENERIC_PROMPTS)).astype(np.float64)
        centre = generic.mean(axis=0)
        targets, lines = np.zeros((len(material.hashes), len(centre)), np.float32), []
        for row, digest in zip(targets, material.hashes, strict=True):
            if digest in material.words:
                own = tower.encode(list(material.words[digest].lines)).astype(np.float64)
                row[:] = unit(own.mean(axis=0, keepdims=True) - centre)[0]
                lines.append(np.concatenate([row[None], unit(own - centre).astype(np.float32)]))
            else:
                lines.append(np.zeros((0, len(centre)), np.float32))
        best: dict[int, tuple] = {}
        for i in np.flatnonzero(material.captioned):
            group, count = int(material.groups[i]), len(material.words[material.hashes[i]].lines)
            best[group] = max(best.get(group, (-1, 0)), (count, -int(i)))
        asks = np.array([-best[group][1] for group in sorted(best)], np.int64)
        right = material.groups[None] == material.groups[asks][:, None]
        return cls(centre, targets, tuple(lines), unit(generic - centre).astype(np.float32), asks, right,
                   material.folds[asks])  # fmt: skip


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one; zero stays zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
