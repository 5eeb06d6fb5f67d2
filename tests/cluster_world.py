"""A cluster that is this process: shards are read one after another, and those that it is told to lose are lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conftest import emoji_factors, write_lora

from autolora_core.cluster.rays import Lost
from autolora_core.cluster.worker import read_shard

WORDS = "otter fox ink neon castle rocket guitar cactus crown harbour violin lynx".split()


class HereCluster:
    """``lose(names)`` says whether the worker that reads files of these names is lost; ``read`` collects their names,
    a list a shard, lost ones too."""

    def __init__(self, lose: Callable[[list[str]], bool] = lambda names: False, workers: int = 2):
        self.lose, self.cpus = lose, workers
        self.read: list[list[str]] = []
        self.paths: list[str] = []
        self._results: list[bytes | Exception] = []

    def workers(self) -> int:
        return self.cpus

    def start(self, request: bytes) -> int:
        files = json.loads(request)["files"]
        self.read.append([os.path.basename(file["name"]) for file in files])
        self.paths += [file["path"] for file in files]
        lost = self.lose(self.read[-1])
        self._results.append(Lost("it was told to") if lost else self.answer(request))
        return len(self._results) - 1

    def answer(self, request: bytes) -> bytes | Exception:
        try:
            return read_shard(request)
        except Exception as error:
            return error

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        return list(handles)[-1:]  # never in the order in which they were given

    def result(self, handle: int) -> bytes:
        made = self._results[handle]
        if isinstance(made, Exception):
            raise made
        return made


def mixed_folder(loras: Path, good: int = 15) -> Path:
    """Good files, some with sidecars, in folders; copies, a text file with the ending of a LoRA, one that was cut
    off, a pickle."""
    for seed in range(good):
        folder = loras / ("styles" if seed % 3 else "people")
        write_lora(folder / f"{WORDS[seed % 12]}-{seed}.safetensors", emoji_factors(seed, blocks=1))
    for seed in (3, 4):
        original = loras / ("styles" if seed % 3 else "people") / f"{WORDS[seed]}-{seed}.safetensors"
        (loras / f"zz-copy-{seed}.safetensors").write_bytes(original.read_bytes())
        original.with_suffix(".txt").write_text("watercolour, paper", encoding="utf-8")
        original.with_suffix(".preview.png").write_bytes(b"png")
    (loras / "not-one.safetensors").write_bytes(b"hello")
    (loras / "cut.safetensors").write_bytes((loras / "zz-copy-3.safetensors").read_bytes()[:-100])
    (loras / "old.ckpt").write_bytes(b"pickle")
    return loras
