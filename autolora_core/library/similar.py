"""Find what is like a LoRA, by its weights: copies, versions, merges, and what is merely alike.

The whole library is searched by its grid (:mod:`.grid`, one matrix product); the files that come near are opened and
compared exactly (:mod:`.relations`), and what one of them leaves unexplained is searched for again, which finds
merges (:mod:`.merges`). Nothing but weights is looked at: names may lie.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import numpy as np

from ..encode.features import file_features
from ..encode.threads import one_thread
from ..encode.towers import file_sha256
from ..errors import LibraryError, NoUpdatesError
from ..lora.file import LoraFile
from .entries import Entry
from .grid import row_of
from .index import Library
from .relations import SAME, VERSIONS, Measured, Relation, decide, measure
from .shelf import MergeFound, Shelf, Tick, likeliest, silent
from .sketches import ENCODABLE_KINDS

OPEN_FROM = 0.12  # estimated cosine from which a file is opened; the estimates of unlike files lie within 0.1
MAX_OPENED = 32
MAX_FIRSTS = 6
MERGE_FROM = 0.2  # estimated cosine of a merge with each of its parts: a weight of 0.2 beside 1


@dataclass(frozen=True)
class Hit:
    """One content of the library beside the one asked for. ``names`` are all its files, the first is ``entry``'s."""

    entry: Entry
    names: tuple[str, ...]
    relation: Relation

    @property
    def is_version(self) -> bool:
        """Whether it is the same LoRA over again rather than another one."""
        return self.relation.kind in VERSIONS

    @property
    def cosine(self) -> float:
        """⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖ ‖ΔW_b‖), exact."""
        return self.relation.measured.cosine


