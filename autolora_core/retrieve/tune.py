"""Calibrating a library on itself: which scores mean that a LoRA fits, and which that nothing does.

Every captioned LoRA is asked for by its own words, once with its words and once with its weights alone (as if nobody
had captioned it; its vector is a leave-one-out prediction anyway). When it comes first that is a positive. The same
prompts with it and its near-duplicates taken away, and the generic prompts, are what "nothing fits" looks like.

Of a large library only the LoRAs are scored that can come first or second (:mod:`.finalists`), and a fair sample of
strangers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..encode.calibrate import Logistic, NoneFits, fit_logistic
from ..encode.generic import GENERIC_PROMPTS
from ..library.answers import CachedAnswers
from ..library.linked import linked_groups
from .leaders import CLAIMED, Asking, Usual, find_leaders, nearest_by_weights
from .odds import WEIGHT_PRIOR, among, hit_rate
from .responding import RESPONSE_PRIOR, Progress
from .score import Scorer
from .spans import as_picture, says_style

MAX_OWN_PROMPTS = 200
# Strangers are known well enough from so many LoRAs, taken evenly (by hash).
MOST_STRANGERS = 2000
ENOUGH = 8
# A LoRA that does not fit spoils the picture; one that is missing leaves the base model's (Stylus, arXiv 2404.18928).
FALSE_PICK_COST, MAX_ODDS = 2.0, 20.0
# Before a library has shown how often the response puts the right LoRA first: as if it had nine times out of ten.
PRIOR_RIGHT, PRIOR_ASKS = 9, 10


@dataclass(frozen=True)
class Calibration:
    """``none_fits`` and the ruler of combined log odds over the generic prompts; ``examples`` says from how many."""

    none_fits: NoneFits
    ruler: Usual
    examples: tuple[int, int]


def calibration_json(scorer: Scorer, calibration: Calibration) -> dict:
    """What :func:`calibrate` found without a base model, for :func:`calibrated`."""
    fitted, model = scorer.weight_model, calibration.none_fits.model
    return {
        "weight_model": [fitted.bias, fitted.slope.tolist(), fitted.examples], "weight_claim": scorer.weight_claim,
        "none_fits": [model.bias, model.slope.tolist(), model.examples], "examples": calibration.examples,
    }  # fmt: skip


def calibrated(
    scorer: Scorer, said: Mapping[str, Any], usual: np.ndarray | None, use_weights: bool, use_text: bool
) -> Calibration:
    """``scorer`` as :func:`calibrate` left it when it found ``said``; ``usual``: see :meth:`.Usual.of_all`."""
    if usual is not None and usual.shape != (len(scorer.entries), 2):
        raise ValueError("rulers of other LoRAs")
    model, none_fits = (
        Logistic(float(bias), np.array(slope, np.float64), tuple(examples))
        for bias, slope, examples in (said["weight_model"], said["none_fits"])
    )
    scorer.weight_model, scorer.weight_claim = model, float(said["weight_claim"])
    generic = Asking.of(scorer, list(GENERIC_PROMPTS), use_weights, use_text, None)
    return Calibration(NoneFits(none_fits), Usual(scorer, generic.asked(slice(None)), usual), tuple(said["examples"]))


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
    own, generic = (
        Asking.of(scorer, said, use_weights, use_text, _answers(scorer, said, asking, progress))
        for said in (texts, list(GENERIC_PROMPTS))
    )
    if use_weights and len(owners):
        _calibrate_weights(scorer, own.vectors, owners, groups)
    if scorer.responder is not None:
        _calibrate_response(scorer, own.answers, owners, groups)
    usual = Usual(scorer, generic.asked(slice(None)))
    if not len(scorer.entries):
        return Calibration(NoneFits.fit([], []), usual, (0, 0))
    (leaders,) = find_leaders(generic, groups, [None], progress=progress)
    negatives = [leaders.evidence(usual)[leaders.words <= CLAIMED]]
    positives, asks = [], 0
    readable = _readable(scorer, owners, use_weights)
    variants = [readable, None] if readable.any() else [None]
    for leaders in find_leaders(own, groups, variants, owners, progress) if len(owners) else ():
        if sum(map(len, positives)) >= ENOUGH:
            break
        asks += len(owners)
        found, right = leaders.evidence(usual), groups[leaders.best] == groups[owners]
        positives.append(found[right])
        negatives += [found[~right], leaders.without.evidence(usual)]
    good = np.concatenate(positives) if positives else np.zeros((0, 3))
    bad = np.concatenate(negatives)
    return Calibration(NoneFits.fit(good, bad, _odds_against(len(good), asks)), usual, (len(good), len(bad)))


def _odds_against(right: int, asks: int) -> float:
    """How much the negatives weigh: an encoder that is often wrong must be surer before it is believed.

    Of ``asks`` prompts whose LoRA is there ``right`` are answered rightly; as many prompts are asked whose LoRA is not
    there, and a wrong answer to those counts twice.
    """
    return min((asks - right + FALSE_PICK_COST * asks) / right, MAX_ODDS) if right else MAX_ODDS


def _own_prompts(scorer: Scorer) -> tuple[list[str], np.ndarray]:
    """The first phrase of up to :data:`MAX_OWN_PROMPTS` LoRAs that have words (by hash), and whose each is."""
    chosen = np.flatnonzero(scorer.has_text)[:MAX_OWN_PROMPTS]  # entries are sorted by hash: a fixed, unbiased sample
    return [scorer.sayings.first(lora) for lora in chosen], chosen


def _calibrate_weights(scorer: Scorer, vectors: np.ndarray, owners: np.ndarray, groups: np.ndarray) -> None:
    """One right LoRA against one stranger, from all pairs; then the odds of being right among all of them, and how
    often the encoder is right at all. LoRAs that it was taught about prove nothing."""
    rows = np.flatnonzero(scorer.unseen[owners])
    if not len(rows):
        return
    query = scorer.query(vectors)
    own = np.array([scorer.weight_z(query[row : row + 1], owners[row : row + 1])[0, 0] for row in rows])
    sample = _sample(len(scorer.entries))
    z = scorer.weight_z(query, sample)
    strangers = z[(groups[sample][None] != groups[owners][:, None]) & np.isfinite(z)]
    model = fit_logistic(own[:, None], strangers[:, None], WEIGHT_PRIOR)
    scorer.weight_model = among(model, int(scorer.has_vector.sum()))
    first = nearest_by_weights(scorer, query[rows])
    scorer.weight_claim = hit_rate(scorer.encoder, int((groups[first] == groups[owners[rows]]).sum()), len(rows))


def _sample(count: int) -> np.ndarray:
    """At most :data:`MOST_STRANGERS` of so many LoRAs, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_STRANGERS)).astype(int))


