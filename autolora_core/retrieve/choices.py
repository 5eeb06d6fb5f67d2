"""What the user chose on the cards of single LoRAs: strength, trigger words, role. JSON text that travels in the graph.

    {"format": "autolora-choices/1",
     "loras": {"otter.safetensors": {"strength": 0.6, "triggers": {"brown fur": false}, "role": "style"}}}

A choice stays for as long as it stands in the text, whether its LoRA is picked or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import SelectionError
from ..wording import counted, listed, shown
from .names import Names, closest, plain
from .selection import Pick, Selection

FORMAT = "autolora-choices/1"
FIRST_TRIGGERS = 3  # so many of a pick's trigger words go into the prompt unless the user chose otherwise
ROLES = ("subject", "style")
LARGEST_TEXT, MOST_STRENGTH = 4_000_000, 10.0  # signs; the node's own strength input has the same bounds
_FIX = "empty the input choices to forget what was chosen on the cards"


@dataclass(frozen=True)
class Choice:
    """Of one LoRA. None and absent words mean: as the node decides; ``triggers``: word → whether the prompt gets it."""

    strength: float | None = None
    triggers: Mapping[str, bool] = field(default_factory=dict)
    role: str | None = None


@dataclass(frozen=True)
class Chosen:
    """A selection after the choices. ``words``: pick's name → the trigger words that the prompt is to get."""

    selection: Selection
    words: dict[str, tuple[str, ...]]


def read_choices(text: str) -> dict[str, Choice]:
    """LoRA's name → what was chosen for it; empty text is no choice. Raises :class:`SelectionError` naming the first
    thing that is wrong."""
    if not text.strip():
        return {}
    if len(text) > LARGEST_TEXT:
        raise _wrong(f"choices holds {len(text):,} signs, more than {LARGEST_TEXT:,}", "choices")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"choices is not JSON: {error}", "choices") from error
    data = _fields(data, "choices", ("format", "loras"))
    if data.get("format") != FORMAT:
        raise _wrong(f"choices are not of format {FORMAT}: format is {data.get('format')!r}", "choices.format")
    return {name: _choice(one, f"choices.loras[{name!r}]") for name, one in _object(data, "loras").items()}


def apply_choices(selection: Selection, choices: Mapping[str, Choice], known: Names | Iterable[str]) -> Chosen:
    """The selection with every pick as chosen, and its ``notes`` saying what that changed. ``known``: the names of all
    LoRAs in the library; choices for others are noted, those for LoRAs that were not picked wait."""
    known = known if isinstance(known, Names) else Names(known)
    picks, words, notes = [], {}, []
    keys = _by_name(choices)
    used = {pick.name: _key(keys.get(plain(pick.name), ()), pick.name, known) for pick in selection.picks}
    for pick in selection.picks:
        key = used[pick.name]
        made, on, said = _applied(pick, Choice() if key is None else choices[key])
        picks.append(made)
        words[pick.name] = on
        notes += [f"As chosen on its card, {shown(pick.name)}: {', '.join(said)}."] if said else []
    notes += _idle(choices, used, known)
    if not notes:
        return Chosen(replace(selection, picks=tuple(picks)), words)
    return Chosen(replace(selection, picks=tuple(picks), notes=(*notes, *selection.notes)), words)


def _by_name(choices: Mapping[str, Choice]) -> dict[str, list[str]]:
    """Name without case and ending → the keys that may mean it."""
    keys: dict[str, list[str]] = {}
    for key in choices:
        keys.setdefault(plain(key), []).append(key)
    return keys


def _key(keys: Iterable[str], name: str, known: Names) -> str | None:
    """The key that means this LoRA and no other, the closest of several; None where that is not one."""
    own = [key for key in keys if _meant(key, known, name) == [name]]
    found = closest(name, own, whole=True)
    return found[0] if len(found) == 1 else None


def _meant(key: str, known: Names, *more: str) -> list[str]:
    return closest(key, list(dict.fromkeys([*more, *known.namesakes(key)])), whole=True)


