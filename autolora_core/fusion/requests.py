"""Which LoRAs to apply and how strongly: a selection and a stack, checked and made one list."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import SelectionError
from ..wording import last_name

LARGEST = sys.float_info.max
SELECTION_FORMAT = "autolora-selection/1"


@dataclass(frozen=True)
class Request:
    """One LoRA asked for: its name as ComfyUI's loras list shows it, and the strengths for model and text encoder.

    ``origin`` is selection or stack; ``notes`` say what was decided when several requests were for one file. Of a
    selection's pick: its ``role``, its ``triggers``, the words of the LoRA its weights are ``near`` to, how far it is
    ``asked`` for, in [0, 1], and the ``sha256`` of the file that was indexed.
    """

    name: str
    model: float
    clip: float
    origin: str = "stack"
    path: str | None = None
    notes: tuple[str, ...] = ()
    role: str | None = None
    triggers: tuple[str, ...] = ()
    near: str = ""
    asked: float = 1.0
    sha256: str = ""

    @property
    def absent(self) -> bool:
        return self.model == 0 and self.clip == 0


def requests_of(selection: Any, stack: Any, strength: float = 1.0) -> list[Request]:
    """The picks of a LORA_SELECTION, then the entries of a LORA_STACK, all strengths times ``strength``.

    ``"None"`` entries of a stack are left out. Nothing is merged yet: two spellings may name one file.
    Raises ``SelectionError`` for anything malformed.
    """
    found = [*_from_selection(selection), *_from_stack(stack)]
    return [replace(one, model=one.model * strength, clip=one.clip * strength) for one in found if named(one.name)]


def library_of(selection: Any) -> str:
    """The name of the library that a LORA_SELECTION was found in; "" for one written by hand."""
    index = selection.get("index") if isinstance(selection, Mapping) else None
    folder = index.get("folder") if isinstance(index, Mapping) else None
    return last_name(folder) if isinstance(folder, str) else ""


def named(name: str | None) -> bool:
    """Whether an entry of a stack names a file: an empty slot of a stacker is None, ``""`` or ``"None"``."""
    return bool(name and name.strip()) and name.strip().lower() != "none"


def stack_entries(stack: Any) -> list[tuple[str, float, float]]:
    """A LORA_STACK from anywhere as every pack's nodes take it: (name, model strength, clip strength), empty slots
    left out. Raises ``SelectionError`` for anything malformed."""
    return [(one.name, one.model, one.clip) for one in _from_stack(stack) if named(one.name)]


def merge_same_files(requests: Iterable[tuple[str, Request]]) -> list[tuple[str, Request]]:
    """One request for each file, in order of first mention; ``requests`` are (resolved path, request) pairs.

    The selection decides: a file that the stack names too (Retrieve hands out its picks both ways) is used once, with
    the selection's strength. Entries of one origin for one file add up, as in a chain of LoRA loaders. Either way the
    request's notes say so.
    """
    named: dict[str, dict[str, list[Request]]] = {}
    for path, request in requests:
        named.setdefault(path, {}).setdefault(request.origin, []).append(request)
    return [(path, _merged({origin: _added_up(same) for origin, same in by.items()})) for path, by in named.items()]


def _added_up(same: list[Request]) -> Request:
    first = same[0]
    if len(same) == 1:
        return first
    parts = " and ".join(_strength(one) for one in same)
    note = f"named {len(same)} times in the {first.origin}: the strengths are added ({parts})"
    total = {"model": sum(one.model for one in same), "clip": sum(one.clip for one in same)}
    return replace(first, **total, notes=(*first.notes, note))


def _merged(by_origin: dict[str, Request]) -> Request:
    if set(by_origin) != {"selection", "stack"}:
        return next(iter(by_origin.values()))
    chosen, other = by_origin["selection"], by_origin["stack"]
    note = f"in the stack too (× {_strength(other)}): used once, with the selection's strength"
    return replace(chosen, notes=(*chosen.notes, note))


def _strength(request: Request) -> str:
    same = request.model == request.clip
    return f"{request.model:g}" if same else f"{request.model:g}, text encoder {request.clip:g}"


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
    role = pick.get("role") if isinstance(pick.get("role"), str) else None
    triggers = _texts(pick.get("triggers"))
    near = _texts([one.get("words") for one in _mappings(pick.get("neighbours"))])
    words = {"role": role, "triggers": triggers, "near": near[0] if near else "", "asked": _asked(pick, role)}
    for key in ("path", "hash"):
        if not isinstance(pick.get(key), (str, type(None))):
            raise SelectionError(f"the {key} of pick {number} is not a text", key="picks")
    path, sha256 = pick.get("path") or None, pick.get("hash") or ""
    return Request(pick["name"], strength, strength, "selection", path, **words, sha256=sha256)


def _asked(pick: Mapping, role: str | None) -> float:
    """The score of a pick whose own words were compared with the prompt. Who has no words, or is pinned, is asked for:
    a low score then says how little is known, not that the prompt wants something else."""
    parts = pick.get("parts") if isinstance(pick.get("parts"), Mapping) else {}
    told = any(_is_number(parts.get(name)) for name in ("text", "lexical"))
    score = pick.get("score")
    return min(max(float(score), 0.0), 1.0) if told and role != "pinned" and _is_number(score) else 1.0


def _mappings(value: Any) -> list[Mapping]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, (list, tuple)) else []


def _texts(value: Any) -> tuple[str, ...]:
    """The words in a list; a hand-written selection may hold anything."""
    found = value if isinstance(value, (list, tuple)) else []
    return tuple(text.strip() for text in found if isinstance(text, str) and text.strip())


def _from_stack(stack: Any) -> list[Request]:
    if stack is None:
        return []
    if not isinstance(stack, (list, tuple)):
        raise SelectionError(f"a LORA_STACK is a list, this is {type(stack).__name__}", key="lora_stack")
    return [_from_entry(entry, number) for number, entry in enumerate(stack, start=1)]


def _from_entry(entry: Any, number: int) -> Request:
    """(name, model strength, clip strength), or (name, strength) for both; a tuple or a list. What a fourth field
    would mean is nowhere agreed, and leaving it out would change the picture."""
    if not isinstance(entry, (list, tuple)) or len(entry) not in (2, 3) or not isinstance(entry[0], (str, type(None))):
        raise SelectionError(
            f"entry {number} of the LORA_STACK is not (name, model strength, clip strength): {entry!r}",
            key="lora_stack",
        )
    name = entry[0] or ""
    return Request(name, *(_number(_from_text(value), name) for value in (entry[1], entry[-1])))


def _from_text(value: Any) -> Any:
    """Strengths that came through a text field, "0.8", as numbers."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _number(value: Any, name: Any) -> float:
    if not _is_number(value):
        raise SelectionError(f"the strength of {name} is not a number: {value!r}", key=str(name))
    return float(value)


def _is_number(value: Any) -> bool:
    """A finite one; JSON also has whole numbers that no float holds."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and -LARGEST <= value <= LARGEST
