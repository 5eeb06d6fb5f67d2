"""What a text does to the image side of the base: inputs of the image-side layers at nearly pure noise.

Text reaches those layers through attention, token by token: the mean over tokens keeps little of it, so a text is kept
as the leading directions of its tokens, about each position's mean over the generic prompts. With them the response
score of :mod:`autolora_core.encode.response` covers every layer that a LoRA can change, not the text-fed ones alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from autolora_core.encode.response import TextStates
from zoo.base_probe import IMAGE_SPACES, BaseProbe

DIMS, KEPT = 48, 6


def positions_mean(probe: BaseProbe, texts: Sequence[str]) -> dict[str, Tensor]:
    """Space → (tokens, d): each position's mean input over ``texts``."""
    total: dict[str, Tensor] = {}
    for seen in probe.image_inputs(texts):
        for name, x in seen.items():
            total[name] = total.get(name, 0) + x.sum(dim=0)
    return {name: x / len(texts) for name, x in total.items()}


def directions(probe: BaseProbe, texts: Sequence[str], mean: Mapping[str, Tensor]) -> np.ndarray:
    """(spaces, :data:`DIMS`, widest) principal directions of the inputs about ``mean``; zero beyond a layer's width."""
    gram: dict[str, Tensor] = {}
    for seen in probe.image_inputs(texts):
        for name, x in seen.items():
            rows = (x - mean[name]).flatten(0, 1)
            gram[name] = gram.get(name, 0) + rows.T @ rows
    out = np.zeros((len(IMAGE_SPACES), DIMS, max(len(g) for g in gram.values())), np.float32)
    for own, name in zip(out, IMAGE_SPACES, strict=True):
        _, vectors = torch.linalg.eigh(gram[name].double())
        kept = vectors[:, -DIMS:].flip(1).T
        kept = kept * torch.sign(kept.gather(1, kept.abs().argmax(dim=1, keepdim=True)))
        own[:, : kept.shape[1]] = kept.numpy()
    return out


def image_states(probe: BaseProbe, texts: Sequence[str], mean: Mapping[str, Tensor], basis: np.ndarray) -> TextStates:
    """:data:`KEPT` directions a text, ``σ v`` of its centred tokens on ``basis``: the response of a LoRA to them is its
    response to all tokens, but for what is left out."""
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in IMAGE_SPACES}
    for seen in probe.image_inputs(texts):
        for name, x in seen.items():
            own = torch.from_numpy(basis[IMAGE_SPACES.index(name)][:, : x.shape[-1]])
            tokens[name].append(_leading((x - mean[name]) @ own.T).half().flatten(0, 1).numpy())
    counts = np.full(len(texts), KEPT)
    return TextStates(counts, {name: np.concatenate(parts) for name, parts in tokens.items()})


def _leading(x: Tensor) -> Tensor:
    """(n, tokens, d) → (n, KEPT, d): rows with the same leading second moments."""
    power, vectors = torch.linalg.eigh(x.mT @ x)
    return (vectors[..., -KEPT:] * power[:, None, -KEPT:].clamp_min(0).sqrt()).mT
