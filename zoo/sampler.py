"""Euler sampling of the flow with classifier-free guidance, on ComfyUI's schedule (``simple``, SD3 shift 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SHIFT = 3.0
Velocity = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def schedule(steps: int, shift: float = SHIFT) -> Tensor:
    """Noise levels (steps + 1,), from 1 to 0, shifted as SD3 does (Esser et al., equation 23)."""
    t = torch.linspace(1, 0, steps + 1)
    return shift * t / (1 + (shift - 1) * t)


@torch.inference_mode()
def sample(
    model: Velocity,
    context: Tensor,
    pooled: Tensor,
    empty: tuple[Tensor, Tensor],
    *,
    steps: int = 20,
    cfg: float = 4.0,
    seed: int = 0,
) -> Tensor:
    """Latents (b, 16, 16, 16) for ``context`` (b, 24, 384), ``pooled`` (b, 384).

    ``empty`` is the conditioning of "" (1, 24, 384), (1, 384). Sample i always starts from the noise of ``seed + i``.
    """
    n = len(context)
    x = torch.stack([torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(n)])
    ctx = torch.cat([context, empty[0].expand(n, -1, -1)])
    pool = torch.cat([pooled, empty[1].expand(n, -1)])
    levels = schedule(steps)
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        cond, uncond = model(torch.cat([x, x]), now.expand(2 * n), ctx, pool).chunk(2)
        x = x + (after - now) * (uncond + cfg * (cond - uncond))
    return x