def _applied(pick: Pick, choice: Choice) -> tuple[Pick, tuple[str, ...], list[str]]:
    """The pick, the trigger words for the prompt, and what differs from what the node had decided."""
    said = []
    if choice.strength is not None and choice.strength != pick.strength:
        said.append(f"strength {choice.strength:g} instead of {pick.strength:g}")
        pick = replace(pick, strength=choice.strength)
    if choice.role is not None and choice.role != pick.role:
        said.append(f"{choice.role} instead of {pick.role}")
        pick = replace(pick, role=choice.role)
    on = tuple(word for at, word in enumerate(pick.triggers) if choice.triggers.get(word, at < FIRST_TRIGGERS))
    off = [word for word in pick.triggers[:FIRST_TRIGGERS] if word not in on]
    more = [word for word in pick.triggers[FIRST_TRIGGERS:] if word in on]
    strange = [word for word in choice.triggers if word not in pick.triggers]
    said += [f"without {_quoted(off)}"] if off else []
    said += [f"with {_quoted(more)}"] if more else []
    said += [f"{_quoted(strange)} not among its trigger words"] if strange else []
    if off or more:
        # Whoever goes by a pick's words (mode ssr, other packs) gets those that are on first, and none that is off.
        rest = [word for word in pick.triggers if word not in on and choice.triggers.get(word) is not False]
        pick = replace(pick, triggers=(*on, *rest))
    return pick, on, said


def _idle(choices: Mapping[str, Choice], used: Mapping[str, str | None], known: Names) -> list[str]:
    """Notes on choices that changed nothing. ``used``: pick's name → its key."""
    strange, unsure, waiting = [], [], 0
    for key in choices:
        found = _meant(key, known, *(name for name, its in used.items() if its == key))
        if not found:
            strange.append(shown(key))
        elif len(found) > 1 or (found[0] in used and used[found[0]] != key):
            unsure.append(shown(key))
        elif found[0] not in used:
            waiting += 1
    notes = []
    if strange:
        notes.append(f"Choices for LoRAs that are not in the library changed nothing: {listed(strange)}.")
    if unsure:
        why = "another choice or another file has nearly that name"
        notes.append(f"Choices that changed nothing, {why}: {listed(unsure)}.")
    if waiting:
        notes.append(f"Choices kept for {counted(waiting, 'LoRA')} not picked this time.")
    return notes


def _quoted(words: Iterable[str]) -> str:
    return listed([f"“{shown(word)}”" for word in words])


def _wrong(message: str, key: str) -> SelectionError:
    return SelectionError(message, key=key, fix=_FIX)


def _fields(data: Any, at: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise _wrong(f"{at} must be an object, not {type(data).__name__}", at)
    strange = sorted(set(data) - set(known))
    if strange:
        raise _wrong(f"{at} has unknown field {strange[0]!r}: only {', '.join(known)} are known", at)
    return data


def _object(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise _wrong(f"choices.{key} must be an object, not {type(value).__name__}", f"choices.{key}")
    return value


def _choice(data: Any, at: str) -> Choice:
    data = _fields(data, at, ("strength", "triggers", "role"))
    strength, triggers, role = data.get("strength"), data.get("triggers", {}), data.get("role")
    if strength is not None:
        number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
        if not number or not -MOST_STRENGTH <= strength <= MOST_STRENGTH:
            bounds = f"a number from {-MOST_STRENGTH:g} to {MOST_STRENGTH:g}"
            raise _wrong(f"{at}.strength must be {bounds}, not {repr(strength)[:40]}", f"{at}.strength")
    if not isinstance(triggers, dict) or not all(isinstance(on, bool) for on in triggers.values()):
        raise _wrong(f"{at}.triggers must hold true or false for every word", f"{at}.triggers")
    if role is not None and role not in ROLES:
        raise _wrong(f"{at}.role must be {' or '.join(ROLES)}, not {role!r}", f"{at}.role")
    return Choice(None if strength is None else float(strength), triggers, role)
