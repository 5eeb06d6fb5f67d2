"""The gated sum in plain torch, a few tokens at a time: what is in memory besides the output is a small constant."""

from __future__ import annotations

import torch
from torch import Tensor

from .in_place import add_gated
from .packed import Packed

CHUNK_BYTES = 1 << 20  # of one branch's piece in float32: what a core's cache holds a few of


def gated(
    y0: Tensor, hidden: Tensor, packed: Packed, coefficients: Tensor, knobs: Tensor, eps: float,
    tokens: int | None = None,
) -> Tensor:  # fmt: skip
    """``y0 + Σ_k exp(gain_k)·w_out·g_k·y_k``, a new tensor in the dtype of ``y0``.

    ``y0`` (T, d); ``hidden`` (T, R): what all the down factors make of the layer's input, in the columns of ``packed``;
    ``coefficients`` (5, d): see :func:`.packed.coefficients`; ``knobs`` (K, 3) float32: scale, shift, exp(gain);
    ``eps`` of both norms. ``tokens``: how many at a time.
    """
    out = y0.clone(memory_format=torch.contiguous_format)
    add_gated(out, hidden, packed, coefficients, knobs.tolist(), eps, tokens)
    return out


def piece(y0: Tensor, hidden: Tensor, packed: Packed, coefficients: Tensor, knobs: Tensor, eps: float) -> Tensor:
    """The same for tokens that are few enough, float32 (float64 of float64); gradients pass it."""
    constant, slope, lora, cross, w_out = coefficients
    base = y0.to(torch.promote_types(y0.dtype, torch.float32))
    normed = torch.nn.functional.layer_norm(base, base.shape[-1:], eps=eps)
    constant, lora = torch.addcmul(constant, slope, normed), torch.addcmul(lora, cross, normed)
    update = torch.zeros_like(base)
    for (first, last), (scale, shift, gain) in zip(packed.bounds, knobs.unbind(0), strict=True):
        h = hidden[:, first:last]
        middle, spread = moments(h.to(base.dtype) * scale, packed, first, last, eps)
        y = torch.nn.functional.linear(h, packed.up[:, first:last]).to(base.dtype) * scale
        logits = torch.addcmul(constant, (y - middle) * spread, lora) + shift
        update.addcmul_(torch.sigmoid(logits), y * gain)
    return torch.addcmul(base, update, w_out)


def moments(h: Tensor, packed: Packed, first: int, last: int, eps: float) -> tuple[Tensor, Tensor]:
    """``(mean, 1/√(var + eps))``, each (T, 1) float32, of one LoRA's output over the channels; ``h`` (T, r) float32."""
    middle = h @ packed.mean[first:last, None]
    coordinates = h @ packed.root[first:last, : last - first]
    return middle, torch.rsqrt(coordinates.square().sum(1, keepdim=True) + eps)
