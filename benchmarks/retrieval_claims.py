"""Sets and "none fits" of the retrieval benchmark, measured strictly and with what a strict measure leaves out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autolora_core.encode.calibrate import Logistic, fit_logistic
from autolora_core.retrieve.words import content_stems
from benchmarks.retrieval_choose import PICKS, Chooser
from benchmarks.retrieval_measure import Asked, auroc, none_evidence, none_figures, ranks
from benchmarks.retrieval_standouts import lead
from benchmarks.retrieval_study import DRAWN, RESPONSE, Study, prompts_of
from benchmarks.retrieval_texts import HEADLINE, Prompt

CHOSEN, WITNESSED = "response, as captions speak", "response and drawing, as captions speak"
OTHER = {"validation": "test", "test": "validation"}
NONE_PRIOR = Logistic(-1.0, np.array([0.2, 1.0, 0.2]))
Picker = Callable[[Prompt], list[int]]


def add_chosen(study: Study) -> dict[tuple[str, str], Chooser]:
    """Both new methods for both parts; (method, part) → what chooses. Of the other part only words are taken, as the
    ruler of each LoRA, neither its prompts' answers nor its labels."""
    choosers = {}
    for part, asked in study.asked.items():
        bank = prompts_of(study.pack, OTHER[part])
        for name, drawn in ((CHOSEN, None), (WITNESSED, study.scores[DRAWN])):
            chooser = Chooser.of(study.texts.texts, study.scores[RESPONSE], asked.pool, bank, drawn)
            study.prompted[name, part] = np.stack([chooser.score(p.text) for p in asked.prompts])
            choosers[name, part] = chooser
    return choosers


def plain_picks(study: Study, name: str, pool: np.ndarray) -> Picker:
    """The best LoRA of each phrase first, then the best of the rest."""
    at = np.flatnonzero(pool)

    def pick(prompt: Prompt) -> list[int]:
        parts = prompt.phrases[1:] or prompt.phrases
        scores = np.nan_to_num(study.scores[name][study.texts.rows(parts)][:, at], nan=-1e9)
        firsts = sorted({int(row.argmax()) for row in scores}, key=lambda i: -scores[:, i].max())[:PICKS]
        rest = [int(i) for i in np.argsort(-scores.max(axis=0))[: PICKS + len(firsts)] if i not in firsts]
        return [int(at[i]) for i in [*firsts, *rest][:PICKS]]

    return pick


def set_figures(study: Study, part: str, pick: Picker) -> dict[str, float]:
    """Share of subject-and-style prompts for which both are among three picks.

    Beside the strict figure: ``_captioned`` of those whose subject and style were both named in some LoRA's captions;
    ``_family`` where another variant of the same effect will do ("faint halftone" for "dark halftone": wrong by the
    words of the prompt, near in the picture); and each half alone.
    """
    pack, pool = study.pack, study.asked[part].pool
    subject, style, family, kind = (pack.column(c) for c in ("subject", "style", "style_family", "caption_kind"))
    rows = []
    for prompt in (p for p in study.asked[part].prompts if p.kind == "set"):
        picks, mine = pick(prompt), (pool & (subject == prompt.subject), pool & (style == prompt.style))
        named = all((kind[which] != "trigger").any() for which in mine)
        kin = np.isin(family[picks], family[mine[1]])
        rows.append((mine[0][picks].any(), mine[1][picks].any(), kin.any(), named))
    if not rows:
        return {}
    subjects, styles, kin, named = np.array(rows).T
    both, out = subjects & styles, {"set_subject_recall_at_3": subjects.mean(), "set_style_recall_at_3": styles.mean()}
    out |= {"set_recall_at_3": both.mean(), "set_recall_at_3_family": (subjects & kin).mean()}
    return {k: float(v) for k, v in out.items()} | {"set_recall_at_3_captioned": float(both[named].mean())}


def relatives(study: Study, asked: Asked) -> np.ndarray:
    """(q, n) bool: LoRAs that are not right but are of something that the prompt names (its label shares a word with
    it), or another variant of the style that it asks for."""
    family, style = study.pack.column("style_family"), study.pack.column("style")
    labels = [set(content_stems(row["label"])) for row in study.pack.rows]
    out = np.zeros(asked.right.shape, bool)
    for i, prompt in enumerate(asked.prompts):
        words = set(content_stems(prompt.text))
        out[i] = [bool(label & words) for label in labels]
        if prompt.style:
            out[i] |= np.isin(family, family[style == prompt.style])
    return out & ~asked.right


def evidence(scores: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(q, n) scores, (q, n) candidates → (q, 3): the best score, its lead over the runners-up, how many robust
    deviations it is above the candidates' median."""
    out = []
    for row, which in zip(scores, there, strict=True):
        own = row[which]
        middle = np.median(own)
        spread = 1.4826 * np.median(np.abs(own - middle))
        out.append((own.max(), float(lead(own[None])[0]), (own.max() - middle) / max(spread, 1e-6)))
    return np.array(out)


def none_fits_plain(study: Study, name: str) -> dict[str, float]:
    """As it was: by the best score, its lead over the best LoRA of another thing, and the distance to the 99 %."""
    seen, right = {}, np.zeros(0, bool)
    for part in ("validation", "test"):
        asked = study.asked[part]
        which = asked.of(*HEADLINE, "style") & ~asked.trigger_only
        logits, mine = study.asking(name, part)[which], asked.part(which)
        seen[part] = tuple(none_evidence(logits, mine, study.data.thing, removed) for removed in (False, True))
        right = ranks(logits, mine) < 1
    return none_figures(seen, right)


def none_fits(study: Study, name: str) -> dict[str, float]:
    """Headline and style prompts with their LoRAs present, and the same with them taken out; the logistic is fitted on
    validation. ``_no_relatives``: without the LoRAs of :func:`relatives` in either case, since "man climbing" left in
    the pool is no stranger to "woman climbing"."""
    seen: dict[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]] = {"": {}, "_no_relatives": {}}
    for part in ("validation", "test"):
        asked = study.asked[part]
        which = asked.of(*HEADLINE, "style") & ~asked.trigger_only
        scores, mine = study.asking(name, part)[which], asked.part(which)
        everyone = np.broadcast_to(mine.pool, mine.right.shape)
        for ending, there in (("", everyone), ("_no_relatives", everyone & ~relatives(study, mine))):
            first = np.where(there, scores, -np.inf).argmax(axis=1)
            right = mine.right[np.arange(len(first)), first]
            seen[ending][part] = evidence(scores, there), evidence(scores, there & ~mine.right), right
    out = {}
    for ending, parts in seen.items():
        model = fit_logistic(*parts["validation"][:2], NONE_PRIOR)
        present, removed = (model.logit(x) for x in parts["test"][:2])
        passed = (present > np.quantile(removed, 0.95)) & parts["test"][2]
        out[f"none_auroc{ending}"], out[f"none_recall_at_5fpr{ending}"] = auroc(present, removed), float(passed.mean())
    return out
