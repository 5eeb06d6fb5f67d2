"""One run of the retrieval benchmark on a pack: prompts, every method's scores, our combination."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.set_encoder import MODULES, SetEncoder
from autolora_core.retrieve.standout import Stranger, standardised
from autolora_core.retrieve.words import content_stems
from autolora_core.train.steps import joined
from autolora_core.train.trainer import TextSide
from benchmarks.retrieval_autolora import train_published
from benchmarks.retrieval_forms import caption_forms
from benchmarks.retrieval_measure import Asked, Combination, by_prompt, ranks, shares
from benchmarks.retrieval_methods import Learner, baseline_scores, drawn_as
from benchmarks.retrieval_texts import Prompt, set_prompts, style_prompts, subject_prompts
from zoo.encoder_data import GROUPS, EncoderData, encoder_data, texts_of
from zoo.features_pack import Pack
from zoo.responses_pack import read_responses
from zoo.splits import unit
from zoo.text_side import (
    Texts,
    draw_scores,
    factor_table,
    response_scores,
    spread_z,
    unit_rows,
    z_scores,
)
from zoo.train_encoder import centred, profile_of, with_made_up

log = logging.getLogger("benchmarks.retrieval")
RESPONSE, ENCODER, FILE_ONLY, OURS = "response", "encoder", "encoder, file only", "ours"
RESPONSE_TEXT, RESPONSE_NODE = "response, text-side layers", "response, as Retrieve asks"
PROFILE, DRAWN, DRAWN_LEARNT = "profile, ridge", "drawing, untrained", "drawing, learnt"
# A cosine of drawings is used as it is: what a LoRA's picture has in common with everything is not held against it.
COSINE_UNIT = 0.1
SETS = 200
PLAIN_SUBJECT = "otter"


def part_of(pack: Pack, kept: np.ndarray) -> Pack:
    """Some LoRAs of a pack; what they were projected on stays."""
    chosen = [row for row, keep in zip(pack.rows, kept, strict=True) if keep]
    return Pack(chosen, {k: v[kept] for k, v in pack.arrays.items()}, pack.bases, pack.means, pack.info)


def prompts_of(pack: Pack, part: str) -> list[Prompt]:
    """What is asked of one part: its subjects and styles, and pairs of the two."""
    mine = [row for row in pack.rows if row["part"] == part]
    subjects = sorted({row["subject"] for row in mine if row["subject"]})
    styles = {row["style"]: row["label"] for row in mine if row["style"] and not row["subject"]}
    out = [p for s in subjects for p in subject_prompts(s, pack.info["keywords"].get(s, ()))]
    out += [p for style, label in sorted(styles.items()) for p in style_prompts(style, label, PLAIN_SUBJECT)]
    pairs = sorted(((s, k, label) for s in subjects for k, label in styles.items()), key=lambda p: unit("set", str(p)))
    return out + set_prompts(pairs[:SETS])


def ask(pack: Pack, part: str, prompts: Sequence[Prompt]) -> Asked:
    """Right answers among the LoRAs of ``part`` and of the training part (for ``set``: the subject's)."""
    subject, style, kind = (pack.column(name) for name in ("subject", "style", "caption_kind"))
    pool = np.isin(pack.column("part").astype(str), [part, "train"])
    right = np.stack([(subject == p.subject) if p.subject else (style == p.style) for p in prompts]) & pool
    trigger = np.array([bool((kind[row] == "trigger").all()) for row in right])
    return Asked(list(prompts), right, pool, trigger)


def word_scores(pack: Pack, texts: Texts, words: Sequence[str | None]) -> np.ndarray:
    """(texts, n): cosine of each LoRA's own words with a text, as z-scores; NaN where it has none."""
    vectors = np.stack([texts.vectors[texts.index[w]] if w else np.zeros(texts.vectors.shape[1]) for w in words])
    scores = texts.vectors @ vectors.T
    z = z_scores(scores, scores[texts.rows(GENERIC_PROMPTS)])
    return np.where([w is not None for w in words], z, np.nan)


def fuzzy_scores(texts: Texts, words: Sequence[str | None]) -> np.ndarray:
    """(texts, n): shared word stems over all word stems, what other pickers do; NaN where a LoRA has no words."""
    asked = [set(content_stems(t)) for t in texts.texts]
    said = [set(content_stems(w)) if w else None for w in words]
    return np.array([[len(a & s) / max(len(a | s), 1) if s is not None else np.nan for s in said] for a in asked])


def written_words(row: dict) -> str | None:
    """What the file says of itself, if anything."""
    if row["metadata"] == "none" or row.get("copy_of") or row["caption_kind"] == "trigger":
        return None
    return row["label"] if row["subject"] else f"{row['label']} style"


@dataclass
class Study:
    """``scores``: method -> (texts, n) z-scores (or the method's own). ``asked``: validation and test. ``prompted``:
    (method, part) -> (q, n), for methods that score prompts rather than texts."""

    pack: Pack
    texts: Texts
    data: EncoderData
    asked: dict[str, Asked]
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    prompted: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    encoders: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)
    controls: list[str] = field(default_factory=list)

    def asking(self, name: str, part: str = "test", how: str = "best") -> np.ndarray:
        """(q, n) scores of one method for a part's prompts."""
        if (name, part) in self.prompted:
            return self.prompted[name, part]
        return by_prompt(self.scores[name], self.asked[part], self.texts, how)

    def z(self, cosines: np.ndarray) -> np.ndarray:
        return z_scores(cosines, cosines[self.texts.rows(GENERIC_PROMPTS)])

    def add_encoder(self, name: str, encoder: SetEncoder, groups: Sequence[str]) -> None:
        vectors = encoder.encode_groups({k: self.data.groups[k] for k in groups})
        self.scores[name] = self.z(encoder.query(self.texts.vectors) @ vectors.T)
        self.encoders.append(name)

    def add_vectors(self, name: str, cosines: np.ndarray) -> None:
        self.scores[name] = self.z(cosines)

    def combine(self, names: Sequence[str], out: str) -> Combination:
        """Fit the weights of the parts on validation; the sum becomes the method ``out``, text by text."""
        asked = self.asked["validation"]
        which = asked.of("name", "sentence", "paraphrase", "style")
        fitted = Combination.fit({n: self.asking(n, "validation")[which] for n in names}, names, asked.part(which))
        filled = {n: np.nan_to_num(self.scores[n], nan=-1e9) for n in names}
        self.scores[out] = fitted.logits(filled)
        return fitted

    def recall(self, name: str, part: str, which: np.ndarray, how: str = "best") -> dict[str, float]:
        asked = self.asked[part]
        return shares(ranks(self.asking(name, part, how), asked)[which])