def _answers(
    scorer: Scorer, texts: Sequence[str], asking: CachedAnswers | None, progress: Progress | None
) -> np.ndarray | None:
    """(texts, N) z-scores of the responses, None without a base; the library's own texts are stored."""
    if scorer.responder is None or asking is None or not len(texts):
        return None
    return scorer.responder.z([as_picture(t) if says_style(t) else t for t in texts], asking, True, progress)


def _calibrate_response(scorer: Scorer, z: np.ndarray | None, owners: np.ndarray, groups: np.ndarray) -> None:
    """As the weights part; nothing was fitted on these files, so how often they come first says it all.

    The claim is about whether a LoRA answers its own words at all: many names say nothing of what a file shows. How
    surely it does when it does is learnt from those that come first alone.
    """
    z = np.full((len(owners), len(groups)), np.nan) if z is None else z
    rows = np.flatnonzero(np.isfinite(z[np.arange(len(owners)), owners]))
    first = np.where(np.isfinite(z[rows]), z[rows], -np.inf).argmax(axis=1)
    right = groups[first] == groups[owners[rows]]
    own = z[rows[right], owners[rows[right]], None]
    sample = _sample(len(groups))
    strangers = (groups[sample][None] != groups[owners][:, None]) & np.isfinite(z[:, sample])
    model = fit_logistic(own, z[:, sample][strangers][:, None], RESPONSE_PRIOR)
    scorer.response_model = among(model, int(scorer.answers.sum()))
    scorer.response_claim = (int(right.sum()) + PRIOR_RIGHT) / (len(rows) + PRIOR_ASKS)


def _readable(scorer: Scorer, owners: np.ndarray, use_weights: bool) -> np.ndarray:
    """(owners,) bool: has weights to go on when its own words are hidden.

    Asked for without their words these are the hard case, and decide alone when there are enough of them: that a LoRA's
    own title finds it is no news, and hundreds of such examples would make the odds of the others look better than they
    are. Nor is it any that an encoder finds a file it was taught about.
    """
    readable = scorer.answers.copy()
    if use_weights:
        readable |= scorer.unseen
    return readable[owners]
