"""The question itself: a library and a prompt in, a :class:`Selection` out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..encode.threads import one_thread
from ..encode.towers import TextTower, default_tower
from ..errors import SelectionError
from ..library.answers import StateSource
from ..wording import listed
from . import explain
from .candidates import USABLE_KINDS, is_for, is_for_shared_encoders
from .near import Near, mixed, pick_note, set_apart
from .neighbours import Neighbourhood
from .prepare import Progress, prepare
from .score import Evidence, Scorer, said_role
from .select import Choice, choose
from .selection import Parts, Pick, Selection
from .spans import Span, decompose
from .view import EntryLike, LibraryView
from .wishes import read_wishes


@one_thread()
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
    base: StateSource | None = None,
    progress: Progress | None = None,
    near: Near | None = None,
) -> Selection:
    """Choose the LoRAs for ``prompt``.

    ``library``: a :class:`LibraryView`, such as the pack's own ``Library``. ``family``: only LoRAs of this base family;
    None takes the library's largest. ``top_k`` bounds the picks, pinned ones included; ``threshold`` is the least
    probability of fitting. ``pinned``: names (or unique stems, or hashes) that are always in, ``name:0.7`` sets their
    strength; ``banned``: names or patterns with ``*``. ``tower``: default MiniLM, or the lexical tower where it is not
    installed. ``base``: the base model with its text encoder; with it, and ``use_weights``, the LoRAs themselves are
    asked what they do to the words, which finds files that nobody described. ``near``: the model's size and lineage,
    and the lineage wanted. ``progress(done, total, text)`` is called while a library is made ready and may raise to
    interrupt; what was done is kept. The answer depends on the arguments and the library alone, not on what was asked
    before. Raises :class:`SelectionError` for a pinned name that is not there and ``FamilyError`` for one of another
    family or size.
    """
    _check(top_k, threshold, strength)
    everything = list(library.entries())
    family, notes = _family(everything, family)
    asking = library.asking(base) if base is not None and use_weights else None
    prepared = prepare(library, family, tower or default_tower(), use_weights, use_text, progress, asking)
    scorer = prepared.scorer
    taken, shut, said = read_wishes(scorer.entries, everything, family, pinned, banned, strength)
    near = near or Near()
    apart, told = set_apart(scorer.entries, family, near, [lora for lora, _ in taken])
    spans = decompose(prompt)
    evidence = scorer.evidence(spans, prepared.use_weights, prepared.use_text, asking, progress)
    chosen = choose(
        scorer, spans, evidence, prepared.calibration, prepared.groups,
        top_k=max(0, top_k - len(taken)), threshold=threshold, taken=[lora for lora, _ in taken], banned=shut | apart,
    )  # fmt: skip
    answer = _Answer(scorer, spans, evidence, strength, prepared.neighbourhood, family, near)
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
        (*notes, *said, *told, *answer.together(picks), *prepared.notes),
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
    return family, notes


_KINDS = {"not_a_lora": "not a LoRA, or damaged", "all_zero": "all zero"}


def _some(names: Sequence[str]) -> str:
    return listed(sorted(names), 5)


@dataclass(frozen=True)
class _Answer:
    """Choices → picks and misses."""

    scorer: Scorer
    spans: Sequence[Span]
    evidence: Evidence
    strength: float
    neighbourhood: Neighbourhood | None
    family: str
    near: Near

    def together(self, picks: Sequence[Pick]) -> list[str]:
        """What is to be told of the picks as a set."""
        names = {pick.name for pick in picks}
        return mixed([entry for entry in self.scorer.entries if entry.name in names and entry.family == self.family])

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
            parts = Parts(*(_or_none(part[at]) for part in (found.weights, found.text, found.lexical, found.response)))
        if entry.kind == "text_encoder_only":
            reason += " It changes the text encoder only: connect CLIP where it is applied."
        reason += pick_note(entry, self.family, self.near) if role is not None else ""
        near = self.neighbourhood.nearest(choice.lora) if self.neighbourhood is not None else ()
        reason += explain.neighbours(near, bool(self.scorer.has_text[choice.lora]), role is not None)
        score, triggers = round(choice.score, 4), tuple(entry.text.triggers)
        return Pick(entry.name, entry.hash, entry.path, role, strength, score, parts, reason, triggers, near)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)
