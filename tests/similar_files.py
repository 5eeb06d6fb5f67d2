"""One LoRA turned into others in the ways people do it; plain matrix code, independent of the library's."""

from __future__ import annotations

import torch
from torch import Tensor

Factors = dict[str, tuple[Tensor, Tensor]]  # module -> down (r, in), up (out, r)

SHAPES = {
    "joint_blocks.0.x_block.attn.qkv": (96, 32), "joint_blocks.0.x_block.mlp.fc1": (64, 32),
    "joint_blocks.1.x_block.mlp.fc2": (32, 64), "joint_blocks.1.context_block.attn.proj": (32, 32),
}  # fmt: skip


def made(seed: int, rank: int = 4, shapes: dict[str, tuple[int, int]] = SHAPES) -> Factors:
    """A random LoRA; singular values of a module fall, as trained ones do."""
    g = torch.Generator().manual_seed(seed)
    fall = 0.6 ** torch.arange(rank)
    return {
        name: (torch.randn(rank, n_in, generator=g) * fall[:, None], torch.randn(n_out, rank, generator=g))
        for name, (n_out, n_in) in shapes.items()
    }


def scaled(factors: Factors, by: float) -> Factors:
    return {name: (down, up * by) for name, (down, up) in factors.items()}


def mixed(factors: Factors, seed: int = 3) -> Factors:
    """A → RA, B → BR⁻¹: other matrices, the same product."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, (down, up) in factors.items():
        mix = torch.linalg.qr(torch.randn(len(down), len(down), generator=g, dtype=torch.float64)).Q
        mix *= 0.5 + torch.rand(len(down), generator=g, dtype=torch.float64)
        out[name] = ((mix @ down.double()).float(), (up.double() @ torch.linalg.inv(mix)).float())
    return out


def cut_to(factors: Factors, rank: int) -> Factors:
    """The first ``rank`` terms of the SVD of the dense product, in float64."""
    out = {}
    for name, (down, up) in factors.items():
        u, s, vt = torch.linalg.svd(up.double() @ down.double(), full_matrices=False)
        out[name] = (vt[:rank].float(), (u[:, :rank] * s[:rank]).float())
    return out


def summed(one: Factors, x: float, other: Factors, y: float) -> Factors:
    """x · one + y · other with the ranks laid side by side."""
    out = {}
    for name in one.keys() | other.keys():
        parts = [(side[name], weight) for side, weight in ((one, x), (other, y)) if name in side]
        downs, ups = [down for (down, _), _ in parts], [up * weight for (_, up), weight in parts]
        out[name] = (torch.cat(downs), torch.cat(ups, dim=1))
    return out


def averaged(one: Factors, x: float, other: Factors, y: float) -> Factors:
    """Both matrices averaged one by one, as kohya's merge_lora does: square roots of the weights on each side."""
    return {
        name: (x**0.5 * one[name][0] + y**0.5 * other[name][0], x**0.5 * one[name][1] + y**0.5 * other[name][1])
        for name in one
    }


def drifted(factors: Factors, by: float, seed: int = 9) -> Factors:
    """Both matrices moved on: a step or many later in the same training."""
    g = torch.Generator().manual_seed(seed)

    def moved(tensor: Tensor) -> Tensor:
        return tensor + by * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=g)

    return {name: (moved(down), moved(up)) for name, (down, up) in factors.items()}


def dense(factors: Factors) -> dict[str, Tensor]:
    return {name: up.double() @ down.double() for name, (down, up) in factors.items()}


def flat(factors: Factors, names: list[str]) -> Tensor:
    """All ΔW of ``names`` as one float64 vector; zero where a module is absent."""
    found = dense(factors)
    shapes = {name: SHAPES[name] for name in names}
    return torch.cat(
        [found.get(name, torch.zeros(shape, dtype=torch.float64)).flatten() for name, shape in shapes.items()]
    )
