"""How much words in the files matter: recall when none, some or all of the files say what they are."""

from __future__ import annotations

import numpy as np

from autolora_core.encode.calibrate import Logistic, fit_logistic
from benchmarks.retrieval_measure import ABSENT, ranks, shares
from benchmarks.retrieval_study import OURS, Study, word_scores
from benchmarks.retrieval_texts import HEADLINE
from zoo.splits import unit

SHARES = (0, 30, 100)
TEXT_PRIOR = Logistic(-6.0, np.array([1.0]))


def metadata_figures(study: Study) -> dict[str, float]:
    """``nometa_recall_at_5_<share>_<weights|text|both>``: headline prompts, all caption kinds but trigger-only."""
    pack, out = study.pack, {}
    labels = [row["label"] if row["subject"] else f"{row['label']} style" for row in pack.rows]
    study.scores["words"] = word_scores(pack, study.texts, labels)
    model = _text_model(study)
    asked = study.asked["test"]
    which = asked.of(*HEADLINE) & ~asked.trigger_only
    mine = asked.part(which)
    weights, words = study.asking(OURS)[which], study.asking("words")[which]
    for share in SHARES:
        said = np.array([unit("said", row["id"]) < share / 100 for row in pack.rows])
        text = np.where(said, np.clip(words, -10, 40), ABSENT)
        spoken = np.where(said, model.logit(np.clip(words, -10, 40)[..., None]), ABSENT)
        for name, scores in (("weights", weights), ("text", text), ("both", _either(weights, spoken))):
            out[f"nometa_recall_at_5_{share}_{name}"] = shares(ranks(scores, mine))["recall_at_5"]
    return out


def _text_model(study: Study) -> Logistic:
    """Log odds that words mean the thing, from validation."""
    asked = study.asked["validation"]
    which = asked.of(*HEADLINE)
    scores, right = study.asking("words", "validation")[which][:, asked.pool], asked.right[which][:, asked.pool]
    wrong = scores[~right][:: max(1, int((~right).sum()) // 20_000)]
    return fit_logistic(np.clip(scores[right], -10, 40)[:, None], np.clip(wrong, -10, 40)[:, None], TEXT_PRIOR)


def _either(weights: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Log odds of "at least one of the two is right": 1 − (1 − p)(1 − q), as −log of what is left."""
    return np.logaddexp(0, np.clip(weights, -60, 60)) + np.logaddexp(0, np.clip(words, -60, 60))
