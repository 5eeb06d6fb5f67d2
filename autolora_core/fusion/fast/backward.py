"""The gated sum with gradients, for training: what is kept for the way back is what came in, nothing made on the way.

Autograd of the gate as it is written down keeps several tensors of the layer's output size for every LoRA. Here a few
tokens at a time are computed once more when their gradients are asked for, by the very function of the way forward
(:func:`.chunked.piece`), so that the gradients are those of what was computed: through the gate's coefficients, the
statistics that follow from the hidden parts, and the base's own norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import chunked
from .packed import Packed

CHUNK_BYTES = 1 << 19  # of one branch's piece in float32 on the way back: half and twice as much are slower
DEVICE_BYTES = 1 << 26  # the same where launches cost more than memory
ROWS = 2  # how many of the tensors below have a row a token


def gated(
    y0: Tensor, hidden: Tensor, packed: Packed, coefficients: Tensor, knobs: Tensor, eps: float,
    tokens: int | None = None,
) -> Tensor:  # fmt: skip
    """As :func:`.chunked.gated`, with gradients for whatever asks for them, the factors of ``packed`` too.

    ``knobs`` (K, 3): scale, shift, exp(gain). ``tokens``: how many at a time, both ways. Gradients of gradients are not
    there (``RuntimeError``).
    """
    tensors = (y0, hidden, coefficients, knobs, packed.up, packed.mean, packed.root)
    return _Gated.apply(*tensors, packed.bounds, eps, tokens)


def _tokens(y0: Tensor) -> int:
    """At a time, on the way back."""
    room = CHUNK_BYTES if y0.device.type == "cpu" else DEVICE_BYTES
    return max(16, room // (4 * y0.shape[1]))


def _packed(up: Tensor, mean: Tensor, root: Tensor, bounds: tuple[tuple[int, int], ...]) -> Packed:
    return Packed(up, mean, root, torch.empty(0, dtype=torch.int32), bounds)  # the chunked path reads no spans


class _Gated(torch.autograd.Function):
    """Tensors are saved one by one, not in a ``Packed``: checkpointing then lets go of them."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, bounds, eps, tokens = arguments
        ctx.save_for_backward(*tensors)
        ctx.bounds, ctx.eps, ctx.tokens = bounds, eps, tokens
        y0, hidden, coefficients, knobs, *factors = tensors
        return chunked.gated(y0, hidden, _packed(*factors, bounds), coefficients, knobs, eps, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad
        many = ctx.tokens or _tokens(tensors[0])
        totals = [torch.zeros_like(t) if w else None for t, w in zip(tensors, wanted, strict=False)]
        for start in range(0, grad.shape[0], many):
            rows = slice(start, start + many)
            parts = [t[rows] if i < ROWS else t for i, t in enumerate(tensors)]
            found = iter(_gradients(parts, wanted, grad[rows], ctx.bounds, ctx.eps))
            for i, total in enumerate(totals):
                if total is not None:
                    (total[rows] if i < ROWS else total).add_(next(found))
        return (*totals, None, None, None)


def _gradients(
    parts: list[Tensor], wanted: tuple[bool, ...], grad: Tensor, bounds: tuple[tuple[int, int], ...], eps: float
) -> tuple[Tensor, ...]:
    """Of some tokens, for those of ``parts`` that are ``wanted``."""
    with torch.enable_grad():
        parts = [part.detach().requires_grad_(w) for part, w in zip(parts, wanted, strict=False)]
        y0, hidden, coefficients, knobs, *factors = parts
        out = chunked.piece(y0, hidden, _packed(*factors, bounds), coefficients, knobs, eps)
    asked = [part for part in parts if part.requires_grad]
    return torch.autograd.grad(out, asked, grad.to(out.dtype), materialize_grads=True)