def learner_of(study: Study) -> Learner:
    return Learner(study.pack, study.texts, study.data.texts, study.data.train)


def add_untrained_and_baselines(study: Study) -> None:
    """Everything that needs no gradient step."""
    pack, texts = study.pack, study.texts
    heard = response_scores(factor_table(pack.arrays["text_rows"]), texts)
    study.scores[RESPONSE_TEXT] = spread_z(heard, heard[texts.rows(GENERIC_PROMPTS)])
    whole = pack.info.get("name") == "retrieval"  # of the shipped LoRAs alone, only the text side is kept
    study.scores[RESPONSE] = read_responses(pack, texts.texts) if whole else study.scores[RESPONSE_TEXT]
    study.scores[RESPONSE_NODE] = as_retrieve_reads(study)
    learner = learner_of(study)
    for name, cosines in baseline_scores(learner).items():
        study.add_vectors(name, cosines)
        (study.controls if name.startswith("control") else study.baselines).append(name)
    words = [written_words(row) for row in pack.rows]
    study.scores["text only, names and metadata"] = word_scores(pack, texts, words)
    study.scores["fuzzy words, names and metadata"] = fuzzy_scores(texts, words)
    study.baselines += ["text only, names and metadata", "fuzzy words, names and metadata"]
    for label, groups in (("file only", (MODULES,)), ("all", GROUPS)):
        vectors = learner.ridge(joined(study.data.groups, groups))
        study.add_vectors(f"ridge on our tokens, {label}", learner.cosine(vectors))
    study.scores[PROFILE] = study.z(learner.cosine(profile_vectors(study)))
    study.scores[DRAWN] = draw_scores(pack, texts) / COSINE_UNIT
    study.scores[DRAWN_LEARNT] = learner.drawing() / COSINE_UNIT
    study.scores["draw"] = study.z(learner.cosine(learner.ridge(joined(study.data.groups, ("draw",)))))


