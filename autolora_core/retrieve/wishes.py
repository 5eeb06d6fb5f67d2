"""What the user insists on: pinned and banned LoRAs, by the names people use for them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np

from ..errors import FamilyError, SelectionError
from ..lora.base_match import related
from ..wording import listed, shown
from .names import ENDING, Names, last, lines_of, lowered, plain, spelled
from .view import EntryLike

MOST_COMPARED = 5_000  # names: a twentieth of a second
# ``name: 0.7``; what is no number belongs to the name. web/cards/choices.js reads it so, too.
_STRENGTH = re.compile(r"(.*\S)[ \t]*:[ \t]*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?)", re.S | re.I)


def read_wishes(
    entries: Sequence[EntryLike],
    everything: Sequence[EntryLike],
    family: str,
    pinned: Iterable[str],
    banned: Iterable[str],
    strength: float,
) -> tuple[list[tuple[int, float]], np.ndarray, list[str]]:
    """Pinned LoRAs with their strengths, the banned mask (N,), and notes on what was banned."""
    notes, shut = [], np.zeros(len(entries), bool)
    for pattern in _lines(banned):
        hit, known = _banned(entries, everything, pattern)
        if not known:
            notes.append(f"Nothing in the library is called {pattern!r}, so banning it changed nothing.")
        shut |= hit
    if shut.any():
        # An identical copy under another name does just what is not wanted.
        hashes = {entries[i].hash for i in np.flatnonzero(shut)}
        shut |= np.array([entry.hash in hashes for entry in entries], bool)
        out = [shown(entries[i].name) for i in np.flatnonzero(shut)]
        notes.append(f"Left out, banned by you: {listed(out)}.")
    taken: list[tuple[int, float]] = []
    lines = _lines(pinned)
    shelf = _Shelf(entries, everything, family) if lines else None
    for line in lines:
        lora, power = shelf.pinned(line, strength)
        if lora not in [index for index, _ in taken]:
            taken.append((lora, power))
    return taken, shut, notes


def _lines(wishes: Iterable[str]) -> tuple[str, ...]:
    return lines_of(wishes if isinstance(wishes, str) else "\n".join(wishes))


def _banned(entries: Sequence[EntryLike], everything: Sequence[EntryLike], pattern: str) -> tuple[np.ndarray, bool]:
    """(N,) bool, and whether the library has anything called so. In full it is that file alone: cards write it so, and
    files in two folders may share a name, or differ by case alone."""
    exact, full, own = spelled(pattern), lowered(pattern), plain(pattern)
    known = any(spelled(entry.name) == exact for entry in everything)
    hit = np.array([spelled(entry.name) == exact for entry in entries], bool)
    if not known and full.endswith(ENDING):
        hit = np.array([lowered(entry.name) == full for entry in entries], bool)
    if not known and not hit.any():
        hit = np.array([_matches(entry, own, full) for entry in entries], bool)
    return hit, known or bool(hit.any())


def _matches(entry: EntryLike, own: str, pattern: str) -> bool:
    name, whole = plain(entry.name), lowered(entry.name)
    if name == own or name.endswith("/" + own) or _is_hash(entry, pattern):
        return True
    return fnmatchcase(whole, pattern) or fnmatchcase(name.rpartition("/")[2], pattern)


def _is_hash(entry: EntryLike, wanted: str) -> bool:
    """By at least ten digits of the hash."""
    return len(wanted) >= 10 and entry.hash.startswith(wanted.lower())


def _readings(line: str, strength: float) -> list[tuple[str, float]]:
    """What a line may mean: a name, or a name and its strength."""
    found = _STRENGTH.fullmatch(line)
    power = float(found[2]) if found else math.inf
    return [(line, strength), *([(found[1], power)] if found and math.isfinite(power) else [])]


class _Shelf:
    """``entries``: those of the base searched; ``everything``: all of the library."""

    def __init__(self, entries: Sequence[EntryLike], everything: Sequence[EntryLike], family: str):
        self.entries, self.everything, self.family = entries, everything, family
        self.own, self.all = (Names(entry.name for entry in some) for some in (entries, everything))

    def pinned(self, line: str, strength: float) -> tuple[int, float]:
        """The place of the LoRA and its strength. Raises SelectionError for a name that is not there or not clear,
        FamilyError for one of another base."""
        for wanted, wished in _readings(line, strength):
            names = set(self._meant(wanted))
            found = [i for i, entry in enumerate(self.entries) if entry.name in names]
            found = found or [i for i, entry in enumerate(self.entries) if _is_hash(entry, wanted)]
            if len({self.entries[i].hash for i in found}) == 1:
                return found[0], wished
            if found:
                told = ", ".join(sorted(self.entries[i].name for i in found))
                raise SelectionError(f"pinned {wanted!r} is ambiguous: {told}", key="pinned", fix="use the full name")
            self._refuse_other_bases(wanted)
        raise SelectionError(f"pinned {line!r} is not in the library", key="pinned", fix=self._fix(line))

    def _meant(self, wanted: str) -> list[str]:
        found = self.own.meant(wanted)
        if found and plain(found[0]) == plain(wanted):
            # A file of another base that is called exactly so goes before one of this base in other case.
            nearest = {*self.all.meant(wanted, whole=True)} or {*found}
            found = [name for name in found if name in nearest]
        return found

    def _refuse_other_bases(self, wanted: str) -> None:
        names = set(self.all.meant(wanted))
        other = [one for one in self.everything if one.family != self.family]
        other = [one for one in other if one.name in names or _is_hash(one, wanted)]
        if not other:
            return
        made_for = "an unknown base" if other[0].family == "unknown" else other[0].family
        try_it = f", or choose {made_for} as family: much of it fits" if related(other[0].family, self.family) else ""
        raise FamilyError(
            f"pinned {other[0].name} is a LoRA for {made_for}, the model is {self.family}",
            key="pinned", fix=f"remove it from the pinned names{try_it}",
        )  # fmt: skip

    def _fix(self, line: str) -> str:
        alike = [shown(name) for reading, _ in _readings(line, 1.0) for name in self.all.namesakes(reading)]
        there = f" (elsewhere there is {listed(alike)})" if alike else self._misspelt(line)
        return f"write the name as the loras list shows it{there}, or run Encode LoRA Library again"

    def _misspelt(self, line: str) -> str:
        """The names nearest to what was written, of a library that can be compared in no time."""
        if len(self.everything) > MOST_COMPARED:
            return ""
        known = {last(entry.name): shown(entry.name) for entry in self.everything}
        near = [
            known[name]
            for reading, _ in _readings(line, 1.0)
            for name in difflib.get_close_matches(last(reading), known, n=2, cutoff=0.75)
        ]
        return f" (did you mean {' or '.join(dict.fromkeys(near))}?)" if near else ""
