"""The LoRAs of one gated span side by side, with what their layer norms need to know before any input is there.

A branch's output is ``y = s · up h`` with ``h = down x`` (rank r). Over the d output channels it has

    mean(y) = s · h·b̄            b̄ = mean of the rows of up
    var(y)  = s² · ‖R h‖²         QR = (up − b̄) / √d, the thin QR of the centred factor

so a layer norm costs r² per token and no ``y`` has to exist. ``‖R h‖²`` is ``hᵀ C h`` with the Gram matrix
``C = (1/d) Σ (b−b̄)(b−b̄)ᵀ``, but is not negative however C is conditioned, and its error is that of a product, not of a
difference. R comes from float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..gate import GateVectors

BLOCK = 16  # ranks are filled up to multiples of this: the smallest tile of a tensor core


@dataclass(frozen=True)
class Packed:
    """K LoRAs at a span of d output channels; R = the sum of their ranks, each filled up to a multiple of ``BLOCK``.

    ``up`` (d, R) in the dtype that computes, zero in the fill; ``mean`` (R,) and ``root`` (R, r_max) float32:
    ``root[j, i]`` is what input j of a LoRA adds to coordinate i of its R h. ``spans`` (K, 2) int32: a LoRA's columns.
    """

    up: Tensor
    mean: Tensor
    root: Tensor
    spans: Tensor
    bounds: tuple[tuple[int, int], ...]

    @property
    def channels(self) -> int:
        return self.up.shape[0]

    @property
    def columns(self) -> int:
        return self.up.shape[1]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Packed:
        """Elsewhere; ``dtype`` that of ``up`` alone."""
        return replace(
            self,
            up=self.up.to(device=device, dtype=dtype or self.up.dtype),
            **{name: getattr(self, name).to(device) for name in ("mean", "root", "spans")},
        )


def pack(ups: Sequence[Tensor], dtype: torch.dtype | None = None, known: tuple[Tensor, Tensor] | None = None) -> Packed:
    """From the up factors (d, r_k), each over the whole span: rows that a LoRA does not reach are zero. ``known``: mean
    and root of the same factors, from before."""
    bounds, start = [], 0
    for up in ups:
        bounds.append((start, start + filled(up.shape[1])))
        start = bounds[-1][1]
    channels, widest = ups[0].shape[0], max(stop - first for first, stop in bounds)
    up_all = ups[0].new_zeros(channels, start, dtype=dtype or ups[0].dtype)
    mean, root = known or (torch.zeros(start), torch.zeros(start, widest))
    for (first, _), up in zip(bounds, ups, strict=True):
        rank = up.shape[1]
        up_all[:, first : first + rank] = up
        if known is not None:
            continue
        middle, triangle = moments_of(up_all[:, first : first + rank])
        mean[first : first + rank] = middle
        root[first : first + rank, : triangle.shape[0]] = triangle.T
    spans = torch.tensor(bounds, dtype=torch.int32)
    device = up_all.device
    return Packed(up_all, mean.to(device), root.to(device), spans.to(device), tuple(bounds))


def filled(rank: int) -> int:
    """``rank`` rounded up to a whole number of blocks."""
    return -(-rank // BLOCK) * BLOCK


def moments_of(up: Tensor) -> tuple[Tensor, Tensor]:
    """``(b̄ (r,), R (min(d, r), r))`` float64 of one up factor, as it is rounded in its own dtype."""
    exact = up.double()
    mean = exact.mean(0)
    return mean, torch.linalg.qr((exact - mean) / math.sqrt(up.shape[0]), mode="r").R


def coefficients(
    vectors: GateVectors, dtype: torch.dtype = torch.float32, products: torch.dtype = torch.float64
) -> Tensor:
    """(5, d) in ``dtype``: the gate on normed values n0 and n_k without affine parts,

    logit = c0 + c1·n0 + c2·n_k + c3·n0·n_k,  and c4 = w_out. ``products``: the dtype in which they are made.
    """
    w_lora, w_cross, w_out, bias, gain0, add0, gain1, add1 = (
        getattr(vectors, name).to(products)
        for name in (
            "weight_lora", "weight_cross", "weight_out", "bias", "norm_base_weight", "norm_base_bias",
            "norm_lora_weight", "norm_lora_bias",
        )
    )  # fmt: skip
    w_base = torch.zeros_like(bias) if vectors.weight_base is None else vectors.weight_base.to(products)
    rows = (
        bias + add0 * w_base + add1 * w_lora + add0 * add1 * w_cross,
        gain0 * (w_base + add1 * w_cross),
        gain1 * (w_lora + add0 * w_cross),
        gain0 * gain1 * w_cross,
        w_out,
    )
    return torch.stack(rows).to(dtype)
