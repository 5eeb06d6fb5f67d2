"""Texts that users type, or that come over the API: LoRA marks, schedules, blocks, filters, settings, terms."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np

from autolora_core.fusion.lora_text import MARK, read_marks, write_mark
from autolora_core.fusion.terms import BlockFactors, Schedule, Term, terms_by_lora
from autolora_core.image_info.graph import Facts
from autolora_core.image_info.parameters import HashedLora, parameters_text, read_settings
from autolora_core.library.names import compile_filter, meaningful_name
from autolora_core.retrieve.lexicon import Lexicon
from autolora_core.retrieve.spans import decompose
from autolora_core.retrieve.words import content_stems

from .. import mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 16_000
PARTS = (
    "<lora:",
    ":",
    ">",
    "otter",
    "0.8",
    "-1",
    ",",
    "\n",
    "0: 1",
    "0.5: 1",
    "0.2-0.8",
    ";",
    "double_blocks.0-8",
    "single_blocks",
    "*.attn*",
    " ",
    "=",
    "te=0.5",
    "unet=1",
    "lbw=XY",
    "<",
    "(",
    ")",
    "[",
    "]",
    "*",
    "?",
    "-",
    "Steps",
    ": 20",
    "joint_blocks.3",
    "a photo of",
    " in the style of ",
    "ottr",
    "\\(",
    "input_blocks.4-7.",
    "1e5",
    "0-99999999",
    "and",
    "0 1",
    "+",
    "AND",
    "::",
)
KINDS = ("marks", "schedule", "blocks", "filter", "settings", "term", "prompt", "name")
MODULES = (
    "joint_blocks.0.x_block.attn.qkv",
    "double_blocks.3.img_attn.proj",
    "input_blocks.4.1.proj_in",
    "middle_block.1",
    "single_blocks.1.x",
)


def bound(size: int) -> int:
    return 8 * MIB + 200 * size


def seeds(folder: Path) -> list[bytes]:
    whole = (
        "an otter <lora:otter:0.8:0.6>, fox",
        "0: 1, 0.5: 1, 0.6: 0",
        "double_blocks.0-8: 0.5, single_blocks: 0",
        "flux/*, -old",
        "Steps: 20\nSampler: Euler a",
        "otter",
        "an otter in the style of watercolour",
        "Watercolour_Otter-v2",
    )
    return [f"{kind} {text}".encode() for kind, text in zip(KINDS, whole, strict=True)]


def make(rng: random.Random, parent: bytes) -> bytes:
    kind = rng.choice(KINDS)
    text = mutate.lines(rng, PARTS) if rng.random() < 0.7 else parent.decode("utf-8", "surrogatepass").partition(" ")[2]
    if rng.random() < 0.3:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + mutate.text(rng) + text[at:]
    if rng.random() < 0.02:
        text = rng.choice(PARTS) * rng.choice((500, 5000))
    return f"{kind} {text[:60_000]}".encode("utf-8", "surrogatepass")


def run(data: bytes, folder: Path) -> None:
    kind, _, text = data.decode("utf-8", "surrogatepass").partition(" ")
    {
        "marks": _marks,
        "schedule": _schedule,
        "blocks": _blocks,
        "filter": _filter,
        "settings": _settings,
        "term": _term,
        "prompt": _prompt,
        "name": meaningful_name,
    }.get(kind, str)(text)


def _marks(text: str) -> None:
    marks, rest = read_marks(text)
    if len(marks) != len(MARK.findall(text)) or not isinstance(rest, str):
        raise Wrong(f"{len(marks)} marks are read of {len(MARK.findall(text))}")
    for mark in marks:
        if not mark.name or not math.isfinite(mark.model) or not math.isfinite(mark.clip):
            raise Wrong(f"a mark without name or number: {mark!r:.200}")
        written, _ = read_marks(write_mark(mark.name, mark.model, mark.clip))
        if written[0].name != mark.name or abs(written[0].model - mark.model) > 1e-6 * max(1.0, abs(mark.model)):
            raise Wrong(f"{mark!r:.200} is written and read as {written[0]!r:.200}")


def _schedule(text: str) -> None:
    found = Schedule.parse(text)
    if found is None:
        return
    for place in (0.0, 0.1, 0.5, 0.99, 1.0):
        if not math.isfinite(found.at(place)):
            raise Wrong(f"the schedule {found!s:.100} is {found.at(place)} at {place}")
    str(found)


def _blocks(text: str) -> None:
    found = BlockFactors.parse(text)
    if found is not None:
        if not all(math.isfinite(found.of(module)) for module in MODULES):
            raise Wrong("a factor that is not finite")
        found.check(MODULES)


def _filter(text: str) -> None:
    passes = compile_filter(text)
    [passes(name) for name in ("flux/people/otter.safetensors", "a" * 200, "x\\y.sft")]


def _settings(text: str) -> None:
    said = read_settings(text)
    facts = Facts(steps=20, positive=text, negative=text, model=text, sampler=text)
    written = parameters_text(facts, [HashedLora(text.replace("\n", " "), 1.0, 1.0, "ab", "cd")], (64, 64), "", said)
    if len(written.rsplit("\n", 1)) != 2:
        raise Wrong("parameters without a line of settings")


def _term(text: str) -> None:
    names = ["loras/otter.safetensors", "fox.safetensors"]
    found = terms_by_lora([Term(text)], names)
    if not found.keys() <= {0, 1}:
        raise Wrong(f"a term means LoRAs {sorted(found)}")


def _prompt(text: str) -> None:
    spans = decompose(text)
    lexicon = Lexicon([text, "otter"], np.array([0, 1]), np.array([0, 1]), 2)
    asked = [span.text for span in spans][:20]
    scores = lexicon.shared(asked, [frozenset(content_stems(one)) for one in asked]).overlap
    if not ((scores >= 0) & (scores <= 1 + 1e-9)).all():
        raise Wrong(f"overlaps {scores}")
