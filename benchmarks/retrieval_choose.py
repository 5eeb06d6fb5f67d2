"""Which LoRAs answer a prompt, phrase by phrase: the way of reading scores that the validation part preferred.

A prompt is asked in the forms in which captions speak (:mod:`benchmarks.retrieval_forms`). Every form's scores are
read by how far they stand out (:mod:`benchmarks.retrieval_standouts`); what a LoRA draws unasked is a second witness,
read in the same way, that needs no captions. What was tried, and what validation said of it, stands in
``docs/retrieval.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autolora_core.encode.generic import GENERIC_PROMPTS
from benchmarks.retrieval_forms import DETERMINERS, Form, caption_forms
from benchmarks.retrieval_standouts import Standouts
from benchmarks.retrieval_texts import Prompt

# How much the whole prompt says beside its best phrase; "Y" beside "Y style"; how much of a LoRA's own ruler a style
# loses (style LoRAs are loud by nature).
WHOLE, PLAIN_STYLE, STYLE_RULER = 0.5, 0.5, 0.5
# Drawings: the ridge of their own reading, and the line that puts them on the scale of responses.
DRAWN_RIDGE, DRAWN_SLOPE, DRAWN_SHIFT = 10.0, 1.5, 1.0
BANK_KINDS = ("name", "keywords")
PICKS = 3
SILENT = 1e3  # the ruler of a LoRA that answers nothing: out of reach


@dataclass(frozen=True)
class Part:
    """A form of a prompt: its row among the texts, the row without "style" if there is one; ``listed``: one of several
    words without determiners ("ski, snow and winter"), which say one thing together."""

    row: int
    style: bool
    plain: int | None = None
    listed: bool = False


def parts_of(prompt: str, rows: Mapping[str, int]) -> list[Part]:
    """Forms of a prompt that are among ``rows`` (lower case), else without their determiner, else left out."""
    forms = [(form, _row(form.text, rows)) for form in caption_forms(prompt)]
    known = [(form, row) for form, row in forms if row is not None]
    bare = [form for form, _ in known if _bare(form)]
    return [
        Part(row, form.role == "style", rows.get(form.text.removesuffix(" style")) if form.role == "style" else None,
             len(bare) > 1 and _bare(form))
        for form, row in known
    ]  # fmt: skip


def _row(text: str, rows: Mapping[str, int]) -> int | None:
    first, _, rest = text.partition(" ")
    return rows.get(text, rows.get(rest) if first in DETERMINERS else None)


def _bare(form: Form) -> bool:
    return form.role != "style" and form.text.partition(" ")[0] not in DETERMINERS


@dataclass(frozen=True)
class Chooser:
    """Reads one part of the benchmark. ``rows``: text in lower case → row; ``pool`` (n,) bool the candidates."""

    rows: Mapping[str, int]
    response: Standouts
    pool: np.ndarray
    drawn: Standouts | None = None

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        response: np.ndarray,
        pool: np.ndarray,
        bank: Sequence[Prompt],
        drawn: np.ndarray | None = None,
    ) -> Chooser:
        """``response`` and ``drawn`` (texts, n), NaN in rows that were not asked and for LoRAs that cannot answer.
        ``bank``: prompts of *another* part, whose words are each LoRA's own ruler."""
        hears = np.isfinite(response).any(axis=0)
        rows = {t.lower(): i for i, t in enumerate(texts) if np.isfinite(response[i, hears]).all()}
        generic = [rows[t.lower()] for t in GENERIC_PROMPTS]
        words = sorted({*generic, *bank_rows(bank, rows)})
        heard = Standouts.read(np.nan_to_num(response), generic, words, pool & hears)
        heard = replace(heard, own=np.where(hears, heard.own, SILENT))
        if drawn is None:
            return cls(rows, heard, pool)
        return cls(rows, heard, pool, Standouts.read(np.nan_to_num(drawn), generic, words, pool, DRAWN_RIDGE))

    def claims(self, prompt: str) -> list[np.ndarray]:
        """(n,) for each thing that the prompt asks for: how far the LoRAs stand out, about their own rulers. Two
        witnesses, either of which will do: what a LoRA answers, and (of subjects) what it draws."""
        return [self._claim(group) for group in groups_of(prompt, self.rows)]

    def _claim(self, group: Sequence[Part]) -> np.ndarray:
        if group[0].style:
            return self._style(group[0])
        heard = _together(self.response, group)
        if self.drawn is None or len(group) > 1:
            return heard
        return np.logaddexp(heard, DRAWN_SLOPE * _together(self.drawn, group) + DRAWN_SHIFT)

    def _style(self, part: Part) -> np.ndarray:
        heard = self.response.standard
        score = heard[part.row]
        if part.plain is not None:
            score = (score + PLAIN_STYLE * heard[part.plain]) / np.hypot(1, PLAIN_STYLE)
        return score - STYLE_RULER * self.response.own

    def score(self, prompt: str) -> np.ndarray:
        """(n,): the best claim, and half of what the prompt says as a whole."""
        return np.max(self.claims(prompt), axis=0) + WHOLE * self.response.residual[self.rows[prompt.lower()]]

    def picks(self, prompt: str, count: int = PICKS) -> list[int]:
        """The best LoRA of every claim, the clearest claim first; then more of the subject that is least clear. (The
        runner-up of a style is most often another variant of it.)"""
        groups = groups_of(prompt, self.rows)
        claims = [np.where(self.pool, self._claim(group), -np.inf) for group in groups]
        order = sorted(range(len(claims)), key=lambda i: -claims[i].max())
        least = ([i for i in order if not groups[i][0].style] or order)[-1]
        more = np.argsort(-claims[least], kind="stable")[: count + len(claims)]
        return list(dict.fromkeys(int(i) for i in (*(claims[i].argmax() for i in order), *more)))[:count]


def groups_of(prompt: str, rows: Mapping[str, int]) -> list[list[Part]]:
    """Parts that ask for one thing; the whole prompt when it has none."""
    parts = parts_of(prompt, rows)
    listed = [part for part in parts if part.listed]
    groups = [[part] for part in parts if not part.listed] + ([listed] if listed else [])
    return groups or [[Part(rows[prompt.lower()], style=False)]]


def _together(read: Standouts, group: Sequence[Part]) -> np.ndarray:
    """(n,): of several words the mean of what stands out; of one what it is, above or below."""
    said = read.residual[[part.row for part in group]]
    return (said[0] if len(group) == 1 else said.clip(min=0).mean(axis=0)) - read.own


def bank_rows(prompts: Sequence[Prompt], rows: Mapping[str, int]) -> set[int]:
    """Rows of the words of names and keywords."""
    words = {t for p in prompts if p.kind in BANK_KINDS for t in (*p.phrases, *(f.text for f in caption_forms(p.text)))}
    return {rows[w.lower()] for w in words if w.lower() in rows}
