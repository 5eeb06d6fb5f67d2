"""Prompts of the retrieval benchmark.

Four kinds of prompt ask for a subject: its *name*, a *sentence* with the name, a *paraphrase* of name and keywords, and
*keywords* alone (which often fit several subjects: reported, not part of the headline). No caption has a template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autolora_core.retrieve.spans import decompose
from zoo.captions import subject_name, with_article
from zoo.splits import unit

SENTENCES = (
    "please show me {thing}",
    "{thing} for the cover of a school book",
    "we need {thing} on our invitation card",
    "could you make {thing} for my slides",
)
PARAPHRASES = ("{thing}, which stands for {a} and {b}", "{thing}: think of {a} or {b}")
KEYWORDS = ("something that has to do with {words}", "it should say {words}")
HEADLINE = ("sentence", "paraphrase")


@dataclass(frozen=True)
class Prompt:
    """``kind``: name, sentence, paraphrase, keywords, style, set. ``subject`` and ``style`` are what it asks for."""

    text: str
    kind: str
    subject: str | None = None
    style: str | None = None

    @property
    def phrases(self) -> tuple[str, ...]:
        """The whole prompt first, then the phrases that it falls into."""
        parts = [s.text for s in decompose(self.text) if s.partial == 0 and not s.joined]
        return tuple(dict.fromkeys([self.text, *parts]))


def subject_prompts(subject: str, keywords: Sequence[str]) -> list[Prompt]:
    """Up to five prompts; those with keywords only where there are enough."""
    thing = with_article(subject_name(subject))
    at = int(unit("prompt", subject) * 1e6)
    out = [Prompt(thing, "name", subject)]
    out += [Prompt(SENTENCES[(at + i) % len(SENTENCES)].format(thing=thing), "sentence", subject) for i in range(2)]
    if len(keywords) >= 2:
        text = PARAPHRASES[at % len(PARAPHRASES)].format(thing=thing, a=keywords[0], b=keywords[1])
        out.append(Prompt(text, "paraphrase", subject))
        words = ", ".join(keywords[:3][:-1]) + f" and {keywords[:3][-1]}"
        out.append(Prompt(KEYWORDS[at % len(KEYWORDS)].format(words=words), "keywords", subject))
    return out


def style_prompts(style: str, label: str, subject: str) -> list[Prompt]:
    """A style is asked for with something drawn in it."""
    thing = with_article(subject_name(subject))
    return [Prompt(f"{thing} in {label} style", "style", None, style), Prompt(f"{label} style", "style", None, style)]


def set_prompts(pairs: Sequence[tuple[str, str, str]]) -> list[Prompt]:
    """``(subject, style, style's label)``: both are wanted."""
    return [Prompt(f"{with_article(subject_name(s))} in {label} style", "set", s, k) for s, k, label in pairs]
