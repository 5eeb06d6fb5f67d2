"""What one training step is made of: groups of tokens side by side, the nuisances that must not matter, the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..encode.set_encoder import MODULES

BATCH = 96
MODULE_DROP, STREAM_DROP, NOISE, LOUDNESS = 0.15, 0.1, 0.15, 0.5
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]
Groups = dict[str, tuple[Tensor, Tensor]]


class TrainingSet(Protocol):
    """``groups``: name -> (tokens (n, T, w) float32, mask (n, T) bool). ``texts[i]``: what LoRA i may be asked for by,
    best first. ``train`` (n,) bool: what may be learnt from. ``thing`` (n,) int: LoRAs of one number show the same.
    ``recipe`` (n,) int: who made it, whatever it shows.
    """

    groups: Arrays
    texts: Sequence[Sequence[str]]
    train: np.ndarray
    thing: np.ndarray
    recipe: np.ndarray


def joined(groups: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> np.ndarray:
    """(n, F): the groups side by side, each token divided as the network's linear path does."""
    parts = []
    for name in names:
        x, mask = groups[name]
        share = mask.sum(axis=1).clip(1) ** -0.5
        parts.append((x * mask[..., None]).reshape(len(x), -1) * share[:, None])
    return np.concatenate(parts, axis=1)


def augmented(groups: Groups, names: Sequence[str], rng: np.random.Generator) -> Groups:
    """The nuisances: missing modules, a missing stream, another loudness, other noise. (Factorisation needs none.)"""
    out = {}
    for name in names:
        x, mask = groups[name]
        if mask.shape[1] > 1:
            keep = torch.from_numpy(rng.random(mask.shape) >= MODULE_DROP)
            whole = torch.from_numpy(rng.random((len(mask), 1)) < STREAM_DROP)
            half = torch.arange(mask.shape[1])[None] < mask.shape[1] // 2
            side = torch.from_numpy(rng.random((len(mask), 1)) < 0.5)
            left = mask & keep & ~(whole & (half == side))
            mask = torch.where(left.any(dim=1, keepdim=True), left, mask)
        x = x + NOISE * torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32))
        if name == MODULES:
            x = torch.cat([x[..., :-1], x[..., -1:] + LOUDNESS * torch.from_numpy(
                rng.standard_normal((len(x), 1, 1)).astype(np.float32))], dim=-1)  # fmt: skip
        out[name] = (x, mask)
    return out


def batches(data: TrainingSet, rng: np.random.Generator) -> list[np.ndarray]:
    """One epoch: half of each batch shares a creator (as far as he has that many), the rest is anybody."""
    rows = rng.permutation(np.flatnonzero(data.train))
    by_maker = rows[np.argsort(data.recipe[rows], kind="stable")]
    half = BATCH // 2
    blocks = [by_maker[i : i + half] for i in range(0, len(by_maker), half)]
    return [np.concatenate([block, rng.choice(rows, min(half, len(rows)), replace=False)]) for block in blocks]


def contrastive(
    vectors: Tensor, own: Tensor, bank: Tensor, thing: Tensor, bank_thing: Tensor, scale: Tensor,
    weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Both directions (InfoNCE, van den Oord et al., arXiv 1807.03748); others of the same thing are no negatives.

    ``vectors`` (b, d) of the LoRAs, ``own`` (b, d): one text of each, ``bank`` (B, d): a text of every thing,
    ``weights`` (b,): how much each LoRA's text is worth (default: all the same).
    """
    # Scaled before they are masked: minus infinity times a learned scale has no gradient.
    positive = scale * (vectors * own).sum(dim=-1, keepdim=True)
    others = (scale * (vectors @ bank.T)).masked_fill(thing[:, None] == bank_thing[None], float("-inf"))
    to_text = torch.cat([positive, others], dim=1)
    same = (thing[:, None] == thing[None]) & ~torch.eye(len(thing), dtype=torch.bool)
    to_lora = (scale * (own @ vectors.T)).masked_fill(same, float("-inf"))
    first, own_place = torch.zeros(len(thing), dtype=torch.long), torch.arange(len(thing))
    if weights is None:
        return F.cross_entropy(to_text, first) + F.cross_entropy(to_lora, own_place)
    both = F.cross_entropy(to_text, first, reduction="none") + F.cross_entropy(to_lora, own_place, reduction="none")
    return (weights * both).sum() / weights.sum()
