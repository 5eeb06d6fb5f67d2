"""Which LoRAs the demo world has: what each shows, by which recipe it is made, and how its file looks.

An uncurated shelf, as people own it: every LoRA belongs to a "creator" (a recipe); most files have a meaningless name
and no metadata; some are partial, over- or under-trained, or a second edition of another file.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from zoo.cache import read_json, zoo_dir
from zoo.captions import STYLE_NAMES, subject_name
from zoo.splits import Splits, unit

SUBJECTS, SEED = 68, 11
ATTENTION, MLP, CONTEXT = "attention", "mlp", "context"
THINGS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
# Subjects that make good demonstrations are always in; the rest are drawn by hash.
WANTED = (
    "axolotl",
    "otter",
    "lighthouse",
    "dragon",
    "peacock",
    "octopus",
    "castle",
    "tractor",
    "accordion",
    "hedgehog",
)


@dataclass(frozen=True)
class Creator:
    """A recipe. ``lr`` is for Adam; ``layers`` are kinds of layers; ``alpha`` is a multiple of the rank."""

    name: str
    rank: int
    alpha: float
    lr: float
    steps: int
    layers: tuple[str, ...]
    keys: str  # kohya, diffusers, peft, native
    dtype: str  # float16, bfloat16, float32
    rule: str = "adam"  # adam or sign (Lion-like)


CREATORS = (
    Creator("mellow", 4, 1.0, 3e-3, 300, (ATTENTION, MLP, CONTEXT), "kohya", "float16"),
    Creator("quill", 5, 0.5, 4e-3, 320, (ATTENTION, MLP), "diffusers", "float16"),
    Creator("basalt", 4, 2.0, 2e-3, 320, (ATTENTION, CONTEXT), "peft", "bfloat16"),
    Creator("juniper", 7, 0.5, 3e-3, 280, (ATTENTION, CONTEXT), "kohya", "float16"),
    Creator("tern", 2, 1.0, 5e-3, 380, (ATTENTION, MLP, CONTEXT), "native", "float16"),
    Creator("orrery", 5, 1.0, 3e-3, 240, (MLP, CONTEXT), "diffusers", "bfloat16"),
    Creator("lumen", 3, 1.0, 8e-4, 340, (ATTENTION, MLP, CONTEXT), "kohya", "float16", "sign"),
    Creator("hasty", 4, 1.0, 2e-3, 120, (ATTENTION, MLP, CONTEXT), "peft", "float16"),  # under-trained
)


@dataclass(frozen=True)
class LoraSpec:
    """One LoRA to train. Exactly one of ``subject`` and ``style`` is set."""

    id: str
    subject: str | None
    style: str | None
    creator: Creator
    metadata: str  # "rich", "tags" or "none"
    file_name: str
    seed: int

    @property
    def label(self) -> str:
        return subject_name(self.subject) if self.subject else STYLE_NAMES[self.style or ""]

    @property
    def digest(self) -> str:
        """Changes when anything about the training changes; finished files carry it."""
        return hashlib.sha256(repr(sorted(asdict(self).items(), key=str)).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file_name,
            "subject": self.subject,
            "style": self.style,
            "label": self.label,
            "creator": self.creator.name,
        }


def categories_of() -> dict[str, str]:
    """Subject -> its group in Unicode's emoji list."""
    return read_json(zoo_dir() / "pictures.json")["categories"]


def chosen_subjects(count: int = SUBJECTS) -> list[str]:
    """LoRA-only subjects: the wanted ones that are LoRA-only, then by hash. Things, not signs; no look-alikes."""
    categories = categories_of()
    pool = sorted(Splits.load().lora_subjects, key=lambda s: (s not in WANTED, unit("lora-subject", s)))
    out: list[str] = []
    heads: set[str] = set()
    for subject in pool:
        head = subject.split("-")[-1]
        if head in heads or categories.get(subject) not in THINGS:
            continue
        heads.add(head)
        out.append(subject)
        if len(out) == count:
            break
    return out


def meaningless_name(seed: int) -> str:
    """A file name as found in the wild: a hash, a step count, a default."""
    h = hashlib.sha256(f"name|{seed}".encode()).hexdigest()
    forms = (
        f"{h[:10]}",
        f"lora_{int(h[:5], 16):06d}",
        f"last-{int(h[5:8], 16):06d}",
        f"my_lora_v{int(h[0], 16)}_{h[8:12]}",
        f"{h[:8]}-{h[8:12]}",
    )
    return forms[int(h[12], 16) % len(forms)] + ".safetensors"


def plan() -> list[LoraSpec]:
    """Every LoRA in a fixed order: subjects, styles, then second editions by another creator."""
    rng = np.random.default_rng(SEED)
    things = [(s, None) for s in chosen_subjects()] + [(None, s) for s in sorted(Splits.load().lora_styles)]
    specs = []
    for i, (subject, style) in enumerate(things):
        creator = CREATORS[int(rng.choice(len(CREATORS), p=[0.2, 0.14, 0.14, 0.14, 0.12, 0.1, 0.1, 0.06]))]
        metadata = str(rng.choice(["rich", "tags", "none"], p=[0.22, 0.16, 0.62]))
        name = f"{(subject or style)}-{creator.name}.safetensors" if metadata != "none" else meaningless_name(i)
        specs.append(LoraSpec(f"{i:03d}", subject, style, creator, metadata, name, 1000 + i))
    again = [specs[int(i)] for i in rng.choice(len(specs), 6, replace=False)]
    for j, spec in enumerate(again):
        creator = CREATORS[(CREATORS.index(spec.creator) + 3) % len(CREATORS)]
        n = len(specs)
        specs.append(
            replace(
                spec,
                id=f"{n:03d}",
                creator=creator,
                metadata="none",
                file_name=meaningless_name(500 + j),
                seed=1000 + n,
            )
        )
    return specs