@dataclass(frozen=True)
class Found:
    """What is like one LoRA: ``hits``, all versions first, by kind, then others by falling |cosine|.

    ``names``: hash → file name. ``searched`` files by their rows, ``opened`` to be sure."""

    name: str
    hash: str
    family: str
    hits: tuple[Hit, ...] = ()
    merges: tuple[MergeFound, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    searched: int = 0
    opened: int = 0
    notes: tuple[str, ...] = ()


@one_thread()
def find_like(library: Library, path: str | os.PathLike, *, top_k: int = 10, tick: Tick = silent) -> Found:
    """What in ``library`` is like the LoRA file ``path`` (which need not be in it).

    Returns at least the versions and at most ``top_k`` others. ``tick(done, total)`` may raise to interrupt. Raises
    ``FileFormatError`` and ``LoraError`` for a file that cannot be used, ``LibraryError`` when the library holds no
    LoRA of its base.
    """
    name, digest, family = _query(library, os.fspath(path))
    shelf = Shelf(library, family, tick)
    if not shelf.grid.hashes:
        raise LibraryError(
            f"the index holds no LoRA for {family}", path=path, fix="run Encode LoRA Library on the folder they are in"
        )
    searched = sum(digest != other for other in shelf.grid.hashes)
    if digest not in shelf.grid.places:
        shelf.add(digest, os.fspath(path), _row(os.fspath(path), family))
    shelf.paths[digest] = os.fspath(path)
    row = shelf.row(digest)
    shown = {hash_: group[0].name for hash_, group in shelf.entries.items()} | {digest: name}
    estimates = dict(shelf.near(row, 0.0, (digest,)))
    relations = _compare(shelf, digest, estimates, top_k, tick)
    merges = _merges(shelf, digest, estimates, relations)
    hits = _hits(shelf, digest, relations, merges, top_k)
    notes = tuple(f"{shown[other]} could not be read: {why}" for other, why in shelf.unread.items())
    return Found(name, digest, family, hits, merges, shown, searched, shelf.opened, notes)


def _query(library: Library, path: str) -> tuple[str, str, str]:
    """``(name, hash, family)`` of the LoRA asked for; the name is the library's where it knows this very file."""
    lora = LoraFile.open(path)
    if lora.kind not in ENCODABLE_KINDS or lora.family.name == "unknown":
        lora.require_usable()
        raise NoUpdatesError(
            f"weights of this kind of file are not compared ({lora.kind}, base {lora.family.name})",
            path=path,
            fix="choose a LoRA of a base model that this pack knows",
        )
    digest = file_sha256(path)
    known = [entry for entry in library.entries(include_shadowed=True) if entry.hash == digest]
    here = [entry.name for entry in known if os.path.abspath(entry.path) == os.path.abspath(path)]
    return here[0] if here else os.path.basename(path), digest, lora.family.name


def _row(path: str, family: str) -> np.ndarray:
    """The grid's row of a file that the library does not hold."""
    features = file_features(LoraFile.open(path))
    if not features.modules:
        raise NoUpdatesError("no layer of this file can be compared", path=path, fix="choose a LoRA that adds matrices")
    return row_of(features, family)


def _compare(shelf: Shelf, digest: str, estimates: dict[str, float], top_k: int, tick: Tick) -> dict[str, Relation]:
    """Exact relations of the nearest files: all that come near, and more until ``top_k`` are no versions."""
    relations: dict[str, Relation] = {}
    others = 0
    for other, estimate in estimates.items():
        if others >= top_k and (abs(estimate) < OPEN_FROM or len(relations) >= MAX_OPENED):
            break
        tick(len(relations), max(top_k, len(relations) + 1))
        mine, theirs = shelf.weights(digest), shelf.weights(other)
        if mine is None:
            raise NoUpdatesError(f"this LoRA cannot be read: {shelf.unread[digest]}", path=shelf.paths[digest])
        if theirs is not None:
            relations[other] = decide(measure(mine, theirs))
            others += relations[other].kind not in VERSIONS
    return relations


def _merges(
    shelf: Shelf, digest: str, estimates: dict[str, float], relations: dict[str, Relation]
) -> tuple[MergeFound, ...]:
    """The LoRA as a merge of two others, and others as merges of it; the best fit for each of them."""
    open_ones = [
        other
        for other, relation in relations.items()
        if relation.kind not in SAME and abs(estimates[other]) >= MERGE_FROM
    ]
    firsts = [(digest, shelf.directions(open_ones, MAX_FIRSTS)), *((other, [[digest]]) for other in open_ones)]
    return likeliest(one for whole, parts in firsts for one in shelf.merges(whole, parts))


def _merged(shelf: Shelf, digest: str, relations: dict[str, Relation], merges: tuple[MergeFound, ...]) -> set[str]:
    """What the LoRA is made of, copies of that included, and what is made of it."""
    found: set[str] = set()
    for one in merges:
        if one.whole != digest:
            found.add(one.whole)
            continue
        found |= {one.first, one.second}
        for other in relations.keys() - found:
            near = [part for part in (one.first, one.second) if abs(shelf.likeness(other, part)) > abs(
                shelf.likeness(other, digest))]  # fmt: skip
            held = [(shelf.weights(part), shelf.weights(other)) for part in near]
            if any(None not in pair and decide(measure(*pair)).kind in SAME for pair in held):
                found.add(other)
    return found


def _hits(
    shelf: Shelf, digest: str, relations: dict[str, Relation], merges: tuple[MergeFound, ...], top_k: int
) -> tuple[Hit, ...]:
    merged = _merged(shelf, digest, relations, merges)
    hits = []
    for other, relation in relations.items():
        if other in merged:
            relation = replace(relation, kind="merged")
        group = shelf.entries[other]
        hits.append(Hit(group[0], tuple(entry.name for entry in group), relation))
    twins = shelf.entries.get(digest, [])
    if len(twins) > 1:
        same = Relation("same_file", Measured(1.0, 1.0, 1.0, (1.0, 1.0), 0.0, 0, 0, 0, 0.0))
        hits.append(Hit(twins[0], tuple(entry.name for entry in twins), same))
    order = {kind: place for place, kind in enumerate(VERSIONS)}
    hits.sort(key=lambda hit: (order.get(hit.relation.kind, len(order)), -abs(hit.cosine), hit.entry.name))
    others = [hit for hit in hits if not hit.is_version][:top_k]
    return tuple(hit for hit in hits if hit.is_version or hit in others)
