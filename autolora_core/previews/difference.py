"""What a LoRA does to pictures, as CARLoS describes it (arXiv 2512.08826): direction, strength, consistency.

For every neutral prompt e(with the LoRA) − e(without), e an embedding of pictures; what they have in common is the
direction, how long they are on average the strength, how much they agree the consistency.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Side of the grid that a latent is pooled to: layout and colour stay, and the picture's size does not matter.
GRID = 8
TINY = 1e-9


@dataclass(frozen=True)
class Difference:
    """``direction`` (d,) unit, or zero when the pictures are the same; ``strength`` the mean length of a prompt's
    difference; ``consistency`` the mean cosine of these with the direction, 0 when nothing changes."""

    direction: np.ndarray
    strength: float
    consistency: float


def difference(changes: np.ndarray) -> Difference:
    """``changes`` (pictures, d): e(with) − e(without), a row for each prompt."""
    changes = np.asarray(changes, np.float64)
    direction = _unit(changes.mean(axis=0))
    lengths = np.linalg.norm(changes, axis=1)
    moved = lengths > TINY
    cosines = changes[moved] @ direction / lengths[moved]
    return Difference(direction, float(lengths.mean()), float(cosines.mean()) if moved.any() else 0.0)


def latent_vector(latent: Tensor) -> np.ndarray:
    """(channels · 64,) float32 of a latent (1, channels, …, height, width) in the model's scale: an embedding without
    any other model. Frames are averaged, and each square of a grid of 8 × 8."""
    latent = latent.detach().float().cpu()
    while latent.ndim > 4:
        latent = latent.mean(dim=2)
    pooled = functional.adaptive_avg_pool2d(latent[:1], GRID)
    # The mean square of a number stays what it was, however large the picture.
    return (pooled.flatten() / pooled.numel() ** 0.5).to(torch.float32).numpy()


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / length if length > TINY else np.zeros_like(vector)
