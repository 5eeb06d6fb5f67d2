"""What the user insists on: pinned and banned LoRAs, by the names people use for them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np

from ..errors import FamilyError, SelectionError
from ..lora.base_match import related
from .view import EntryLike


def read_wishes(
    entries: Sequence[EntryLike],
    everything: Sequence[EntryLike],
    family: str,
    pinned: Iterable[str],
    banned: Iterable[str],
    strength: float,
) -> tuple[list[tuple[int, float]], np.ndarray, list[str]]:
    """Pinned LoRAs with their strengths, the banned mask (N,), and notes on bans that hit nothing."""
    notes, shut = [], np.zeros(len(entries), bool)
    for pattern in _lines(banned):
        # In full it is that one alone: cards write it so, and files in two folders may share a name.
        full = _plain(pattern)
        hit = np.array([_plain(entry.name) == full for entry in entries], bool)
        if not hit.any():
            hit = np.array([_matches(entry, pattern) for entry in entries], bool)
        if not hit.any():
            notes.append(f"Nothing in the library is called {pattern!r}, so banning it changed nothing.")
        shut |= hit if len(hit) else shut
    taken: list[tuple[int, float]] = []
    for line in _lines(pinned):
        lora, power = _pinned(entries, everything, family, line, strength)
        if lora not in [index for index, _ in taken]:
            taken.append((lora, power))
    return taken, shut, notes


def _lines(wishes: Iterable[str]) -> list[str]:
    wishes = wishes.splitlines() if isinstance(wishes, str) else wishes
    return [line.strip() for line in wishes if line.strip()]


def _pinned(entries, everything, family, line: str, strength: float) -> tuple[int, float]:
    name, colon, power = line.rpartition(":")
    choices = [(line, strength)]
    try:
        choices += [(name.strip(), float(power))] if colon and math.isfinite(float(power)) else []
    except ValueError:
        pass  # the colon belongs to the name
    for wanted, wished in choices:
        # Names differ by case alone on some disks, so the exact one comes first.
        found = [i for i, entry in enumerate(entries) if _spelled(entry.name) == _spelled(wanted)]
        found = found or [i for i, entry in enumerate(entries) if _plain(entry.name) == _plain(wanted)]
        found = found or [i for i, entry in enumerate(entries) if _is_called(entry, wanted)]
        if len({entries[i].hash for i in found}) == 1:
            return found[0], wished
        if found:
            names = ", ".join(sorted(entries[i].name for i in found))
            raise SelectionError(f"pinned {wanted!r} is ambiguous: {names}", key="pinned", fix="use the full name")
        other = [entry for entry in everything if _is_called(entry, wanted) and entry.family != family]
        if other:
            made_for = "an unknown base" if other[0].family == "unknown" else other[0].family
            try_it = f", or choose {made_for} as family: much of it fits" if related(other[0].family, family) else ""
            raise FamilyError(
                f"pinned {other[0].name} is a LoRA for {made_for}, the model is {family}",
                key="pinned", fix=f"remove it from the pinned names{try_it}",
            )  # fmt: skip
    raise SelectionError(
        f"pinned {line!r} is not in the library", key="pinned",
        fix="write the name as the loras list shows it, or run Encode LoRA Library again",
    )  # fmt: skip


def _spelled(name: str) -> str:
    """Separators of any system alike, and letters with marks as one sign: a Mac's disks keep the two apart."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _plain(name: str) -> str:
    return _spelled(name).casefold()


def _stem(name: str) -> str:
    return _plain(name).rpartition("/")[2].removesuffix(".safetensors")


def _is_called(entry: EntryLike, wanted: str) -> bool:
    """By full name, stem, or at least ten digits of the hash."""
    by_hash = len(wanted) >= 10 and entry.hash.startswith(wanted.lower())
    return _plain(wanted) == _plain(entry.name) or _stem(wanted) == _stem(entry.name) or by_hash


def _matches(entry: EntryLike, pattern: str) -> bool:
    pattern = _plain(pattern)
    names = (_plain(entry.name), _stem(entry.name))
    return _is_called(entry, pattern) or any(fnmatchcase(name, pattern) for name in names)
