"""How previews are rendered; pictures made otherwise are not compared with each other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from ..errors import AutoLoRAError

# Prompts that leave open what is drawn: where one names a kind of thing, a LoRA of a subject gives way to it.
NEUTRAL_PROMPTS = ("a picture", "something", "a thing", "a person")
MOST_PROMPTS = 64
VERSION = 1


@dataclass(frozen=True)
class Settings:
    """``base`` names model, text encoder and VAE by their contents, ``tower`` the picture tower, "" for none."""

    prompts: tuple[str, ...]
    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    width: int
    height: int
    strength: float
    base: str
    tower: str = ""

    @property
    def id(self) -> str:
        """Of pictures with a LoRA."""
        return _digest(asdict(self))

    @property
    def without(self) -> str:
        """Of the pictures without one, which its strength does not change."""
        return _digest({**asdict(self), "strength": 0.0})

    def seed_of(self, number: int) -> int:
        """The noise of a prompt: one of its own, the same with and without a LoRA."""
        return (self.seed + number) % 2**64


def _digest(said: dict) -> str:
    text = json.dumps([VERSION, said], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def read_prompts(text: str) -> tuple[str, ...]:
    """A prompt a line, empty lines left out, each once. Raises ``AutoLoRAError`` for none and for too many."""
    prompts = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise AutoLoRAError("there is no prompt to render", key="prompts", fix="write a neutral prompt a line")
    if len(prompts) > MOST_PROMPTS:
        raise AutoLoRAError(
            f"{len(prompts)} prompts are too many, {MOST_PROMPTS} is the most", key="prompts", fix="take fewer lines"
        )
    return prompts
