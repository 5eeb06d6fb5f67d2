"""What a gate learns from: pictures, the text of each, and the LoRAs that belong to it.

Of a user's own LoRAs nobody has pictures of combinations. Each LoRA's own picture, made by the model with that LoRA
alone, is what should come of its words whichever LoRAs stand beside it. Pictures of the user's own may be of several.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

VALIDATION = 7_000_000  # draws for measuring, never used for learning


@dataclass(frozen=True)
class Example:
    """``picture`` and ``text``: their numbers. ``wanted``: numbers of the LoRAs that made it; maybe none."""

    picture: int
    text: int
    wanted: tuple[int, ...]


@dataclass(frozen=True)
class Draw:
    """One step's material. ``loras``: those in the model, the wanted ones first. ``other``: an example that ``example``
    should not be taken for, one of a LoRA that stands beside it where there is one. ``u``: share of the sampling."""

    example: Example
    other: Example | None
    loras: tuple[int, ...]
    u: float
    seed: int


def draw(examples: Sequence[Example], loras: int, most: int, number: int) -> Draw:
    """Material number ``number``, the same every time: up to ``most`` LoRAs at once."""
    rng = np.random.default_rng((11, number))
    example = examples[int(rng.integers(len(examples)))]
    strangers = [i for i in rng.permutation(loras).tolist() if i not in example.wanted]
    fewest = 2 if len(example.wanted) < 2 else len(example.wanted)
    count = int(rng.integers(min(fewest, loras), max(min(most, loras), fewest) + 1))
    beside = strangers[: max(count - len(example.wanted), 0)]
    others = [e for e in examples if set(e.wanted) & set(beside) and not set(e.wanted) & set(example.wanted)]
    others = others or [e for e in examples if e.text != example.text]
    other = others[int(rng.integers(len(others)))] if others else None
    return Draw(example, other, (*example.wanted, *beside), float(rng.random()), int(rng.integers(2**31)))


def named_in(caption: str, words: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the LoRAs whose own words all occur in a caption."""
    said = set(_tokens(caption))
    return tuple(i for i, own in enumerate(words) if _tokens(own) and set(_tokens(own)) <= said)


def _tokens(text: str) -> list[str]:
    small = {"a", "an", "the", "of", "in", "style"}
    return [word for word in re.findall(r"\w+", text.lower()) if word not in small]
