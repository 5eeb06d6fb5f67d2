"""Muon for the matrices, Adam for the rest, on flat shared memory, split between processes.

Muon: Jordan et al. 2024 (momentum, then the nearest semi-orthogonal matrix by Newton-Schulz), with the update
scaled to the size of an Adam update (Liu et al. 2025, arXiv 2502.16982, section 2.2): one learning rate for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

MOMENTUM, BETA1, BETA2, DECAY = 0.95, 0.9, 0.99, 0.01
BLOCKS, MODULATIONS = ("joint_blocks.", "double_blocks.", "single_blocks."), ("adaLN", "_mod.", "modulation.")


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz in bf16: (n, a, b) -> nearly semi-orthogonal matrices of that shape."""
    x = g.mT if g.shape[1] > g.shape[2] else g
    x = x.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if g.shape[1] > g.shape[2] else x


def is_matrix(name: str, shape: torch.Size) -> bool:
    """Muon's share: attention and MLP matrices of the blocks; embeddings and modulation stay with Adam."""
    return name.startswith(BLOCKS) and len(shape) == 2 and not any(word in name for word in MODULATIONS)


@dataclass
class Slot:
    """Where a parameter lies in the flat vectors."""

    name: str
    start: int
    shape: torch.Size

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


def split_work(slots: list[Slot], world: int) -> list[list[Slot]]:
    """Slots of each process, balanced by what their update costs."""
    shares: list[list[Slot]] = [[] for _ in range(world)]
    load = [0.0] * world
    cost = {s.name: math.prod(s.shape) * (20.0 if is_matrix(s.name, s.shape) else 1.0) for s in slots}
    for slot in sorted(slots, key=lambda s: -cost[s.name]):
        rank = load.index(min(load))
        shares[rank].append(slot)
        load[rank] += cost[slot.name]
    return shares


@dataclass
class Optimiser:
    """Updates ``slots`` of the flat ``params`` in place; ``first`` and ``second`` are flat moments, shared by all."""

    params: Tensor
    first: Tensor
    second: Tensor
    slots: list[Slot]
    groups: dict[tuple[int, int], list[Slot]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for slot in self.slots:
            if is_matrix(slot.name, slot.shape):
                self.groups.setdefault(tuple(slot.shape), []).append(slot)  # type: ignore[arg-type]
        self.rest = [s for s in self.slots if not is_matrix(s.name, s.shape)]

    @torch.no_grad()
    def step(self, grad: Tensor, lr: float, count: int) -> None:
        """One update from the flat gradient ``grad``; ``count`` starts at 1."""
        for shape, slots in self.groups.items():
            self._muon(grad, slots, shape, lr)
        for slot in self.rest:
            g, m, v, p = (t[slot.start : slot.stop] for t in (grad, self.first, self.second, self.params))
            m.lerp_(g, 1 - BETA1)
            v.lerp_(g * g, 1 - BETA2)
            p.sub_(lr * (m / (1 - BETA1**count)) / ((v / (1 - BETA2**count)).sqrt() + 1e-8))

    def _muon(self, grad: Tensor, slots: list[Slot], shape: tuple[int, int], lr: float) -> None:
        updates = []
        for slot in slots:
            g, m = grad[slot.start : slot.stop], self.first[slot.start : slot.stop]
            m.lerp_(g, 1 - MOMENTUM)
            updates.append(g.lerp(m, MOMENTUM).view(shape))
        stacked = torch.stack(updates)
        rows, cols = shape
        if rows == 3 * cols:  # fused qkv: three matrices, orthogonalised apart
            stacked = stacked.reshape(-1, cols, cols)
        out = orthogonal(stacked).float() * (0.2 * math.sqrt(max(stacked.shape[1:])))
        for slot, update in zip(slots, out.reshape(len(slots), -1), strict=True):
            self.params[slot.start : slot.stop].mul_(1 - DECAY * lr).sub_(update, alpha=lr)
