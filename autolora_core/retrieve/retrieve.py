"""The question itself: a library and a prompt in, a :class:`Selection` out."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from ..encode.encoder import WeightEncoder
from ..encode.towers import TextTower, default_tower
from ..errors import FamilyError, SelectionError
from . import explain
from .score import Evidence, Scorer, said_role
from .select import Choice, choose
from .selection import Parts, Pick, Selection
from .spans import Span, decompose
from .tune import Calibration, calibrate, near_groups
from .view import EntryLike, LibraryView

USABLE_KINDS = frozenset({"lora", "text_encoder_only"})
CACHED_LIBRARIES = 4
_cache: OrderedDict[str, Prepared] = OrderedDict()
_cache_lock = threading.Lock()


@dataclass(frozen=True)
class Prepared:
    """One family of a library, ready to be asked; ``notes`` say what could not be used and why."""

    scorer: Scorer
    groups: np.ndarray
    calibration: Calibration
    use_weights: bool
    use_text: bool
    encoder: str | None
    notes: tuple[str, ...]


def retrieve(
    library: LibraryView,
    prompt: str,
    *,
    family: str | None = None,
    top_k: int = 3,
    threshold: float = 0.5,
    pinned: Iterable[str] = (),
    banned: Iterable[str] = (),
    use_weights: bool = True,
    use_text: bool = True,
    strength: float = 1.0,
    tower: TextTower | None = None,
) -> Selection:
    """Choose the LoRAs for ``prompt``.

    ``library``: a :class:`LibraryView`, such as the pack's own ``Library``. ``family``: only LoRAs of this base family;
    None takes the library's largest. ``top_k`` bounds the picks, pinned ones included; ``threshold`` is the least
    probability of fitting. ``pinned``: names (or unique stems, or hashes) that are always in, ``name:0.7`` sets their
    strength; ``banned``: names or patterns with ``*``. ``tower``: default MiniLM, or the lexical tower where it is not
    installed. The answer depends on the arguments and the library alone, not on what was asked before. Raises
    :class:`SelectionError` for a pinned name that is not there and ``FamilyError`` for one of another family.
    """
    _check(top_k, threshold, strength)
    everything = list(library.entries())
    family, notes = _family(everything, family)
    prepared = _prepare(library, family, tower or default_tower(), use_weights, use_text)
    scorer = prepared.scorer
    taken, shut, said = _wishes(scorer.entries, everything, family, pinned, banned, strength)
    spans = decompose(prompt)
    evidence = scorer.evidence(spans, prepared.use_weights, prepared.use_text)
    chosen = choose(
        scorer, spans, evidence, prepared.calibration, prepared.groups,
        top_k=max(0, top_k - len(taken)), threshold=threshold, taken=[lora for lora, _ in taken], banned=shut,
    )  # fmt: skip
    answer = _Answer(scorer, spans, evidence, strength)
    picks = [answer.pinned(lora, power) for lora, power in taken] + [answer.pick(choice) for choice in chosen.picks]
    full = len(picks) >= top_k
    misses = [answer.miss(choice, threshold, full) for choice in chosen.misses]
    none = None
    if not chosen.picks and not taken and top_k:
        near = [(scorer.entries[c.lora].name, c.score, spans[c.span].text) for c in chosen.misses]
        none = explain.none_reason(scorer, threshold, near, f" ({family})" if family else "")
        if not spans:
            none = "No LoRA was added: the prompt has no words to match."
    return Selection(
        prompt, family, tuple(picks), tuple(misses), none, library.handle, prepared.encoder, scorer.tower.id,
        (*notes, *said, *prepared.notes),
    )  # fmt: skip


def _check(top_k: int, threshold: float, strength: float) -> None:
    if top_k < 0:
        raise SelectionError(f"top_k must not be negative, it is {top_k}", key="top_k")
    if not 0 <= threshold <= 1:
        raise SelectionError(f"threshold must lie between 0 and 1, it is {threshold}", key="threshold")
    if not math.isfinite(strength):
        raise SelectionError(f"strength must be a finite number, it is {strength}", key="strength")


def _family(entries: Sequence[EntryLike], family: str | None) -> tuple[str, list[str]]:
    """The family to search, and notes on what that leaves out."""
    counts = Counter(entry.family for entry in entries if entry.kind in USABLE_KINDS)
    notes = []
    if family is None:
        known = sorted((name for name in counts if name != "unknown"), key=lambda name: (-counts[name], name))
        family = known[0] if known else "unknown"
        if len(known) > 1:
            notes.append(f"Searched the LoRAs for {family}, the largest group; connect a model to choose another.")
    others = sorted((name, count) for name, count in counts.items() if name != family)
    if others:
        listed = ", ".join(f"{count} for {name}" for name, count in others)
        notes.append(f"Left out, made for another base model: {listed}.")
    return family, notes


def _prepare(view: LibraryView, family: str, tower: TextTower, use_weights: bool, use_text: bool) -> Prepared:
    """Make a family ready, or take it from the cache when nothing it depends on has changed."""
    encoder = view.encoder(family, tower.id)
    state = [view.handle, family, tower.id, encoder.id if encoder else None, use_weights, use_text]
    key = json.dumps(state, sort_keys=True, default=str) if view.handle else None
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    prepared = _prepare_cold(view, family, tower, encoder, use_weights, use_text)
    if key is not None:
        with _cache_lock:
            _cache[key] = prepared
            while len(_cache) > CACHED_LIBRARIES:
                _cache.popitem(last=False)
    return prepared


def _prepare_cold(view, family, tower, encoder: WeightEncoder | None, use_weights, use_text) -> Prepared:
    notes = []
    if use_weights and encoder is None:
        notes.append("Weights were not used: no encoder has been fitted for this base model and text tower.")
    elif use_weights and not encoder.usable:
        notes.append("Weights were not used: too few LoRAs of this base model have words to learn their meaning from.")
    reading = encoder if use_weights and encoder is not None and encoder.usable else None
    entries = [entry for entry in view.entries(family) if entry.kind in USABLE_KINDS and entry.hash]
    vectors = view.vectors(family, reading.id) if reading is not None else None
    scorer = Scorer(entries, view.text_tower(tower), reading, vectors)
    groups = near_groups(scorer, list(view.near_duplicates(family)))
    weights = reading is not None and bool(scorer.has_vector.any())
    calibration = calibrate(scorer, groups, weights, use_text)
    silent = int((~((scorer.has_vector & weights) | (scorer.has_text & use_text))).sum())
    if silent:
        notes.append(f"{silent} LoRAs have neither words nor usable weights and could not be considered.")
    return Prepared(scorer, groups, calibration, weights, use_text, reading.id if reading else None, tuple(notes))


def _wishes(entries, everything, family, pinned, banned, strength) -> tuple[list[tuple[int, float]], np.ndarray, list]:
    """Pinned LoRAs with their strengths, the banned mask (N,), and notes on bans that hit nothing."""
    notes, shut = [], np.zeros(len(entries), bool)
    for pattern in _lines(banned):
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
        found = [i for i, entry in enumerate(entries) if _plain(entry.name) == _plain(wanted)]
        found = found or [i for i, entry in enumerate(entries) if _is_called(entry, wanted)]
        if len({entries[i].hash for i in found}) == 1:
            return found[0], wished
        if found:
            names = ", ".join(sorted(entries[i].name for i in found))
            raise SelectionError(f"pinned {wanted!r} is ambiguous: {names}", key="pinned", fix="use the full name")
        other = [entry for entry in everything if _is_called(entry, wanted) and entry.family != family]
        if other:
            raise FamilyError(
                f"pinned {other[0].name} is a LoRA for {other[0].family}, the model is {family}",
                key="pinned", fix="remove it from the pinned names",
            )  # fmt: skip
    raise SelectionError(
        f"pinned {line!r} is not in the library", key="pinned",
        fix="write the name as the loras list shows it, or run Encode LoRA Library again",
    )  # fmt: skip


def _plain(name: str) -> str:
    return name.replace("\\", "/").lower()


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


@dataclass(frozen=True)
class _Answer:
    """Choices → picks and misses."""

    scorer: Scorer
    spans: Sequence[Span]
    evidence: Evidence
    strength: float

    def pick(self, choice: Choice) -> Pick:
        return self._made(choice, self._role(choice), self.strength, self._reason(choice))

    def miss(self, choice: Choice, threshold: float, full: bool) -> Pick:
        why = "No room left." if full and choice.score >= threshold else "Not sure enough."
        return self._made(choice, None, self.strength, explain.miss_reason(why, self._reason(choice)))

    def pinned(self, lora: int, strength: float) -> Pick:
        span = int(self.evidence.logit[:, lora].argmax()) if len(self.spans) else -1
        return self._made(Choice(lora, span, 1.0), "pinned", strength, "Pinned by you.")

    def _reason(self, choice: Choice) -> str:
        return explain.reason(self.scorer, self.spans, self.evidence, choice)

    def _role(self, choice: Choice) -> str:
        hint = self.spans[choice.span].hint
        said = said_role(self.scorer.entries[choice.lora])
        if said:
            return "style" if said > 0 else "subject"
        return hint or ("style" if self.scorer.roles[choice.lora] > 0.25 else "subject")

    def _made(self, choice: Choice, role: str | None, strength: float, reason: str) -> Pick:
        entry = self.scorer.entries[choice.lora]
        parts = Parts()
        if choice.span >= 0:
            at, found = (choice.span, choice.lora), self.evidence
            parts = Parts(*(_or_none(part[at]) for part in (found.weights, found.text, found.lexical)))
        score, triggers = round(choice.score, 4), tuple(entry.text.triggers)
        return Pick(entry.name, entry.hash, entry.path, role, strength, score, parts, reason, triggers)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)
