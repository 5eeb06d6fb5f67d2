"""What a library holds besides what is searched: looked at once per state of the library, then kept in memory."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..wording import listed
from .candidates import USABLE_KINDS, is_for, is_for_shared_encoders
from .view import EntryLike, LibraryView

MAX_HELD = 4
_held: OrderedDict[str, Survey] = OrderedDict()
_lock = threading.Lock()


@dataclass
class Survey:
    """All ``entries`` of a view."""

    entries: Sequence[EntryLike]
    _families: dict[str | None, tuple[str, tuple[str, ...]]] = field(default_factory=dict)

    def family(self, asked: str | None) -> tuple[str, tuple[str, ...]]:
        """The family to search, and notes on what that leaves out."""
        if asked not in self._families:
            self._families[asked] = family_of(self.entries, asked)
        return self._families[asked]


def survey(view: LibraryView, handle: dict) -> Survey:
    """Of the view's state, which ``handle`` names; an empty one names none, and nothing is kept."""
    if not handle:
        return Survey(view.entries())
    key = json.dumps(handle, sort_keys=True, default=str)
    with _lock:
        if key in _held:
            _held.move_to_end(key)
            return _held[key]
    found = Survey(view.entries())
    with _lock:
        _held[key] = found
        while len(_held) > MAX_HELD:
            _held.popitem(last=False)
    return found


def family_of(entries: Sequence[EntryLike], family: str | None) -> tuple[str, tuple[str, ...]]:
    """The family to search, and notes on what that leaves out."""
    by_family: dict[str, list[str]] = {}
    for entry in entries:
        if entry.kind in USABLE_KINDS and not is_for_shared_encoders(entry):
            by_family.setdefault(entry.family, []).append(entry.name)
    notes = []
    if family is None:
        known = sorted(by_family.keys() - {"unknown"}, key=lambda name: (-len(by_family[name]), name))
        family = known[0] if known else "unknown"
        if len(known) > 1:
            notes.append(f"Searched the LoRAs for {family}, the largest group; connect a model to choose another.")
    others = sorted(name for name in by_family if name != family)
    if others:
        groups = "; ".join(f"{len(by_family[name])} for {name} ({_some(by_family[name])})" for name in others)
        notes.append(f"Left out, made for another base model: {groups}.")
    foreign = [entry.name for entry in entries if is_for_shared_encoders(entry) and not is_for(entry, family)]
    if foreign:
        why = "they change text encoders only, and none that this base model is known to have"
        notes.append(f"Left out, {why}: {_some(foreign)}.")
    unfit = [entry for entry in entries if entry.kind not in USABLE_KINDS]
    unusable = [f"{entry.name} ({_KINDS.get(entry.kind, entry.kind)})" for entry in unfit]
    if unusable:
        notes.append(f"Left out, no LoRAs that can be added to a prompt: {_some(unusable)}.")
    return family, tuple(notes)


_KINDS = {"not_a_lora": "not a LoRA, or damaged", "all_zero": "all zero"}


def _some(names: Sequence[str]) -> str:
    return listed(sorted(names), 5)
