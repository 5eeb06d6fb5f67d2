"""Calibrating a library on itself: which scores mean that a LoRA fits, and which that nothing does.

Every captioned LoRA is asked for by its own words, once with its words and once with its weights alone (as if nobody
had captioned it; its vector is a leave-one-out prediction anyway). When it comes first that is a positive. The same
prompts with it and its near-duplicates taken away, and the generic prompts, are what "nothing fits" looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..encode.calibrate import NoneFits, Ruler, fit_logistic
from ..encode.generic import GENERIC_PROMPTS
from ..library.answers import CachedAnswers
from ..library.linked import linked_groups
from .odds import MAX_LOGIT, WEIGHT_PRIOR, among, combine, hit_rate
from .responding import RESPONSE_PRIOR, Progress, either
from .score import Scorer
from .spans import as_picture, says_style

MAX_OWN_PROMPTS = 200
BLOCK = 32
ENOUGH = 8
# A LoRA that does not fit spoils the picture; one that is missing leaves the base model's (Stylus, arXiv 2404.18928).
FALSE_PICK_COST, MAX_ODDS = 2.0, 20.0
LOGIT_FLOOR = 0.5
# A lead beyond these log odds says no more: the runner-up is out of the question anyway.
MAX_LEAD = 3.0
# Before a library has shown how often the response puts the right LoRA first: as if it had nine times out of ten.
PRIOR_RIGHT, PRIOR_ASKS = 9, 10
# A generic prompt that a LoRA's own words claim this surely is not an example of "nothing fits".
CLAIMED = 0.5


@dataclass(frozen=True)
class Calibration:
    """``none_fits`` and the ruler of combined log odds over the generic prompts; ``examples`` says from how many."""

    none_fits: NoneFits
    ruler: Ruler
    examples: tuple[int, int]


def near_groups(scorer: Scorer, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """(N,) group numbers: LoRAs of one content or joined by near-duplicate ``pairs`` share one."""
    hashes = [entry.hash or entry.name for entry in scorer.entries]
    return linked_groups(hashes, pairs)


def calibrate(
    scorer: Scorer,
    groups: np.ndarray,
    use_weights: bool,
    use_text: bool,
    asking: CachedAnswers | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Fit the weights and response parts of ``scorer`` (in place) and :class:`NoneFits` on the library itself."""
    texts, owners = _own_prompts(scorer)
    asked = scorer.tower.encode(texts)
    same = groups[None] == groups[owners][:, None] if len(owners) else np.zeros((0, len(groups)), bool)
    if use_weights and len(owners):
        _calibrate_weights(scorer, asked, owners, same)
    own_z, generic_z = (_answers(scorer, prompts, asking, progress) for prompts in (texts, GENERIC_PROMPTS))
    if scorer.responder is not None:
        _calibrate_response(scorer, own_z, owners, same)
    generic = _Parts.of(
        scorer, scorer.tower.encode(list(GENERIC_PROMPTS)), GENERIC_PROMPTS, use_weights, use_text, generic_z, progress
    )
    logit = combine(generic.weights, generic.words, np.full_like(generic.words, np.nan))
    ruler = Ruler.measure(logit.T, LOGIT_FLOOR)
    if not len(scorer.entries):
        return Calibration(NoneFits.fit([], []), ruler, (0, 0))
    claimed = np.nan_to_num(generic.words).max(axis=1) > CLAIMED
    negatives = [top_evidence(logit, groups, ruler)[0][~claimed]]
    own = _Parts.of(scorer, asked, texts, use_weights, use_text, own_z, progress)
    positives, asks = [], 0
    for words in _variants(own.words, owners, scorer, use_weights):
        if sum(map(len, positives)) >= ENOUGH:
            break
        asks += len(owners)
        logit = combine(own.weights, words, np.full_like(words, np.nan))
        if len(logit):
            found, best = top_evidence(logit, groups, ruler)
            right = same[np.arange(len(owners)), best]
            positives.append(found[right])
            without = np.where(same, -np.inf, logit)
            other = np.isfinite(without).any(axis=1)
            negatives += [found[~right], top_evidence(without[other], groups, ruler)[0]]
    good = np.concatenate(positives) if positives else np.zeros((0, 3))
    bad = np.concatenate(negatives)
    return Calibration(NoneFits.fit(good, bad, _odds_against(len(good), asks)), ruler, (len(good), len(bad)))


def _odds_against(right: int, asks: int) -> float:
    """How much the negatives weigh: an encoder that is often wrong must be surer before it is believed.

    Of ``asks`` prompts whose LoRA is there ``right`` are answered rightly; as many prompts are asked whose LoRA is not
    there, and a wrong answer to those counts twice.
    """
    return min((asks - right + FALSE_PICK_COST * asks) / right, MAX_ODDS) if right else MAX_ODDS


