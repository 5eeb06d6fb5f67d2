"""Which LoRAs to apply and how strongly: a selection and a stack, checked and made one list."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SelectionError

SELECTION_FORMAT = "autolora-selection/1"


@dataclass(frozen=True)
class Request:
    """One LoRA asked for: its name as ComfyUI's loras list shows it, and the strengths for model and text encoder."""

    name: str
    model: float
    clip: float
    origin: str = "stack"
    path: str | None = None

    @property
    def absent(self) -> bool:
        return self.model == 0 and self.clip == 0


def requests_of(selection: Any, stack: Any, strength: float = 1.0) -> list[Request]:
    """The picks of a LORA_SELECTION, then the entries of a LORA_STACK, all strengths times ``strength``.

    ``"None"`` entries of a stack are left out. Nothing is merged yet: two spellings may name one file.
    Raises ``SelectionError`` for anything malformed.
    """
    found = [*_from_selection(selection), *_from_stack(stack)]
    return [
        Request(one.name, one.model * strength, one.clip * strength, one.origin, one.path)
        for one in found
        if one.name and one.name.lower() != "none"
    ]


def merge_same_files(requests: Iterable[tuple[str, Request]]) -> list[tuple[str, Request]]:
    """(resolved path, request) pairs with the strengths of one file added up, in order of first mention."""
    merged: dict[str, Request] = {}
    for path, request in requests:
        before = merged.get(path)
        if before is not None:
            origin = before.origin if before.origin == request.origin else f"{before.origin} and {request.origin}"
            request = Request(
                before.name, before.model + request.model, before.clip + request.clip, origin, before.path
            )
        merged[path] = request
    return list(merged.items())


def _from_selection(selection: Any) -> list[Request]:
    if selection is None:
        return []
    if not isinstance(selection, Mapping) or selection.get("format") != SELECTION_FORMAT:
        raise SelectionError("this is not a selection made by Retrieve LoRAs from Prompt", key="selection")
    picks = selection.get("picks")
    if not isinstance(picks, list):
        raise SelectionError("the selection has no list of picks", key="picks")
    return [_from_pick(pick, number) for number, pick in enumerate(picks, start=1)]


def _from_pick(pick: Any, number: int) -> Request:
    if not isinstance(pick, Mapping) or not isinstance(pick.get("name"), str):
        raise SelectionError(f"pick {number} of the selection has no name", key="picks")
    strength = _number(pick.get("strength", 1.0), pick["name"])
    return Request(pick["name"], strength, strength, "selection", pick.get("path") or None)


def _from_stack(stack: Any) -> list[Request]:
    if stack is None:
        return []
    if not isinstance(stack, (list, tuple)):
        raise SelectionError(f"a LORA_STACK is a list, this is {type(stack).__name__}", key="lora_stack")
    return [_from_entry(entry, number) for number, entry in enumerate(stack, start=1)]


def _from_entry(entry: Any, number: int) -> Request:
    if not isinstance(entry, (list, tuple)) or len(entry) != 3 or not isinstance(entry[0], (str, type(None))):
        raise SelectionError(
            f"entry {number} of the LORA_STACK is not (name, model strength, clip strength): {entry!r}",
            key="lora_stack",
        )
    return Request(entry[0] or "", _number(entry[1], entry[0]), _number(entry[2], entry[0]))


def _number(value: Any, name: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SelectionError(f"the strength of {name} is not a number: {value!r}", key=str(name))
    return float(value)
