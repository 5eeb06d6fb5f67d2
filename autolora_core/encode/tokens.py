"""A LoRA as a set of tokens: one for each module of its base, on a module list common to the family.

A module's token is its sketch (:mod:`.sketch`) on the leading principal directions of that module over the training
LoRAs, and its log-norm beside the family's usual one. Absent modules are masked, never zero-filled by meaning: most
files lack some. The numbers are functions of ΔW, so a file re-saved in other factors gives the same tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from .features import Features, FeatureSchema

LOG_NORM_SCALE = 1.5


@dataclass(frozen=True)
class TokenMap:
    """From a family's sketches to tokens. ``basis`` (M, k, width), ``mean`` (M, width), ``scale`` (M, k) float32.

    ``scale`` is the root mean square of each kept number over the training LoRAs; ``usual`` (M,) the mean log-norm.
    """

    schema: FeatureSchema
    basis: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    usual: np.ndarray

    @property
    def width(self) -> int:
        """Numbers a token: what is kept of the sketch, and the log-norm twice (against the file's mean, and the
        file's mean against the usual one)."""
        return self.basis.shape[1] + 2

    @property
    def id(self) -> str:
        """12 hex digits over everything that decides a token."""
        digest = hashlib.sha256(self.schema.id.encode())
        for array in (self.basis, self.mean, self.scale, self.usual):
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        return digest.hexdigest()[:12]

    def tokens(self, features: Features) -> tuple[np.ndarray, np.ndarray]:
        """(M, width) float32 tokens and their (M,) mask of a file laid out on :attr:`schema`."""
        grid = features.vector.reshape(len(self.schema.modules), -1)
        raw = restored(grid, features.mask, self.schema)
        kept = np.einsum("mkw,mw->mk", self.basis, raw - self.mean)
        return assemble(kept[None], features.mask[None], features.log_norms[None], self.scale, self.usual)[0], (
            features.mask
        )


def restored(grid: np.ndarray, mask: np.ndarray, schema: FeatureSchema) -> np.ndarray:
    """Undo :meth:`FeatureSchema.assemble`'s division by the number of modules present: (M, width)."""
    return grid * np.float32(max(int(mask.sum()), 1) ** 0.5)


def assemble(
    kept: np.ndarray, mask: np.ndarray, log_norms: np.ndarray, scale: np.ndarray, usual: np.ndarray
) -> np.ndarray:
    """(n, M, k + 2) tokens from projected sketches (n, M, k), masks and log-norms (n, M); zero where absent."""
    ready = kept / np.where(scale > 0, scale, 1)
    above = np.where(mask, log_norms - usual, 0)
    level = above.sum(axis=1, keepdims=True) / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    norms = np.stack([above - level, np.broadcast_to(level, above.shape)], axis=-1) / LOG_NORM_SCALE
    tokens = np.concatenate([ready, norms], axis=-1) * mask[..., None]
    return np.clip(tokens, -8, 8).astype(np.float32)
