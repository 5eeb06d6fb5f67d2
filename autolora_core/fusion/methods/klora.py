"""K-LoRA (arXiv 2502.18461): at every layer and step one LoRA speaks, the one with the larger top-K mass.

For subject c and style s with ranks r_c and r_s: K = r_c·r_s, S = sum of the K largest |ΔW| at the layer. The style's S
is multiplied by γ = Σ|ΔW_c| / Σ|ΔW_s| over all layers, which makes LoRAs of different loudness comparable, and by
α·t + β, t = progress of sampling (α = 1.5, β = 0.5): early steps lean to the subject, late ones to the style. The
subject wins ties. α·t + β grows, so each layer changes its mind at most once, at a moment known beforehand.

For more LoRAs: K is the squared geometric mean of the ranks, every mass is divided by its LoRA's own Σ|ΔW| (for two,
that is γ), the best subject of the layer meets its best style.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...portable import reckoning_device
from ..rules import Timed
from .roles import STYLE
from .rows import Part, blocks, dense_rows

ALPHA, BETA = 1.5, 0.5
Tick = Callable[[str], None]


@dataclass(frozen=True)
class Mass:
    """Of one LoRA at one layer: the sum of its largest magnitudes, and of all."""

    top: float
    all: float


def timed_rules(
    modules: Mapping[str, Sequence[Part]],
    channels: Mapping[str, int],
    roles: Mapping[int, str],
    device: torch.device | str = "cpu",
    tick: Tick | None = None,
) -> dict[str, Timed]:
    """Module → who speaks there and when. ``roles``: LoRA → subject or style; ``tick`` is called for every module."""
    device = reckoning_device(device)
    masses: dict[str, dict[int, Mass]] = {}
    for name, parts in modules.items():
        if tick is not None:
            tick(name)
        most = top_count([rank_of(part) for part in parts])
        masses[name] = {part.lora: mass(part, channels[name], most, device) for part in parts}
    loudness = {lora: sum(own[lora].all for own in masses.values() if lora in own) for lora in roles}
    return {name: _rule(own, loudness, roles) for name, own in masses.items()}


def rank_of(part: Part) -> int:
    """The LoRA's rank at the layer; a dense update counts by its smaller side."""
    ranks = [branch.rank or min(branch.width, branch.columns) for branch in part.branches]
    return max(ranks)


def top_count(ranks: Sequence[int]) -> int:
    """K: r₁·r₂ for two LoRAs, the squared geometric mean of the ranks for any number."""
    return max(1, round(math.prod(ranks) ** (2 / len(ranks))))


def mass(part: Part, channels: int, most: int, device: torch.device | str = "cpu") -> Mass:
    """The sums of the ``most`` largest and of all |ΔW|, row block by row block."""
    top, total = torch.zeros(0, device=device), 0.0
    for start, stop in blocks(channels, part.branches[0].columns):
        numbers = dense_rows(part, start, stop, channels, device).abs().flatten()
        total += float(numbers.sum(dtype=torch.float64))
        numbers = torch.cat([top, numbers])
        top = numbers.topk(min(most, numbers.numel())).values
    return Mass(float(top.sum(dtype=torch.float64)), total)


def _rule(masses: Mapping[int, Mass], loudness: Mapping[int, float], roles: Mapping[int, str]) -> Timed:
    """The best subject until α·t + β makes the best style outweigh it."""
    scores = {lora: own.top / (loudness[lora] or 1.0) for lora, own in masses.items()}
    subjects = [lora for lora in scores if roles[lora] != STYLE]
    styles = [lora for lora in scores if roles[lora] == STYLE]
    if not subjects or not styles:
        best = max(scores, key=scores.__getitem__)
        return Timed(best, best, math.inf)
    subject, style = (max(group, key=scores.__getitem__) for group in (subjects, styles))
    if not scores[style]:
        return Timed(subject, subject, math.inf)
    return Timed(subject, style, (scores[subject] / scores[style] - BETA) / ALPHA)
