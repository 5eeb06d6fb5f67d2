"""Choosing a set: every pick must explain words of the prompt that no earlier pick explains.

Greedy coverage (the set function "words explained" is submodular: Nemhauser, Wolsey and Fisher 1978), restricted to
phrases whose words are all still free, so that a subject and a style are found instead of k of one kind. A
near-duplicate of a pick is never picked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .score import Evidence, Scorer
from .spans import Span
from .tune import Calibration, top_evidence

MISSES = 3
# Beyond these log odds a LoRA fits, and how surely no longer decides which comes first; then the other kind does.
SURE = 3.0
NEW_KIND_BONUS = 1.0


@dataclass(frozen=True)
class Choice:
    """LoRA ``lora`` explains ``span`` (both indices) with probability ``score``."""

    lora: int
    span: int
    score: float


@dataclass(frozen=True)
class Chosen:
    """``picks`` in order, ``misses`` best first."""

    picks: list[Choice]
    misses: list[Choice]


def choose(
    scorer: Scorer,
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

    ``taken`` are LoRAs already in (pinned): the words they clearly explain are no longer free. ``banned`` (N,) bool
    are never picked nor listed.
    """
    closed = np.zeros(len(groups), bool) if banned is None else banned.copy()
    free = np.ones(len(spans), bool)
    for lora in taken:
        closed |= groups == groups[lora]
        if len(spans):
            span = int(evidence.logit[:, lora].argmax())
            if evidence.logit[span, lora] > 0:
                free &= _apart(spans, span)
    picks: list[Choice] = []
    while len(picks) < top_k and free.any() and not closed.all():
        kinds = {spans[pick.span].hint == "style" for pick in picks}
        choice = _best(evidence, spans, calibration, groups, free, closed, kinds)
        if choice.score < threshold:
            break
        picks.append(choice)
        closed |= groups == groups[choice.lora]
        free &= _apart(spans, choice.span)
    return Chosen(picks, _misses(evidence, calibration, groups, free, closed))


def _apart(spans: Sequence[Span], chosen: int) -> np.ndarray:
    """Which spans share no word with the chosen one."""
    return np.array([not span.words & spans[chosen].words for span in spans])


def _best(evidence, spans, calibration, groups, free, closed, kinds) -> Choice:
    """The open LoRA and free span with the largest log odds, up to :data:`SURE`.

    Among sure ones the kind (style or not) that was not picked yet comes first, then one phrase before several, the
    longer span, the larger log odds, the smaller hash.
    """
    logit = np.where(free[:, None] & ~closed[None], evidence.logit, -np.inf)
    new = np.array([bool(kinds) and (span.hint == "style") not in kinds for span in spans])
    worth = np.minimum(logit, SURE) + NEW_KIND_BONUS * new[:, None] * (logit > 0)
    tied = np.argwhere(worth >= worth.max() - 1e-9)

    def order(at: tuple[int, int]):
        span = spans[at[0]]
        return span.joined, -len(span.words), -round(logit[at], 9), at[1], at[0]

    span, lora = min(((int(s), int(n)) for s, n in tied), key=order)
    return Choice(lora, span, _probability(logit[span][None], lora, calibration, groups))


def _probability(row: np.ndarray, lora: int, calibration: Calibration, groups: np.ndarray) -> float:
    """What the calibration makes of ``lora`` as the answer to one span, (1, N) log odds."""
    shown = np.where(groups == groups[lora], -np.inf, row[0])
    shown[lora] = row[0, lora]
    rivals = np.where(np.arange(len(shown)) == lora, -np.inf, np.minimum(shown, row[0, lora]))
    rivals[lora] = row[0, lora]
    found, _ = top_evidence(rivals[None], groups, calibration.ruler)
    return float(calibration.none_fits.probability(found)[0])


def _misses(evidence, calibration, groups, free, closed) -> list[Choice]:
    """The nearest LoRAs left out, one of each group."""
    spans = np.flatnonzero(free) if free.any() else np.arange(len(free))
    if not len(spans) or closed.all():
        return []
    reach = np.where(closed, -np.inf, evidence.logit[spans].max(axis=0))
    misses: list[Choice] = []
    seen: set[int] = set()
    for lora in np.lexsort((np.arange(len(reach)), -reach)):
        if len(misses) == MISSES or not np.isfinite(reach[lora]):
            break
        if groups[lora] not in seen:
            seen.add(int(groups[lora]))
            span = int(spans[evidence.logit[spans, lora].argmax()])
            row = np.where(closed, -np.inf, evidence.logit[span])[None]
            misses.append(Choice(int(lora), span, _probability(row, int(lora), calibration, groups)))
    return sorted(misses, key=lambda miss: (-miss.score, miss.lora))
