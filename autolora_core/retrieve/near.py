"""Near families in a search: other sizes of one base stay out, other checkpoint lines are told apart and may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import FamilyError
from ..lora.base_match import other_size
from ..lora.lineage import Lineage, belongs, lineage, lineage_note, mixed_note
from ..wording import listed
from .view import EntryLike

SHOWN = 5


@dataclass(frozen=True)
class Near:
    """What is known beyond the family: the connected model's ``variant`` (its size, "" when not known) and lineage
    (None without a model), and the lineage ``wanted``, "" for all."""

    variant: str = ""
    model: Lineage | None = None
    wanted: str = ""


def lineage_of(entry: EntryLike) -> Lineage:
    """What header, sidecars and name say of an entry."""
    return lineage(entry.family, {}, entry.base_model, entry.name)


def set_apart(entries: Sequence[EntryLike], family: str, near: Near) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which entries (N,) are not to be chosen, and notes on it."""
    told = bool(near.variant) or near.model is not None  # else there is no size to differ from
    sizes = np.zeros(len(entries), bool)
    if told:
        other = {variant: other_size(family, variant, near.variant) for variant in {e.variant for e in entries}}
        sizes = np.array([e.family == family and other[e.variant] for e in entries]).astype(bool)
    notes = _sizes_note(entries, sizes, family, near.variant)
    if not near.wanted:
        return sizes, tuple(notes)
    lines = [lineage_of(entry) for entry in entries]
    others = np.array([not belongs(line, near.wanted) for line in lines], bool)
    silent = sum(not line.name for line, shut in zip(lines, sizes | others, strict=True) if not shut)
    stay = f"; LoRAs that say none stay in: {silent}" if silent else ""
    out = f"left out, made for another: {_some(entries, others)}" if others.any() else "none is made for another"
    return sizes | others, (*notes, f"Only LoRAs for {family} {near.wanted}: {out}{stay}.")


def refuse_other_sizes(pinned: Sequence[EntryLike], family: str, near: Near) -> None:
    """A pinned one may be of any lineage, but raises ``FamilyError`` when it is of another size, as none of its layers
    fits."""
    for entry, shut in zip(pinned, set_apart(pinned, family, replace(near, wanted=""))[0], strict=True):
        if shut:
            raise FamilyError(
                f"pinned {entry.name} is a LoRA for {family} {entry.variant}, the model is {family} {near.variant}: "
                "its layers are of another width",
                key="pinned", fix="remove it from the pinned names",
            )  # fmt: skip


def _sizes_note(entries: Sequence[EntryLike], shut: np.ndarray, family: str, variant: str) -> list[str]:
    if not shut.any():
        return []
    return [f"Left out, made for another size of {family} than the model's ({variant}): {_some(entries, shut)}."]


def _some(entries: Sequence[EntryLike], chosen: np.ndarray) -> str:
    names = sorted(entries[i].name for i in np.flatnonzero(chosen))
    return f"{len(names)} ({listed(names, SHOWN)})"


def pick_note(entry: EntryLike, family: str, near: Near) -> str:
    """A sentence for the reason of a pick, "" when there is nothing to tell."""
    if entry.family != family or near.model is None:
        return ""
    note = lineage_note(family, lineage_of(entry), near.model)
    return f" {note[0].upper()}{note[1:]}." if note else ""


def mixed(entries: Sequence[EntryLike]) -> list[str]:
    """A note when the picks are of several lineages."""
    note = mixed_note(lineage_of(entry).name for entry in entries)
    return [note] if note else []
