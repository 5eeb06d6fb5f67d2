"""What the retriever answers, and its JSON form (socket ``LORA_SELECTION``)."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import SelectionError

FORMAT = "autolora-selection/1"
LARGEST = sys.float_info.max
ROLES = ("subject", "style", "pinned", "alike")
_FIX = "pass the output of Retrieve LoRAs from Prompt on unchanged"


@dataclass(frozen=True)
class Parts:
    """Probability-like evidence of each part in [0, 1]; None where a part had nothing to go on or was switched off."""

    weights: float | None = None
    text: float | None = None
    lexical: float | None = None
    response: float | None = None
    picture: float | None = None


@dataclass(frozen=True)
class Neighbour:
    """A LoRA with words whose weights are near to another's; ``similarity`` is the cosine of their ΔW, 1 for a copy."""

    name: str
    words: str
    similarity: float


@dataclass(frozen=True)
class Pick:
    """One LoRA chosen, or (``role`` None) nearly chosen.

    ``score`` is the probability that it fits the prompt. ``triggers`` are its trigger words, best first.
    ``neighbours`` are the LoRAs with words that its weights stand out as near to, nearest first; most have none.
    """

    name: str
    hash: str
    path: str
    role: str | None
    strength: float
    score: float
    parts: Parts
    reason: str
    triggers: tuple[str, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()

    def to_json(self) -> dict:
        """A plain dict; a miss has no ``role``."""
        data = {**asdict(self), "triggers": list(self.triggers)}
        data["neighbours"] = [asdict(neighbour) for neighbour in self.neighbours]
        if self.role is None:
            del data["role"]
        return data


@dataclass(frozen=True)
class Selection:
    """Picks in the order they were made, pinned first; ``misses`` are the nearest LoRAs left out, best first.

    ``none_reason`` is a sentence when nothing was chosen for the prompt, else None. ``notes`` say what else was
    decided: files of other families, parts that could not be used. ``index`` is the library's handle, ``encoder`` and
    ``tower`` the ids of what made the vectors.
    """

    prompt: str
    family: str
    picks: tuple[Pick, ...] = ()
    misses: tuple[Pick, ...] = ()
    none_reason: str | None = None
    index: dict = field(default_factory=dict)
    encoder: str | None = None
    tower: str | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """The plain dict that travels between nodes; ``json.dumps`` takes it as it is."""
        return {
            "format": FORMAT,
            "prompt": self.prompt,
            "family": self.family,
            "picks": [pick.to_json() for pick in self.picks],
            "misses": [pick.to_json() for pick in self.misses],
            "none_reason": self.none_reason,
            "index": self.index,
            "encoder": self.encoder,
            "tower": self.tower,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Any) -> Selection:
        """Inverse of :meth:`to_json`; checks every field and raises :class:`SelectionError` naming the first bad one.

        ``misses``, ``none_reason``, ``index``, ``encoder``, ``tower`` and ``notes`` may be absent, and of a pick all
        but ``name``, ``role`` and ``strength``, so that a selection is easily written by hand; unknown fields are
        refused, because they are usually misspelt ones.
        """
        data = _mapping(data, "selection", _KNOWN)
        if data.get("format") != FORMAT:
            raise SelectionError(
                f"not a selection of format {FORMAT}: format is {data.get('format')!r}", key="format", fix=_FIX
            )
        return cls(
            prompt=_get(data, "prompt", str),
            family=_get(data, "family", str),
            picks=_picks(data, "picks", with_role=True),
            misses=_picks(data, "misses", with_role=False) if "misses" in data else (),
            none_reason=_get(data, "none_reason", (str, type(None)), None),
            index=_get(data, "index", dict, {}),
            encoder=_get(data, "encoder", (str, type(None)), None),
            tower=_get(data, "tower", (str, type(None)), None),
            notes=_strings(data, "notes", "notes"),
        )


_KNOWN = ("format", "prompt", "family", "picks", "misses", "none_reason", "index", "encoder", "tower", "notes")
_KNOWN_PICK = ("name", "hash", "path", "role", "strength", "score", "parts", "reason", "triggers", "neighbours")
PARTS = ("weights", "text", "lexical", "response", "picture")
_REQUIRED = object()


def _mapping(data: Any, key: str, known: tuple[str, ...]) -> Mapping:
    if not isinstance(data, Mapping):
        raise SelectionError(f"{key} must be an object, not {type(data).__name__}", key=key, fix=_FIX)
    strange = sorted(str(name) for name in data if name not in known)
    if strange:
        raise SelectionError(
            f"{key} has unknown field {strange[0]!r}", key=strange[0], fix=f"use only {', '.join(known)}"
        )
    return data


def _get(data: Mapping, key: str, kind: type | tuple[type, ...], default: Any = _REQUIRED, at: str = "") -> Any:
    value = data.get(key, default)
    if value is _REQUIRED:
        raise SelectionError(f"{at}{key} is missing", key=at + key, fix=_FIX)
    if not isinstance(value, kind):
        raise SelectionError(f"{at}{key} has the wrong type {type(value).__name__}", key=at + key, fix=_FIX)
    return value


def _number(data: Mapping, key: str, default: Any, at: str, low: float = -math.inf, high: float = math.inf) -> Any:
    value = _get(data, key, (int, float) if default is not None else (int, float, type(None)), default, at)
    if value is None:
        return None
    low, high = max(low, -LARGEST), min(high, LARGEST)  # JSON also has whole numbers that no float holds
    if isinstance(value, bool) or not low <= value <= high:
        allowed = "a finite number" if low == -LARGEST else f"a number from {low:g} to {high:g}"
        raise SelectionError(f"{at}{key} must be {allowed}, not {value!r}", key=at + key, fix=_FIX)
    return float(value)


def _strings(data: Mapping, key: str, at: str) -> tuple[str, ...]:
    values = _get(data, key, (list, tuple), (), at.removesuffix(key))
    for value in values:
        if not isinstance(value, str):
            raise SelectionError(f"{at} must hold strings, not {type(value).__name__}", key=at, fix=_FIX)
    return tuple(values)


def _picks(data: Mapping, key: str, with_role: bool) -> tuple[Pick, ...]:
    return tuple(
        _pick(item, f"{key}[{i}].", with_role) for i, item in enumerate(_get(data, key, (list, tuple), _REQUIRED))
    )


def _pick(data: Any, at: str, with_role: bool) -> Pick:
    data = _mapping(data, at.rstrip("."), _KNOWN_PICK)
    role = _get(data, "role", str, _REQUIRED, at) if with_role else None
    if role is not None and role not in ROLES:
        raise SelectionError(f"{at}role must be one of {', '.join(ROLES)}, not {role!r}", key=f"{at}role", fix=_FIX)
    name = _get(data, "name", str, _REQUIRED, at)
    if not name:
        raise SelectionError(f"{at}name is empty", key=f"{at}name", fix=_FIX)
    parts = _mapping(_get(data, "parts", Mapping, {}, at), f"{at}parts", PARTS)
    return Pick(
        name=name,
        hash=_get(data, "hash", str, "", at),
        path=_get(data, "path", str, "", at),
        role=role,
        strength=_number(data, "strength", _REQUIRED, at),
        score=_number(data, "score", 0.0, at, 0.0, 1.0),
        parts=Parts(**{part: _number(parts, part, None, f"{at}parts.", 0.0, 1.0) for part in parts}),
        reason=_get(data, "reason", str, "", at),
        triggers=_strings(data, "triggers", f"{at}triggers"),
        neighbours=_neighbours(data, f"{at}neighbours"),
    )


def _neighbours(data: Mapping, at: str) -> tuple[Neighbour, ...]:
    """None in selections of older versions."""
    found = []
    for i, item in enumerate(_get(data, "neighbours", (list, tuple), (), at.removesuffix("neighbours"))):
        item = _mapping(item, f"{at}[{i}]", ("name", "words", "similarity"))
        name, words = (_get(item, key, str, _REQUIRED, f"{at}[{i}].") for key in ("name", "words"))
        found.append(Neighbour(name, words, _number(item, "similarity", _REQUIRED, f"{at}[{i}].", -1.0, 1.0)))
    return tuple(found)
