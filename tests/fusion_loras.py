"""Small random LoRAs of one layer, and what a blend of them does to it, in float64."""

from __future__ import annotations

import torch

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.eager import fuse
from autolora_core.fusion.methods.planner import Member
from autolora_core.fusion.moment import Moment

OUT, N_IN = 12, 10
CLOSE = 1e-5


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(index: int, rank: int = 3, span: tuple[int, int] | None = None, scale: float = 0.7, module="m") -> Branch:
    width = span[1] - span[0] if span else OUT
    seed = 100 * index + (span[0] if span else 0)
    factors = {"down": normal(rank, N_IN, seed=seed), "up": normal(width, rank, seed=seed + 1)}
    return Branch(module, index, scale=scale, slice=span, **factors)


def lokr(index: int) -> Branch:
    return Branch("m", index, left=normal(3, 2, seed=index), right=normal(4, 5, seed=index + 1), scale=0.4)


def dense(index: int) -> Branch:
    return Branch("m", index, dense=normal(OUT, N_IN, seed=index + 7), scale=0.3)


def whole(branches: list[Branch]) -> torch.Tensor:
    """The sum of all branches as one (out, in) matrix, float64."""
    total = torch.zeros(OUT, N_IN, dtype=torch.float64)
    for branch in branches:
        start, stop = branch.span(OUT)
        total[start:stop] += branch.delta()
    return total


def gap(one: torch.Tensor, two: torch.Tensor) -> float:
    return (one.double() - two.double()).abs().max().item()


def members(*indices: int) -> list[Member]:
    return [Member(index, f"lora{index}", content=f"hash{index}") for index in indices]


def run(blended, x: torch.Tensor, y0: torch.Tensor, moment: Moment | None = None) -> torch.Tensor:
    """The layer's output: what the plan puts beside it, and what goes into the weight."""
    out = y0.double()
    if "m" in blended.plan.modules:
        plan = blended.plan.modules["m"]

        def output(index: int) -> torch.Tensor:
            return x.double() @ plan.branches[index].delta().T

        out = fuse(out, plan, output, lambda number: plan.groups[number].vectors, moment=moment or Moment())
    if "m" in blended.dense:
        out = out + x.double() @ blended.dense["m"].delta().double().T
    return out


KINDS = {"lora": lora, "lokr": lokr, "dense": dense}
