"""A mask for one LoRA inside one forward pass: what of its output stays at each pixel or token of a layer.

A layer whose tokens are places of the picture gets the mask, made as small as its grid. A layer that has no places
(text, timestep) gets the mask's mean: a mask of ones is exactly the LoRA without a mask, one of zeros exactly no LoRA.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Layers that read text alone, whatever the number of their tokens.
_TEXT = re.compile(
    r"context_block|context_embedder|context_refiner|(^|[._])(txt|text)_|add_[qkv]_proj|to_add_out|attn2\.to_[kv]"
    r"|cross_attn\.[kv](_|$)|ff_context|txt_in|cap_embedder|distilled_guidance_layer|nerf_"
)
# Layers whose tokens are text and picture in one row: FLUX and Chroma; Z-Image and Lumina 2.
_JOINT = re.compile(r"^(single_blocks|layers)\.")
HALVINGS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Layout:
    """How a network lays its tokens. ``patch``: latent pixels a token's side, None for a UNet, which halves its grid;
    ``frames``: latent frames a token. ``text``: text tokens of this evaluation, 0 if unknown; in joint rows they come
    first, filled up to a multiple of ``multiple``.
    """

    patch: int | None = None
    frames: int = 1
    text: int = 0
    multiple: int = 1

    @property
    def sides(self) -> tuple[int, ...]:
        return HALVINGS if self.patch is None else (self.patch,)

    @property
    def start(self) -> int:
        """Where the picture begins in a joint row."""
        return math.ceil(self.text / self.multiple) * self.multiple


class Area:
    """One LoRA's mask over a latent of ``size`` (frames…, h, w). Weights are float32, on ``device`` (default: the
    mask's); they are made on the CPU, as Apple's GPUs shrink pictures by whole factors only.

    ``size`` None: nobody knows what part of the picture this is (a conditioning with an area of its own), so everything
    gets the mean.
    """

    def __init__(
        self, mask: Tensor, size: Sequence[int] | None, layout: Layout, device: torch.device | str | None = None
    ):
        self._device = mask.device if device is None else device
        self._mask = mask.to("cpu", torch.float32)
        self.layout, self.mean, self.whole = layout, self._mask.mean().to(self._device), size is not None
        self.planes, self.tokens = {}, {}
        if size is None:
            return
        *frames, height, width = size
        times = math.prod(math.ceil(count / layout.frames) for count in frames)
        for side in layout.sides:
            grid = (math.ceil(height / side), math.ceil(width / side))
            if grid in self.planes:
                continue
            plane = self._shrunk(grid)
            self.planes[grid] = plane
            self.tokens[times * plane.numel()] = plane.flatten().repeat(times)

    def _shrunk(self, grid: tuple[int, int]) -> Tensor:
        return F.adaptive_avg_pool2d(self._mask[None, None], grid)[0, 0].to(self._device)

    def over(self, y: Tensor, module: str, dim: int) -> Tensor:
        """What ``y``, an output of ``module`` with its channels at ``dim``, is multiplied by; it broadcasts."""
        if not self.whole:
            return self.mean
        if dim == 1 and y.ndim >= 4:
            return self._plane(tuple(y.shape[-2:]))
        if _TEXT.search(module) or y.ndim < 3:
            return self.mean
        if y.ndim >= 5 and tuple(y.shape[-3:-1]) in self.planes:  # channels last, and the grid still a grid
            return self.planes[tuple(y.shape[-3:-1])][..., None]
        return self._row(y.shape[-2], module)

    def _plane(self, grid: tuple[int, int]) -> Tensor:
        if grid in self.planes:
            return self.planes[grid]
        return self._shrunk(grid)

    def _row(self, length: int, module: str) -> Tensor:
        """(length, 1): the mask where the picture's tokens are, its mean at all others."""
        if length in self.tokens:
            return self.tokens[length][:, None]
        if self.layout.patch is None or module.startswith("final_layer"):
            return self.mean
        row = next(iter(self.tokens.values()))
        start = self.layout.start if _JOINT.search(module) else 0
        rest = length - start - len(row)
        if rest < 0:
            return self.mean
        return torch.cat([self.mean.expand(start), row, self.mean.expand(rest)])[:, None]
