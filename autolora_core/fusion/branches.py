"""One LoRA's update of one module, kept factored: what is added to the module's output for an input ``x``.

low rank    y = scale · up · (mid ∗) down ∗ x      LoRA, LoCon, Tucker LoCon; LoHa where its rank is small
kron        y = scale · (left ⊗ right) ∗ x         LoKr, never built densely
dense       y = scale · dense ∗ x                  what is left
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """Shapes: ``down`` (r, in, *k), ``up`` (out, r), ``mid`` (r, r, *k); ``left`` (a, b), ``right`` (c, d, *k)
    with out = a·c and in = b·d; ``dense`` (out, in, *k). ``k`` is empty for linear layers.

    ``slice`` = (start, stop) when the branch covers only those output channels of the module. ``scale`` holds strength
    and alpha/rank and is applied when the branch runs: folding it into half-precision factors would lose bits.
    """

    module: str
    lora_index: int
    down: Tensor | None = None
    up: Tensor | None = None
    mid: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    dense: Tensor | None = None
    scale: float = 1.0
    slice: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        if self.dense is not None:
            return "dense"
        return "lowrank" if self.up is not None else "kron"

    @property
    def width(self) -> int:
        """Number of output channels it covers."""
        if self.kind == "kron":
            return self.left.shape[0] * self.right.shape[0]
        return (self.dense if self.dense is not None else self.up).shape[0]

    @property
    def rank(self) -> int | None:
        return self.up.shape[1] if self.up is not None else None

    @property
    def kernel(self) -> tuple[int, ...]:
        """Of a convolution; () for a linear layer."""
        if self.kind == "kron":
            return tuple(self.right.shape[2:])
        if self.kind == "dense":
            return tuple(self.dense.shape[2:])
        return tuple((self.down if self.mid is None else self.mid).shape[2:])

    @property
    def columns(self) -> int:
        """in·kernel: numbers in a row of the update as a matrix."""
        if self.kind == "kron":
            n_in = self.left.shape[1] * self.right.shape[1]
        else:
            n_in = (self.dense if self.dense is not None else self.down).shape[1]
        return n_in * math.prod(self.kernel)

    def span(self, channels: int) -> tuple[int, int]:
        """(start, stop) within a module of ``channels`` output channels."""
        return self.slice or (0, channels)

    def rows(self, start: int, stop: int) -> Branch:
        """Only the output channels ``start:stop`` of the module (absolute numbers) of this branch."""
        first = self.slice[0] if self.slice else 0
        if (start - first, stop - first) == (0, self.width):
            return replace(self, slice=(start, stop))
        low, high = start - first, stop - first
        if self.kind == "lowrank":
            return replace(self, up=self.up[low:high], slice=(start, stop))
        return replace(self, left=None, right=None, dense=self._full()[low:high], slice=(start, stop))

    def permuted(self, order: Tensor) -> Branch:
        """Output channels in another order: channel ``i`` of the result is channel ``order[i]`` of this branch."""
        if self.kind == "lowrank":
            return replace(self, up=self.up[order])
        return replace(self, left=None, right=None, dense=self._full()[order])

    def _full(self) -> Tensor:
        return self.dense if self.dense is not None else kronecker(self.left.float(), self.right.float())

    def full_down(self) -> Tensor:
        """The down factor of a low-rank branch as one kernel (r, in, *k), float64, with a Tucker core multiplied in."""
        down = self.down.double()
        if self.mid is None:
            return down
        return torch.einsum("rs...,si->ri...", self.mid.double(), down.flatten(1))

    def delta(self) -> Tensor:
        """The weight change, float64 (out, in, *k). For tests and inspection: as large as the layer."""
        if self.kind == "kron":
            return self.scale * kronecker(self.left.double(), self.right.double())
        if self.kind == "dense":
            return self.scale * self.dense.double()
        return self.scale * torch.einsum("or,ri...->oi...", self.up.double(), self.full_down())


def lowrank_factors(up: Tensor, down: Tensor, kernel: tuple[int, ...], mid: Tensor | None = None) -> dict[str, Tensor]:
    """Fields of a low-rank ``Branch`` from factors that may be stored flat, or as 1×1 kernels on a linear layer."""
    rank = down.shape[0]
    up = up.reshape(up.shape[0], -1)
    if mid is not None:
        return {"up": up, "down": down.reshape(rank, -1, *[1] * len(kernel)), "mid": mid}
    return {"up": up, "down": down.reshape(rank, -1, *kernel)}


def hadamard_factors(w1a: Tensor, w1b: Tensor, w2a: Tensor, w2b: Tensor) -> dict[str, Tensor]:
    """LoHa: ``(w1a w1b) ∘ (w2a w2b)`` as a product of rank r1·r2, exactly (row-wise and column-wise Kronecker).

    Shapes: w1a (out, r1), w1b (r1, in), w2a (out, r2), w2b (r2, in). Returns ``up`` (out, r1·r2), ``down`` (r1·r2, in)
    in float32: products of half-precision numbers need the room.
    """
    up = torch.einsum("oi,oj->oij", w1a.float(), w2a.float()).flatten(1)
    down = torch.einsum("in,jn->ijn", w1b.float(), w2b.float()).flatten(0, 1)
    return {"up": up, "down": down}


def hadamard_pays(rank: int, out: int, n_in: int) -> bool:
    """Whether the factored LoHa is smaller than the dense matrix."""
    return rank * (out + n_in) < out * n_in


def kronecker(left: Tensor, right: Tensor) -> Tensor:
    """``left`` (a, b) ⊗ ``right`` (c, d, *k) → (a·c, b·d, *k): for every kernel position the matrix product."""
    return torch.kron(left.reshape(*left.shape, *[1] * (right.ndim - 2)), right)
