"""What a card shows of a selection, as plain JSON: beside the report, for the page and for the API's history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..wording import last_name
from .choices import Chosen
from .selection import Pick, Selection

FORMAT = "autolora-cards/1"


def retrieve_cards(
    found: Selection, chosen: Chosen, added: Sequence[str], beside: Callable[[str], list[str]] = lambda name: []
) -> dict[str, Any]:
    """``found``: the selection before the choices; ``added``: the trigger words that the prompt got; ``beside``: other
    files that a name on the card may mean (:meth:`.names.Names.beside`). No paths: the page asks for previews by
    library and hash."""
    picks = zip(found.picks, chosen.selection.picks, strict=True)
    return {
        "format": FORMAT,
        "kind": "retrieve",
        "library": last_name(str(found.index.get("folder", ""))),
        "prompt": found.prompt,
        "family": found.family,
        "picks": [_pick(before, after, chosen.words[before.name], beside(before.name)) for before, after in picks],
        "misses": [_shared(miss, beside(miss.name)) for miss in found.misses],
        "none_reason": found.none_reason,
        "added": list(added),
        "notes": list(chosen.selection.notes),
    }


def _shared(pick: Pick, beside: list[str]) -> dict[str, Any]:
    return {
        "name": pick.name,
        "hash": pick.hash,
        "score": pick.score,
        "parts": asdict(pick.parts),
        "reason": pick.reason,
        "triggers": list(pick.triggers),
        "beside": beside,
    }


def _pick(before: Pick, after: Pick, words: Sequence[str], beside: list[str]) -> dict[str, Any]:
    """``found`` is what the node decided by itself, beside what the choices made of it."""
    return {
        **_shared(before, beside),
        "role": after.role,
        "strength": after.strength,
        "on": list(words),
        "found": {"role": before.role, "strength": before.strength},
        "pinned": before.role == "pinned",
    }
