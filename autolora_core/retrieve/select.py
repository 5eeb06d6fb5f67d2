"""Choosing a set: every pick must explain words of the prompt that no earlier pick explains.

Greedy coverage (the set function "words explained" is submodular: Nemhauser, Wolsey and Fisher 1978), restricted to
phrases whose words are all still free, so that a subject and a style are found instead of k of one kind. A
near-duplicate of a pick is never picked.

Most LoRAs of a large library are not scored at all (:mod:`.finalists`). Every decision therefore says down to which
log odds it must know all LoRAs, phrase by phrase: below that nothing could have changed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .leaders import none_fits_evidence, top_of
from .score import Evidence
from .spans import Span
from .tune import Calibration

MISSES, FOREMOST = 3, 8
# Beyond these log odds a LoRA fits, and how surely no longer decides which comes first; then the other kind does.
SURE = 3.0
NEW_KIND_BONUS = 1.0
TIE, MARGIN = 1e-9, 1e-6


@dataclass(frozen=True)
class Choice:
    """The LoRA in column ``lora`` of the evidence explains ``span`` (an index) with probability ``score``."""

    lora: int
    span: int
    score: float


@dataclass(frozen=True)
class Chosen:
    """``picks`` in order, ``misses`` best first. ``levels`` (S,): every LoRA whose log odds for a phrase reach its
    level must have been among the evidence."""

    picks: list[Choice]
    misses: list[Choice]
    levels: np.ndarray


def choose(
    spans: Sequence[Span],
    evidence: Evidence,
    calibration: Calibration,
    groups: np.ndarray,
    *,
    top_k: int,
    threshold: float,
    taken: Sequence[int] = (),
    banned: np.ndarray | None = None,
) -> Chosen:
    """Pick up to ``top_k`` LoRAs with a probability of at least ``threshold``.

    ``groups``, ``taken`` and ``banned`` are of the evidence's columns. ``taken`` are LoRAs already in (pinned): the
    words they clearly explain are no longer free. ``banned`` (C,) bool are never picked nor listed.
    """
    closed = np.zeros(len(groups), bool) if banned is None else banned.copy()
    free, levels = np.ones(len(spans), bool), np.full(len(spans), np.inf)
    for lora in taken:
        closed |= groups == groups[lora]
        if len(spans):
            span = int(evidence.logit[:, lora].argmax())
            if evidence.logit[span, lora] > 0:
                free &= _apart(spans, span)
    calibration.ruler.of(_foremost(evidence, closed, top_k + MISSES))  # together they take half the time
    picks: list[Choice] = []
    while len(picks) < top_k and free.any():
        if closed.all():
            levels[free] = -np.inf
            break
        kinds = {spans[pick.span].hint == "style" for pick in picks}
        choice = _best(evidence, spans, calibration, groups, free, closed, kinds, levels)
        if choice.score < threshold:
            break
        picks.append(choice)
        closed |= groups == groups[choice.lora]
        free &= _apart(spans, choice.span)
    return Chosen(picks, _misses(evidence, calibration, groups, free, closed, levels), levels)


def _foremost(evidence: Evidence, closed: np.ndarray, count: int) -> np.ndarray:
    """Of the open LoRAs those with the largest log odds for any phrase: most of what will be shown."""
    reach = np.where(closed, -np.inf, evidence.logit.max(axis=0, initial=-np.inf))
    return evidence.loras[np.argsort(-reach, kind="stable")[: min(count, FOREMOST)]]


def _apart(spans: Sequence[Span], chosen: int) -> np.ndarray:
    """Which spans share no word with the chosen one."""
    return np.array([not span.words & spans[chosen].words for span in spans])


def _best(evidence, spans, calibration, groups, free, closed, kinds, levels) -> Choice:
    """The open LoRA and free span with the largest log odds, up to :data:`SURE`.

    Among sure ones the kind (style or not) that was not picked yet comes first, then one phrase before several, the
    longer span, the larger log odds, the smaller hash.
    """
    logit = np.where(free[:, None] & ~closed[None], evidence.logit, -np.inf)
    new = np.array([bool(kinds) and (span.hint == "style") not in kinds for span in spans])
    worth = np.minimum(logit, SURE) + NEW_KIND_BONUS * new[:, None] * (logit > 0)
    most = worth.max()
    at, loras = np.nonzero(worth >= most - TIE)
    joined, words = (np.array(own)[at] for own in ([s.joined for s in spans], [-len(s.words) for s in spans]))
    first = np.lexsort((at, loras, -np.round(logit[at, loras], 9), words, joined))[0]
    span, lora = int(at[first]), int(loras[first])
    needed = _needed(most, span, float(logit[span, lora]), new, spans)
    levels[free] = np.minimum(levels[free], needed[free])
    score = _probability(evidence, span, lora, closed, calibration, groups, levels)
    return Choice(lora, span, score)


def _needed(most: float, chosen: int, own: float, new: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """(S,) the log odds that a LoRA which is not among the evidence would need for each span to be chosen instead of
    one worth ``most`` that has ``own`` log odds for the span ``chosen``; ∞ where none would do."""
    needed = most - NEW_KIND_BONUS * new
    # Where no log odds make it worth more, the order of equals decides.
    order = [(span.joined, -len(span.words)) for span in spans]
    behind = np.array([one > order[chosen] for one in order])
    level = np.array([one == order[chosen] for one in order])
    capped = np.where(behind, np.inf, np.where(level, own, SURE))
    capped[needed > SURE + 2 * TIE] = np.inf
    return np.where(needed >= SURE, capped, np.where(needed > 0, needed, min(most, 0.0))) - MARGIN


def _probability(evidence, span, lora, closed, calibration, groups, levels) -> float:
    """What the calibration makes of ``lora`` as the answer to one span, beside the LoRAs that are open."""
    row = np.where(closed, -np.inf, evidence.logit[span])
    own = row[lora]
    shown = np.where(groups == groups[lora], -np.inf, np.minimum(row, own))
    shown[lora] = own
    best, top, lead = top_of(shown[None], groups)
    levels[span] = min(levels[span], own - lead[0] - MARGIN)
    read = none_fits_evidence(evidence.loras[best], top, lead, calibration.ruler)
    return float(calibration.none_fits.probability(read)[0])


def _misses(evidence, calibration, groups, free, closed, levels) -> list[Choice]:
    """The nearest LoRAs left out, one of each group."""
    spans = np.flatnonzero(free) if free.any() else np.arange(len(free))
    if not len(spans):
        return []
    reach = np.where(closed, -np.inf, evidence.logit[spans].max(axis=0, initial=-np.inf))
    misses: list[Choice] = []
    seen: set[int] = set()
    for lora in np.lexsort((np.arange(len(reach)), -reach)):
        if len(misses) == MISSES or not np.isfinite(reach[lora]):
            break
        if groups[lora] not in seen:
            seen.add(int(groups[lora]))
            span = int(spans[evidence.logit[spans, lora].argmax()])
            levels[spans] = np.minimum(levels[spans], reach[lora])
            score = _probability(evidence, span, int(lora), closed, calibration, groups, levels)
            misses.append(Choice(int(lora), span, score))
    if len(misses) < MISSES:
        levels[spans] = -np.inf
    return sorted(misses, key=lambda miss: (-miss.score, miss.lora))
