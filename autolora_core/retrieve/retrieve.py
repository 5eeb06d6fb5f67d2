"""The question itself: a library and a prompt in, a :class:`Selection` out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..encode.threads import one_thread
from ..encode.towers import TextTower, default_tower
from ..errors import SelectionError
from ..library.answers import StateSource
from . import explain
from .evidence import hints, losses
from .finalists import BEGIN, Finalists
from .near import Near, mixed, pick_note, refuse_other_sizes
from .picture_part import PictureSource
from .prepare import Prepared, Progress, prepare
from .roles import said_role
from .sayings import distinct
from .score import ROLE_WEIGHT, Asked, Evidence, Scorer
from .select import MISSES, Choice, Chosen, choose
from .selection import Neighbour, Parts, Pick, Selection
from .spans import Span, decompose
from .survey import survey
from .view import EntryLike, LibraryView
from .wishes import read_wishes

# Each part of the evidence proposes more LoRAs at first where more are to be chosen.
FEW_PICKS, MOST_AT_FIRST = 8, 96


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
    pictures: PictureSource | None = None,
) -> Selection:
    """Choose the LoRAs for ``prompt``.

    ``library``: a :class:`LibraryView`, such as the pack's own ``Library``. ``family``: only LoRAs of this base family;
    None takes the library's largest. ``top_k`` bounds the picks, pinned ones included; ``threshold`` is the least
    probability of fitting. ``pinned``: names (or unique stems, or hashes) that are always in, ``name:0.7`` sets their
    strength; ``banned``: names or patterns with ``*``. ``tower``: default MiniLM, or the lexical tower where it is not
    installed. ``base``: the base model with its text encoder; with it, and ``use_weights``, the LoRAs themselves are
    asked what they do to the words, which finds files that nobody described. ``near``: the model's size and lineage,
    and the lineage wanted. ``pictures``: the library's previews, for the part of the score that goes by what LoRAs do
    to pictures. ``progress(done, total, text)`` is called while a library is made ready and may raise to interrupt;
    what was done is kept. The answer depends on the arguments and the library alone, not on what was asked before.
    Raises :class:`SelectionError` for a pinned name that is not there and ``FamilyError`` for one of another family or
    size.
    """
    _check(top_k, threshold, strength)
    handle, near = library.handle, near or Near()
    everything = survey(library, handle)
    family, notes = everything.family(family)
    asking = library.asking(base) if base is not None and use_weights else None
    prepared = prepare(
        library, family, tower or default_tower(), use_weights, use_text, progress, asking, handle,
        pictures,
    )  # fmt: skip
    scorer = prepared.scorer
    taken, shut, said = read_wishes(scorer.entries, everything.entries, family, pinned, banned, strength)
    pins = [lora for lora, _ in taken]
    refuse_other_sizes([scorer.entries[lora] for lora in pins], family, near)
    apart, told = prepared.apart(family, near)
    spans = decompose(prompt)
    asked = scorer.ask(spans, prepared.use_weights, prepared.use_text, asking, progress)
    evidence, chosen, how = _chosen(prepared, spans, asked, shut | apart, pins, max(0, top_k - len(taken)), threshold)
    shown = [*pins, *(int(evidence.loras[choice.lora]) for choice in [*chosen.picks, *chosen.misses])]
    neighbours = prepared.neighbourhood.nearest(shown) if prepared.neighbourhood is not None else [()] * len(shown)
    nearest = dict(zip(shown, neighbours, strict=True))
    answer = _Answer(scorer, spans, evidence, strength, nearest, family, near)
    picks = [answer.pinned(lora, power) for lora, power in taken] + [answer.pick(choice) for choice in chosen.picks]
    full = len(picks) >= top_k
    misses = [answer.miss(choice, threshold, full) for choice in chosen.misses]
    none = None
    if not chosen.picks and not taken and top_k:
        near = [(answer.entry(c).name, c.score, spans[c.span].text) for c in chosen.misses]
        none = explain.none_reason(scorer, threshold, near, f" ({family})" if family else "")
        if not spans:
            none = "No LoRA was added: the prompt has no words to match."
    return Selection(
        prompt, family, tuple(picks), tuple(misses), none, handle, prepared.encoder, scorer.tower.id,
        (*notes, *said, *told, *answer.together(pins, chosen.picks), *prepared.notes,
         *([how] if how else [])),
    )  # fmt: skip


def _chosen(
    prepared: Prepared, spans: Sequence[Span], asked: Asked, shut: np.ndarray, pins: Sequence[int], top_k: int,
    threshold: float,
) -> tuple[Evidence, Chosen, str | None]:  # fmt: skip
    """The choice among all LoRAs that are not ``shut``, the evidence it was made on, and a note on how weights were
    searched: LoRAs are added until no decision depends on one that is missing."""
    scorer = prepared.scorer
    begin = MOST_AT_FIRST if top_k + len(pins) + MISSES > FEW_PICKS else BEGIN
    finalists = Finalists(scorer, asked, ROLE_WEIGHT * hints(spans), losses(spans), begin, shut, quick=True)
    # What the bounds of the other parts say nothing of is scored: all LoRAs with previews.
    first = distinct(np.concatenate([finalists.first(), np.array(pins, int), np.flatnonzero(scorer.pictured)]))
    evidence = scorer.evidence_of(asked, spans, first)
    while True:
        columns = np.searchsorted(evidence.loras, pins)
        chosen = choose(
            spans, evidence, prepared.calibration, prepared.groups[evidence.loras],
            top_k=top_k, threshold=threshold, taken=columns.tolist(), banned=shut[evidence.loras],
        )  # fmt: skip
        missing = finalists.missing(chosen.levels, evidence.loras)
        if not len(missing):
            return evidence, chosen, finalists.note()
        evidence = evidence.joined(scorer.evidence_of(asked, spans, missing))


def _check(top_k: int, threshold: float, strength: float) -> None:
    if top_k < 0:
        raise SelectionError(f"top_k must not be negative, it is {top_k}", key="top_k")
    if not 0 <= threshold <= 1:
        raise SelectionError(f"threshold must lie between 0 and 1, it is {threshold}", key="threshold")
    if not math.isfinite(strength):
        raise SelectionError(f"strength must be a finite number, it is {strength}", key="strength")


@dataclass(frozen=True)
class _Answer:
    """Choices → picks and misses."""

    scorer: Scorer
    spans: Sequence[Span]
    evidence: Evidence
    strength: float
    nearest: Mapping[int, tuple[Neighbour, ...]]
    family: str
    near: Near

    def entry(self, choice: Choice) -> EntryLike:
        """The LoRA of a choice."""
        return self.scorer.entries[self.evidence.loras[choice.lora]]

    def together(self, pins: Sequence[int], choices: Sequence[Choice]) -> list[str]:
        """What is to be told of the picks as a set."""
        entries = [*(self.scorer.entries[lora] for lora in pins), *map(self.entry, choices)]
        return mixed([entry for entry in entries if entry.family == self.family])

    def pick(self, choice: Choice) -> Pick:
        return self._made(choice, self._role(choice), self.strength, self._reason(choice))

    def miss(self, choice: Choice, threshold: float, full: bool) -> Pick:
        why = "No room left." if full and choice.score >= threshold else "Not sure enough."
        return self._made(choice, None, self.strength, explain.miss_reason(why, self._reason(choice)))

    def pinned(self, lora: int, strength: float) -> Pick:
        column = int(np.searchsorted(self.evidence.loras, lora))
        span = int(self.evidence.logit[:, column].argmax()) if len(self.spans) else -1
        return self._made(Choice(column, span, 1.0), "pinned", strength, "Pinned by you.")

    def _reason(self, choice: Choice) -> str:
        return explain.reason(self.scorer, self.spans, self.evidence, choice)

    def _role(self, choice: Choice) -> str:
        hint = self.spans[choice.span].hint
        said = said_role(self.entry(choice))
        if said:
            return "style" if said > 0 else "subject"
        return hint or ("style" if self.scorer.roles_of(self.evidence.loras[choice.lora]) > 0.25 else "subject")

    def _made(self, choice: Choice, role: str | None, strength: float, reason: str) -> Pick:
        entry, lora = self.entry(choice), int(self.evidence.loras[choice.lora])
        parts = Parts()
        if choice.span >= 0:
            at, found = (choice.span, choice.lora), self.evidence
            own = (found.weights, found.text, found.lexical, found.response, found.picture)
            parts = Parts(*(None if part is None else _or_none(part[at]) for part in own))
        if entry.kind == "text_encoder_only":
            reason += " It changes the text encoder only: connect CLIP where it is applied."
        reason += pick_note(entry, self.family, self.near) if role is not None else ""
        near = self.nearest[lora]
        reason += explain.neighbours(near, bool(self.scorer.has_text[lora]), role is not None)
        score, triggers = round(choice.score, 4), tuple(entry.text.triggers)
        return Pick(entry.name, entry.hash, entry.path, role, strength, score, parts, reason, triggers, near)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)