def top_evidence(logit: np.ndarray, groups: np.ndarray, ruler: Ruler) -> tuple[np.ndarray, np.ndarray]:
    """(Q, N) log odds → what :class:`NoneFits` reads of the best LoRA of each row (Q, 3), and which it is (Q,).

    Columns: its log odds; its lead over the best LoRA of another group; its z-score over generic prompts.
    """
    best = logit.argmax(axis=1)
    rows = np.arange(len(logit))
    top = logit[rows, best]
    rest = np.where(groups[None] == groups[best][:, None], -MAX_LOGIT, logit).max(axis=1, initial=-MAX_LOGIT)
    z = (top - ruler.mean[best]) / ruler.deviation[best]
    return np.stack([top, np.minimum(top - rest, MAX_LEAD), z], axis=1), best


@dataclass(frozen=True)
class _Parts:
    weights: np.ndarray
    words: np.ndarray

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        asked: np.ndarray,
        texts: Sequence[str],
        weights: bool,
        text: bool,
        answers: np.ndarray,
        progress: Progress | None = None,
    ) -> _Parts:
        """``answers``: z-scores of the responses, NaN where there are none."""
        absent = np.full((len(texts), len(scorer.entries)), np.nan)
        # In blocks: a large library has many times more phrases than LoRAs.
        found = []
        for start in range(0, len(texts), BLOCK) if text else ():
            if progress is not None:
                progress(start, len(texts), texts[start])
            block = slice(start, start + BLOCK)
            found.append(np.fmax(*scorer.word_evidence(asked[block], texts[block])[:2]))
        by_word = np.concatenate(found) if found else absent
        by_weights = scorer.weight_evidence(asked) if weights and len(texts) else absent
        return cls(either(by_weights, scorer.response_evidence(answers)), by_word)


def _own_prompts(scorer: Scorer) -> tuple[list[str], np.ndarray]:
    """The first phrase of up to :data:`MAX_OWN_PROMPTS` LoRAs that have words (by hash), and whose each is."""
    first: dict[int, str] = {}
    for phrase in scorer.phrases:
        first.setdefault(phrase.owner, phrase.text)
    chosen = sorted(first)[:MAX_OWN_PROMPTS]  # entries are sorted by hash: a fixed, unbiased sample
    return [first[i] for i in chosen], np.array(chosen, int)


def _calibrate_weights(scorer: Scorer, asked: np.ndarray, owners: np.ndarray, same: np.ndarray) -> None:
    """One right LoRA against one stranger, from all pairs; then the odds of being right among all of them, and how
    often the encoder is right at all. LoRAs that it was taught about prove nothing."""
    rows = np.flatnonzero(scorer.unseen[owners])
    if not len(rows):
        return
    z = scorer.weight_z(asked)
    strangers = z[~same & np.isfinite(z)]
    model = fit_logistic(z[rows, owners[rows], None], strangers[:, None], WEIGHT_PRIOR)
    scorer.weight_model = among(model, int(scorer.has_vector.sum()))
    first = np.where(np.isfinite(z[rows]), z[rows], -np.inf).argmax(axis=1)
    scorer.weight_claim = hit_rate(scorer.encoder, int(same[rows, first].sum()), len(rows))


def _answers(
    scorer: Scorer, texts: Sequence[str], asking: CachedAnswers | None, progress: Progress | None
) -> np.ndarray:
    """(texts, N) z-scores of the responses; the library's own texts are stored."""
    if scorer.responder is None or asking is None or not len(texts):
        return np.full((len(texts), len(scorer.entries)), np.nan)
    return scorer.responder.z([as_picture(t) if says_style(t) else t for t in texts], asking, True, progress)


def _calibrate_response(scorer: Scorer, z: np.ndarray, owners: np.ndarray, same: np.ndarray) -> None:
    """As the weights part; nothing was fitted on these files, so how often they come first says it all.

    The claim is about whether a LoRA answers its own words at all: many names say nothing of what a file shows. How
    surely it does when it does is learnt from those that come first alone.
    """
    rows = np.flatnonzero(np.isfinite(z[np.arange(len(owners)), owners]))
    first = np.where(np.isfinite(z[rows]), z[rows], -np.inf).argmax(axis=1)
    right = same[rows, first]
    own = z[rows[right], owners[rows[right]], None]
    model = fit_logistic(own, z[~same & np.isfinite(z)][:, None], RESPONSE_PRIOR)
    scorer.response_model = among(model, int(scorer.answers.sum()))
    scorer.response_claim = (int(right.sum()) + PRIOR_RIGHT) / (len(rows) + PRIOR_ASKS)


def _variants(words: np.ndarray, owners: np.ndarray, scorer: Scorer, use_weights: bool) -> list[np.ndarray]:
    """The words part with each LoRA's own words hidden where there are weights to go on, and as it is.

    The first is the hard case, and decides alone when there are enough of it: that a LoRA's own title finds it is no
    news, and hundreds of such examples would make the odds of the others look better than they are. Nor is it any
    that an encoder finds a file it was taught about.
    """
    readable = scorer.answers.copy()
    if use_weights:
        readable |= scorer.unseen
    if not readable[owners].any():
        return [words]
    hidden = words.copy()
    mine = np.arange(len(owners)), owners
    hidden[mine] = np.where(readable[owners], np.nan, hidden[mine])
    return [hidden, words]
