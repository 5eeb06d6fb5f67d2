"""Small made-up updates and libraries for the tests of encode/ and retrieve/."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class FakeUpdate:
    """The fields of `autolora_core.lora.adapters.Update` that encode/ reads."""

    module: str
    kind: str = "lowrank"
    down: Tensor | None = None
    up: Tensor | None = None
    mid: Tensor | None = None
    dense: Tensor | None = None
    rule: str | None = None
    extra: dict = field(default_factory=dict)
    bias: Tensor | None = None


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lowrank(module: str, out: int, inputs: int, rank: int, seed: int, kernel: tuple[int, ...] = ()) -> FakeUpdate:
    g = seeded(seed)
    down = torch.randn(rank, inputs, *kernel, generator=g, dtype=torch.float64)
    up = torch.randn(out, rank, generator=g, dtype=torch.float64)
    return FakeUpdate(module, down=down, up=up)


def dense_of(update: FakeUpdate) -> Tensor:
    """float64 ΔW by plain loops over ranks: the reference."""
    if update.dense is not None:
        return update.dense.double()
    total = 0
    down, up = update.down.double(), update.up.double().flatten(1)
    if update.mid is None:
        for r in range(down.shape[0]):
            total = total + up[:, r].reshape(-1, *([1] * (down.ndim - 1))) * down[r][None]
        return total
    mid = update.mid.double()
    for a in range(mid.shape[0]):
        for b in range(mid.shape[1]):
            left = up[:, a].reshape(-1, 1, 1, 1) * down[b].reshape(1, -1, 1, 1)
            total = total + left * mid[a, b][None, None]
    return total
