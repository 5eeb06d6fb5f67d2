"""Fusion in float64 with the obvious loops: what every implementation of the gate answers to.

One number at a time, straight from the formula; no tensor operation that the shipped code also uses.
"""

from __future__ import annotations

import math

import torch


def layer_norm_ref(row: list[float], weight: list[float], bias: list[float], eps: float = 1e-5) -> list[float]:
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    return [(value - mean) / math.sqrt(variance + eps) * w + b for value, w, b in zip(row, weight, bias, strict=True)]


def gated_row_ref(y0: list[float], branches: list[list[float]], vectors) -> list[float]:
    """One token: ``y0`` (d,), K branch rows (d,), GateVectors → out (d,)."""
    named = {name: value.double().tolist() for name, value in vectors.named().items()}
    base_weight = named.get("weight_base", [0.0] * len(y0))
    base = layer_norm_ref(y0, named["norm_base.weight"], named["norm_base.bias"], vectors.eps)
    out = list(y0)
    for branch in branches:
        lora = layer_norm_ref(branch, named["norm_lora.weight"], named["norm_lora.bias"], vectors.eps)
        for c in range(len(y0)):
            logit = base[c] * base_weight[c] + lora[c] * named["weight_lora"][c]
            logit += base[c] * lora[c] * named["weight_cross"][c] + named["bias"][c]
            out[c] += named["weight_out"][c] / (1 + math.exp(-logit)) * branch[c]
    return out


def gated_sum_ref(y0: torch.Tensor, branches: list[torch.Tensor], vectors, dim: int = -1) -> torch.Tensor:
    """float64 twin of ``gated_sum``, token by token. ``vectors`` None is the plain sum."""
    rows = y0.double().movedim(dim, -1)
    others = [branch.double().movedim(dim, -1).reshape(-1, rows.shape[-1]).tolist() for branch in branches]
    out = []
    for number, row in enumerate(rows.reshape(-1, rows.shape[-1]).tolist()):
        mine = [other[number] for other in others]
        summed = [sum(column) for column in zip(row, *mine, strict=True)]
        out.append(gated_row_ref(row, mine, vectors) if vectors else summed)
    return torch.tensor(out, dtype=torch.float64).reshape(rows.shape).movedim(-1, dim)


def random_vectors(channels: int, seed: int, with_base: bool = True):
    """GateVectors of random numbers, norms included, so that no term can be forgotten unnoticed."""
    from autolora_core.fusion.gate import VECTORS, GateVectors

    generator = torch.Generator().manual_seed(seed)
    names = [name for name in VECTORS if with_base or name != "weight_base"]
    return GateVectors.from_named({name: torch.randn(channels, generator=generator) for name in names})
