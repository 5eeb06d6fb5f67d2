"""Batches for the base: latents of (known subject, known style) pictures with varied captions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.cache import zoo_dir
from zoo.captions import caption
from zoo.pictures import Pictures
from zoo.splits import Splits
from zoo.text_bank import TextBank

CAPTIONS_A_PICTURE = 8


@dataclass
class BaseData:
    """``latents`` (n, 16, 16, 16) float16 and, for each, the rows of its captions in ``bank`` (n, k)."""

    latents: np.ndarray
    captions: np.ndarray
    bank: TextBank

    @classmethod
    def load(cls) -> BaseData:
        """Build or read from the cache; the same for every process."""
        pictures, splits = Pictures.load(), Splits.load()
        subjects, styles = set(splits.base_subjects), set(splits.base_styles)
        rows = [r for r in pictures.rows if r["subject"] in subjects and r["style"] in styles]
        rng = np.random.default_rng(1)
        texts = [[caption(r["subject"], r["style"], rng) for _ in range(CAPTIONS_A_PICTURE)] for r in rows]
        bank = TextBank.build([t for group in texts for t in group], "base")
        ids = np.array([[bank.index[t] for t in group] for group in texts])
        latents = np.load(zoo_dir() / "latents.npy", mmap_mode="r")[[r["row"] for r in rows]]
        return cls(np.ascontiguousarray(latents), ids, bank)

    def batch(self, rng: np.random.Generator, n: int, drop: float) -> tuple[Tensor, Tensor, Tensor]:
        """Random latents (n, 16, 16, 16), contexts (n, 24, 384), pooled (n, 384); ``drop`` of them empty."""
        picks = rng.integers(len(self.latents), size=n)
        ids = self.captions[picks, rng.integers(self.captions.shape[1], size=n)]
        ids = np.where(rng.random(n) < drop, 0, ids)
        return torch.from_numpy(self.latents[picks].astype(np.float32)), *self.bank.rows(ids)
