"""From scores to figures: ranks, bootstrap intervals, combination of evidence, "none fits"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autolora_core.encode.calibrate import Logistic, fit_logistic
from benchmarks.retrieval_texts import Prompt
from zoo.text_side import Texts
from zoo.train_encoder import ranks_of

RESAMPLES, SEED, ABSENT, LIMITS = 1000, 0, -1e9, (-10, 30)
PAIR_PRIOR = Logistic(-4.0, np.array([1.0, 1.0]))


@dataclass(frozen=True)
class Asked:
    """Prompts of one part and what is right for each. ``right`` (q, n) bool, ``pool`` (n,) bool the candidates.

    ``trigger_only`` (q,): no right LoRA's captions ever named the thing.
    """

    prompts: list[Prompt]
    right: np.ndarray
    pool: np.ndarray
    trigger_only: np.ndarray

    def part(self, which: np.ndarray) -> Asked:
        prompts = [p for p, keep in zip(self.prompts, which, strict=True) if keep]
        return Asked(prompts, self.right[which], self.pool, self.trigger_only[which])

    def of(self, *kinds: str) -> np.ndarray:
        return np.array([p.kind in kinds for p in self.prompts])


def by_prompt(scores: np.ndarray, asked: Asked, texts: Texts, how: str = "best") -> np.ndarray:
    """(texts, n) → (q, n): the best phrase of each prompt, or the ``whole`` prompt; NaN becomes :data:`ABSENT`."""
    rows = []
    for prompt in asked.prompts:
        phrases = prompt.phrases if how == "best" else prompt.phrases[:1]
        rows.append(np.nan_to_num(scores[texts.rows(phrases)], nan=ABSENT).max(axis=0))
    return np.stack(rows)


def ranks(scores: np.ndarray, asked: Asked) -> np.ndarray:
    """(q,) rank of the best right LoRA among the pool; ties count half of those tied."""
    pool, right = scores[:, asked.pool], asked.right[:, asked.pool]
    best = np.where(right, pool, -np.inf).max(axis=1, keepdims=True)
    ties = ((pool == best) & ~right).sum(axis=1)
    return ranks_of(pool, right) + 0.5 * ties


def shares(found: np.ndarray) -> dict[str, float]:
    """Recall at 1 and 5, mean reciprocal rank."""
    if not len(found):
        return {"recall_at_1": float("nan"), "recall_at_5": float("nan"), "mrr": float("nan")}
    return {
        "recall_at_1": float((found < 1).mean()),
        "recall_at_5": float((found < 5).mean()),
        "mrr": float((1 / (1 + found)).mean()),
    }


def interval(values: np.ndarray, groups: Sequence[object]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, whole ``groups`` (subjects) drawn with replacement."""
    place = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    at = np.array([place[g] for g in groups])
    total, count = np.bincount(at, values, len(place)), np.bincount(at, minlength=len(place))
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(len(place), size=(RESAMPLES, len(place)))
    means = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


@dataclass(frozen=True)
class Combination:
    """Log odds that a LoRA is right from several z-scores: one model where the response exists, one where it does not.

    ``names``: the parts, the response first.
    """

    names: tuple[str, ...]
    full: Logistic
    partial: Logistic

    @classmethod
    def fit(cls, scores: dict[str, np.ndarray], names: Sequence[str], asked: Asked) -> Combination:
        """``scores[name]`` (q, n) for the prompts of ``asked`` (validation)."""
        x = np.stack([scores[name] for name in names], axis=-1)[:, asked.pool]
        right = asked.right[:, asked.pool]
        heard = x[..., 0] > ABSENT / 2
        prior = Logistic(-4.0, np.ones(len(names)))
        full = _fit(x[heard & right], x[heard & ~right], prior)
        rest = Logistic(-4.0, np.ones(len(names) - 1))
        partial = _fit(x[~heard & right][:, 1:], x[~heard & ~right][:, 1:], rest)
        return cls(tuple(names), full, partial)

    def logits(self, scores: dict[str, np.ndarray]) -> np.ndarray:
        """(q, n) log odds (for a right and a wrong LoRA that are equally likely before)."""
        x = np.stack([scores[name] for name in self.names], axis=-1)
        heard, x = x[..., 0] > ABSENT / 2, np.clip(x, *LIMITS)
        return np.where(heard, self.full.logit(x), self.partial.logit(x[..., 1:]))


def _fit(positives: np.ndarray, negatives: np.ndarray, prior: Logistic) -> Logistic:
    rng = np.random.default_rng(SEED)
    if len(negatives) > 20_000:
        negatives = negatives[rng.choice(len(negatives), 20_000, replace=False)]
    return fit_logistic(np.clip(positives, *LIMITS), np.clip(negatives, *LIMITS), prior)


def none_evidence(logits: np.ndarray, asked: Asked, thing: np.ndarray, removed: bool) -> np.ndarray:
    """(q, 3): the best LoRA's log odds, its lead over the best of another thing, how far it is beyond the pool's 99 %.

    ``removed``: the right LoRAs are taken out of the pool first.
    """
    out = np.zeros((len(logits), 3))
    for i, row in enumerate(logits):
        there = asked.pool & ~asked.right[i] if removed else asked.pool
        own, things = row[there], thing[there]
        best = own.argmax()
        others = own[things != things[best]]
        out[i] = own[best], own[best] - others.max(initial=own.min()), own[best] - np.quantile(own, 0.99)
    return out


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half."""
    both = np.concatenate([positive, negative])
    order = both.argsort(kind="stable")
    rank = np.empty(len(both))
    rank[order] = np.arange(1, len(both) + 1)
    for value in np.unique(both[np.concatenate([[False], np.diff(np.sort(both)) == 0])]):
        rank[both == value] = rank[both == value].mean()
    n, m = len(positive), len(negative)
    return float((rank[:n].sum() - n * (n + 1) / 2) / (n * m))


def none_figures(evidence: dict[str, tuple[np.ndarray, np.ndarray]], top_right: np.ndarray) -> dict[str, float]:
    """``evidence``: part → (LoRA present, LoRA removed). Calibrated on validation, measured on test.

    Recall at 5 %: share of prompts whose right LoRA comes first *and* passes the threshold that 5 % of the prompts
    without one pass.
    """
    model = fit_logistic(*evidence["validation"], Logistic(-1.0, np.array([1.0, 0.5, 0.5])))
    present, removed = (model.logit(x) for x in evidence["test"])
    threshold = np.quantile(removed, 0.95)
    return {
        "none_auroc": auroc(present, removed),
        "none_recall_at_5fpr": float(((present > threshold) & top_right).mean()),
        "none_auroc_top_score_alone": auroc(evidence["test"][0][:, 0], evidence["test"][1][:, 0]),
    }