def as_retrieve_reads(study: Study) -> np.ndarray:
    """(texts, n): ``retrieve.responding`` in a large library, what strangers' answers leave of each; NaN as before."""
    scores = study.scores[RESPONSE]
    has = np.isfinite(scores).any(axis=0)
    known = np.isfinite(scores[:, has]).all(axis=1)
    filled = np.nan_to_num(scores)
    generic = study.texts.rows(GENERIC_PROMPTS)
    stranger = Stranger.learn(filled[generic], has & study.asked["test"].pool)
    left = stranger.residual(standardised(filled, stranger.pool))
    left[generic] = stranger.own_residual()
    return np.where(known[:, None] & has, left, np.nan).astype(np.float32)


def profile_vectors(study: Study) -> np.ndarray:
    """(n, d): ridge from responses to texts, learnt from the training part and from made-up LoRAs."""
    data = with_made_up(study.data, study.pack, study.texts)
    extra = Learner(study.pack, study.texts, data.texts, data.train)
    return extra.ridge(joined(data.groups, ("profile",)))[: len(study.pack)]


def add_published(study: Study, epochs: int) -> None:
    """AutoLoRA's encoder, chosen on validation by recall at 5 of names."""
    centre = study.texts.vectors[study.texts.rows(GENERIC_PROMPTS)].mean(axis=0)
    side = TextSide.of(study.data, lambda own: centred(study.texts.vectors[study.texts.rows(own)], centre))
    asked = study.asked["validation"]
    which = asked.of("name")
    queries = centred(study.texts.vectors, centre)

    def score(vectors: np.ndarray) -> float:
        study.scores["AutoLoRA"] = study.z(queries @ unit_rows(vectors).T)
        found = study.recall("AutoLoRA", "validation", which)
        return found["recall_at_5"] + found["mrr"]

    study.add_vectors("AutoLoRA", queries @ train_published(study.pack, study.data, side, epochs, score).T)
    study.baselines.append("AutoLoRA")


def phrases_needed(pack: Pack, more: Callable[[Pack], list[str]]) -> list[str]:
    """Every text of a run: prompts and their phrases, what training reads, what files may say."""
    asked = asked_phrases(pack)
    labels = [row["label"] for row in pack.rows] + [f"{row['label']} style" for row in pack.rows if not row["subject"]]
    return [*asked, *labels, *more(pack)]


def asked_phrases(pack: Pack) -> list[str]:
    """Every prompt of validation and test, its phrases, and its forms as captions have them."""
    prompts = [p for part in ("validation", "test") for p in prompts_of(pack, part)]
    asked = list(dict.fromkeys(phrase for p in prompts for phrase in p.phrases))
    known = {text.lower() for text in asked}
    forms = dict.fromkeys(form.text for p in prompts for form in caption_forms(p.text))
    return asked + [text for text in forms if text not in known]


def drawn_texts(pack: Pack) -> list[str]:
    """Texts whose drawing by the base is needed: phrases of all prompts, and what each training LoRA shows."""
    shown = [texts_of(row, ())[drawn_as(row)] for row in pack.rows if row["part"] == "train"]
    return [*asked_phrases(pack), *dict.fromkeys(shown)]


def begin(pack: Pack, texts: Texts) -> Study:
    asked = {part: ask(pack, part, prompts_of(pack, part)) for part in ("validation", "test")}
    profile = profile_of(pack.arrays["text_rows"], pack.info["bank"], texts)
    return Study(pack, texts, encoder_data(pack, profile), asked)
