"""Methods whose merged update is dense: magnitude pruning, DARE (arXiv 2311.03099), TIES (arXiv 2306.01708).

``density`` is the share of every LoRA's numbers that survives, at every module by itself.

    magnitude   Σ_k trim(ΔW_k)                         the largest numbers of each LoRA
    DARE        Σ_k mask_k ∘ ΔW_k / density            random ones, scaled up so that the expectation stays
    TIES        trim; sign = sgn Σ_k trim(ΔW_k); Σ over the k whose number has that sign

At density 1 magnitude and DARE are the plain sum, and so is TIES where no two LoRAs disagree on a sign. TIES' paper
takes the mean of those that agree, times a factor λ to be tuned: for numbers that one LoRA alone keeps the two are the
same, for the others the sum is what strengths of LoRAs mean everywhere else (``mean=True`` is the paper's, λ = 1).
Nothing dense is kept: ``DenseMerge`` holds factors and makes the update of one module when its weight is patched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...portable import reckoning_device
from .rows import Part, blocks, dense_rows

METHODS = ("ties", "dare", "magnitude")
# A 32-bit mixing function in products that fit a signed 64-bit number: the same bits on every device and machine.
_MASK, _MIX = 0xFFFFFFFF, 0x45D9F3B


@dataclass(frozen=True)
class DenseMerge:
    """The merged update of one module, made when asked for. ``channels``: output channels of the module."""

    method: str
    density: float
    parts: tuple[Part, ...]
    channels: int
    mean: bool = False
    _thresholds: dict[int, float] = field(default_factory=dict, compare=False, repr=False)

    def blocks(self, device: torch.device | str = "cpu") -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, rows start:stop of the update, float32 (…, in·kernel), on ``device``), together the whole."""
        merge: Callable[[list[Tensor]], Tensor] = self._elect if self.method == "ties" else sum
        reckon = reckoning_device(device)
        for start, stop in blocks(self.channels, self.parts[0].branches[0].columns):
            yield start, stop, merge([self._kept(part, start, stop, reckon) for part in self.parts]).to(device)

    def delta(self, device: torch.device | str = "cpu") -> Tensor:
        """The whole update, float32 (out, in·kernel)."""
        return torch.cat([rows for _, _, rows in self.blocks(device)])

    def _kept(self, part: Part, start: int, stop: int, device: torch.device | str) -> Tensor:
        rows = dense_rows(part, start, stop, self.channels, device)
        if self.density >= 1:
            return rows
        if self.method == "dare":
            keep = keep_mask(part.seed, start * rows.shape[1], rows.numel(), self.density, device)
            return torch.where(keep.view_as(rows), rows / self.density, 0.0)
        if part.lora not in self._thresholds:
            self._thresholds[part.lora] = threshold(part, self.channels, self.density, device)
        return torch.where(rows.abs() >= self._thresholds[part.lora], rows, 0.0)

    def _elect(self, kept: list[Tensor]) -> Tensor:
        sign = torch.sign(sum(kept))
        agreeing = [torch.where(torch.sign(one) == sign, one, 0.0) for one in kept]
        if not self.mean:
            return sum(agreeing)
        return sum(agreeing) / sum((one != 0).float() for one in agreeing).clamp_min(1.0)


def threshold(part: Part, channels: int, density: float, device: torch.device | str = "cpu") -> float:
    """The magnitude that a ``density`` share of the LoRA's numbers at this module reaches, its own rows only.

    Holds the module's numbers of this one LoRA for a moment.
    """
    width = part.branches[0].columns
    size = part.covered(channels) * width
    kept = min(max(round(density * size), 1), size)
    numbers = torch.cat([dense_rows(part, *span, channels, device).abs().flatten() for span in blocks(channels, width)])
    return float(numbers.kthvalue(numbers.numel() - kept + 1).values)


def keep_mask(seed: int, first: int, count: int, density: float, device: torch.device | str = "cpu") -> Tensor:
    """Which of the numbers ``first`` … ``first + count − 1`` survive, (count,) bool: a hash of seed and position."""
    place = torch.arange(first, first + count, dtype=torch.int64, device=device)
    bits = _mixed(_mixed((place & _MASK) ^ (seed & _MASK)) ^ _mixed((place >> 32) ^ ((seed >> 32) & _MASK)))
    return bits < int(density * (_MASK + 1))


def _mixed(bits: Tensor) -> Tensor:
    """A bijection of 32-bit numbers (held in int64) that flips about half of the bits for each bit of its input."""
    for _ in range(2):
        bits = (((bits >> 16) ^ bits) * _MIX) & _MASK
    return (bits >> 16) ^ bits
