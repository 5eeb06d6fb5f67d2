"""What the fusion benchmark asks for: pairs of a subject and a style whose real picture exists, and who stands beside.

Drawn by hash, once and for ever for a shelf: a pair (subject, style) needs a subject and a style that the base never
saw, so both LoRAs are wanted, and its composite must be in nobody's training. Distractors are LoRAs that nobody asked
for: for half of the cases any, for the other half those that answer most loudly to the prompt's phrases, the
retriever's near misses. Nobody looks at whether a LoRA is good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.fusion_shelf import Lora, Shelf
from zoo.captions import STYLE_NAMES, captions, style_name, subject_name, with_article
from zoo.splits import DEFAULT_STYLE, Splits, unit

DISTRACTORS, SEEDS, NEAR_SHARE = 8, 16, 0.5
Exists = Callable[[str, str], bool]
# Phrases → for each LoRA the loudest of its answers to them, and None where none of the phrases was ever asked.
Answers = Callable[[Sequence[str]], Mapping[str, float] | None]


@dataclass(frozen=True)
class Case:
    """``wanted``: ids of the subject's and the style's LoRA. ``near``: whether the distractors are near misses.

    ``bystander``: a subject the base knows, for the runs in which nobody asks for any of the LoRAs.
    """

    subject: str
    style: str
    part: str
    wanted: tuple[str, str]
    distractors: tuple[str, ...]
    near: bool
    bystander: str

    @property
    def name(self) -> str:
        return f"{self.subject}|{self.style}"

    def loras(self, k: int) -> list[str]:
        """The wanted two and ``k`` − 2 distractors, in an order that gives nothing away."""
        return self._mixed([*self.wanted, *self.distractors[: k - 2]])

    def strangers(self, k: int) -> list[str]:
        """``k`` LoRAs that nobody asked for."""
        return self._mixed(self.distractors[:k])

    def _mixed(self, ids: Iterable[str]) -> list[str]:
        return sorted(ids, key=lambda lora: unit("fusion-order", f"{self.name}|{lora}"))

    @cached_property
    def prompts(self) -> list[str]:
        """A natural prompt for each seed, as captions are drawn; all name the subject and the style."""
        return self._drawn(captions(self.subject, self.style))

    @cached_property
    def subject_prompts(self) -> list[str]:
        """The subject alone, in no style."""
        return [_subject_phrase(self.subject)] * SEEDS

    @cached_property
    def bystander_prompts(self) -> list[str]:
        return self._drawn(captions(self.bystander, DEFAULT_STYLE))

    def _drawn(self, weighted: Sequence[tuple[str, float]]) -> list[str]:
        texts, weights = zip(*weighted, strict=True)
        places = np.searchsorted(np.cumsum(weights), [unit("fusion-prompt", f"{self.name}|{s}") for s in range(SEEDS)])
        return [texts[min(int(place), len(texts) - 1)] for place in places]

    @property
    def noise(self) -> int:
        """Seed of the first picture's noise; the same for every method."""
        return int(unit("fusion-noise", self.name) * 2**31)

    @property
    def bystander_phrases(self) -> list[str]:
        return [_subject_phrase(self.bystander)]

    @property
    def phrases(self) -> list[str]:
        return [_subject_phrase(self.subject), _style_phrase(self.style)]


def draw_cases(
    shelf: Shelf, part: str, exists: Exists, answers: Answers | None = None, limit: int | None = None
) -> list[Case]:
    """The cases of a part, in an order drawn by hash: the first ``limit`` are a fair sample of all."""
    pairs = sorted(wanted_pairs(shelf, part, exists), key=lambda p: unit("fusion-case", f"{p[0].id}|{p[1].id}"))
    seen, out = set(), []
    for subject, style in pairs:
        thing = (subject.subject or "", style.style or "")
        if len(out) == limit:
            break
        if thing not in seen:  # one edition of each LoRA speaks for the pair
            seen.add(thing)
            out.append(_case(shelf, part, subject, style, answers))
    return out


def wanted_pairs(shelf: Shelf, part: str, exists: Exists) -> list[tuple[Lora, Lora]]:
    """(subject LoRA, style LoRA): both unknown to the base, the look one that the judge can name, the picture there."""
    splits = Splits.load()
    subjects = [lora for lora in shelf.loras if lora.kind == "subject" and lora.subject in splits.lora_subjects]
    styles = [lora for lora in shelf.loras if lora.style in splits.lora_styles and lora.kind == "style"]
    return [
        (a, b)
        for a in subjects
        for b in styles
        if b.style in STYLE_NAMES and shelf.part(a.subject, b.style) == part and exists(a.subject, b.style)
    ]


def _case(shelf: Shelf, part: str, subject: Lora, style: Lora, answers: Answers | None) -> Case:
    name = f"{subject.subject}|{style.style}"
    near = answers is not None and unit("fusion-near", name) < NEAR_SHARE
    known = sorted(Splits.load().base_subjects)
    bystander = known[int(unit("fusion-bystander", name) * len(known))]
    bare = Case(subject.subject, style.style, part, (subject.id, style.id), (), near, bystander)
    pool = [lora for lora in shelf.loras if not lora.shows(bare.subject, bare.style) and not _asked(lora, bystander)]
    loud = answers(bare.phrases) if near and answers is not None else None
    if loud is None:
        order = np.random.default_rng(int(unit("fusion-distractor", name) * 2**53)).permutation(len(pool))
        pool = [pool[i] for i in order]
    else:
        pool = sorted((lora for lora in pool if lora.id in loud), key=lambda lora: -loud[lora.id])
    chosen = tuple(_different(pool))
    return Case(bare.subject, bare.style, part, bare.wanted, chosen, loud is not None, bystander)


def _asked(lora: Lora, bystander: str) -> bool:
    return lora.shows(bystander, DEFAULT_STYLE)


def _different(pool: Iterable[Lora]) -> list[str]:
    """Ids of the first of ``pool`` that show different things."""
    labels: dict[str, str] = {}
    for lora in pool:
        labels.setdefault(lora.label, lora.id)
        if len(labels) == DISTRACTORS:
            break
    return list(labels.values())


def zoo_answers() -> Answers:
    """The retriever's response scores of the large zoo, as the repository has them; second copies are left out."""
    from zoo.features_pack import read
    from zoo.responses_pack import read_responses

    pack, splits = read("retrieval"), Splits.load()
    texts = [_subject_phrase(s) for s in splits.subjects()] + [_style_phrase(s) for s in splits.lora_styles]
    z = read_responses(pack, texts)
    known = {text: row for text, row in zip(texts, z, strict=True) if not np.isnan(row).any()}
    ids = {row["id"]: i for i, row in enumerate(pack.rows) if not row["copy_of"]}

    def answers(phrases: Sequence[str]) -> dict[str, float] | None:
        asked = [known[text] for text in phrases if text in known]
        return {lora: float(max(row[i] for row in asked)) for lora, i in ids.items()} if asked else None

    return answers


def _subject_phrase(subject: str) -> str:
    return with_article(subject_name(subject))


def _style_phrase(style: str) -> str:
    return f"{style_name(style)} style"
