"""A small library of four LoRAs, encoded, and a copy of it for every case."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from autolora_core.encode.towers import LexicalTower
from autolora_core.library.index import Library
from autolora_core.retrieve.prepare import warm
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.selection import Selection

from .oracle import Wrong

NAMES = ("otter", "castle", "watercolour style", "lora_000123")
TOWER = LexicalTower()


def build(folder: Path) -> None:
    """``loras/`` and the encoded library ``base/`` in ``folder``, unless they are there."""
    if (folder / "base").exists():
        return
    (folder / "loras").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        drawn = np.random.default_rng(seed)
        tensors = {}
        for part, rows in (("attn.qkv", 768), ("mlp.fc1", 1024)):
            stem = f"diffusion_model.joint_blocks.0.x_block.{part}"
            tensors[f"{stem}.lora_A.weight"] = drawn.standard_normal((2, 256)).astype(np.float16)
            tensors[f"{stem}.lora_B.weight"] = (drawn.standard_normal((rows, 2)) * 0.05).astype(np.float16)
        said = {"ss_tag_frequency": json.dumps({"a": {name: 9}})} if seed < 3 else None
        save_file(tensors, folder / "loras" / f"{name}.safetensors", said)
    with Library.open(folder / "base") as library:
        library.scan({"loras": folder / "loras"})
        library.fit(TOWER)
        warm(library, "emoji", TOWER)
        retrieve(library, "an otter", family="emoji", tower=TOWER)
        library.store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    forget()


def copy(folder: Path) -> Path:
    """A library for one case, as ``base`` is."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder / "base", work)
    forget()
    return work


def forget() -> None:
    """Empty what the pack keeps in memory of libraries: what is read must come from the files."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("autolora_core.library.", "autolora_core.retrieve.")):
            for held in _held(module):
                held.clear()


def _held(module: Any) -> Iterator[Any]:
    for name, value in vars(module).items():
        if name.startswith("_") and name.islower() and not name.startswith("__") and hasattr(value, "popitem"):
            yield value


def ask(library: Library) -> Selection:
    """What the library answers to a prompt that it holds a LoRA for; checked."""
    found = retrieve(library, "an otter, watercolour style", family="emoji", tower=TOWER, threshold=0.0)
    names = {entry.name for entry in library.entries()}
    for pick in (*found.picks, *found.misses):
        if pick.name not in names or not np.isfinite([pick.score, pick.strength]).all():
            raise Wrong(f"a pick that is none: {pick.name!r:.100} {pick.score}")
    json.dumps(found.to_json())
    return found
