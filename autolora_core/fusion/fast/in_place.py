"""The gated sum on a processor: added to the base's output where it lies, a few tokens at a time.

What is worked on fits a core's own cache, so that the many short passes over it cost little, and memory is read and
written once. A LoRA costs five of them: its output by a small product, the norm of that (a factor and a shift a token,
known before, see :mod:`.packed`), the logits, the sigmoid, the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .packed import Packed

CACHE_BYTES = 160 << 10  # of one buffer, a thread: five of them are in use, and a core's cache is 512 kB or more
Knobs = Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class _Lora:
    """``hidden`` (T, r), ``factor`` (r, d) with scale; the norm of its output is ``slope·y − off``, each (T, 1)."""

    hidden: Tensor
    factor: Tensor
    slope: Tensor
    off: Tensor
    shift: float


def add_gated(
    out: Tensor, hidden: Tensor, packed: Packed, coefficients: Tensor, knobs: Knobs, eps: float,
    tokens: int | None = None,
) -> None:  # fmt: skip
    """``out += Σ_k exp(gain_k)·w_out·g_k·y_k``, ``out`` (T, d) being the base's output; its rows may have gaps.

    ``hidden`` (T, R): what all the down factors make of the layer's input, in the columns of ``packed``;
    ``coefficients`` (5, d): see :func:`.packed.coefficients`; ``knobs``: a LoRA's scale, shift, exp(gain) > 0; ``eps``
    of both norms. ``tokens``: how many at a time. Float32 in between, float64 for float64.
    """
    wide = torch.promote_types(out.dtype, torch.float32)
    coefficients = coefficients.to(wide)
    loras = list(_loras(hidden.to(wide), packed, knobs, eps))
    count = min(tokens or tokens_at_once(out.shape[1]), max(len(out), 1))
    buffers = [out.new_empty(count, out.shape[1], dtype=wide) for _ in range(5)]
    for start in range(0, len(out), count):
        rows = slice(start, min(start + count, len(out)))
        _piece(out[rows], rows, loras, coefficients, eps, [buffer[: rows.stop - start] for buffer in buffers])


def tokens_at_once(channels: int) -> int:
    """So many that each thread's part fits its cache: what is in memory besides the output does not grow with it."""
    return max(8, CACHE_BYTES * torch.get_num_threads() // (4 * channels))


def _loras(hidden: Tensor, packed: Packed, knobs: Knobs, eps: float) -> Iterator[_Lora]:
    # A copy, also because it is written to; products with rows a rank are quicker than with rows a channel.
    factors = hidden.new_empty(packed.up.shape[::-1]).copy_(packed.up.t())
    for (first, last), (scale, shift, gain) in zip(packed.bounds, knobs, strict=True):
        own, wide = hidden[:, first:last], hidden.dtype
        middle = own @ packed.mean[first:last, None].to(wide)
        coordinates = own @ packed.root[first:last, : last - first].to(wide)
        spread = coordinates.square_().sum(1, keepdim=True).mul_(scale * scale).add_(eps).rsqrt_()
        # The gain acts behind the gate: it makes the output louder, and the norm's slope as much smaller.
        yield _Lora(own, factors[first:last].mul_(scale * gain), spread / gain, middle.mul_(scale).mul_(spread), shift)


def _piece(
    out: Tensor, rows: slice, loras: Sequence[_Lora], coefficients: Tensor, eps: float, buffers: Sequence[Tensor]
) -> None:
    constant, slope, lora, cross, w_out = coefficients
    output, logits, update, still, heard = buffers  # new ones every time would be new pages every time
    base = out.to(output.dtype)
    torch.sub(base, base.mean(1, keepdim=True), out=logits)
    spread = torch.linalg.vector_norm(logits, dim=1, keepdim=True).square_().div_(base.shape[1]).add_(eps).rsqrt_()
    logits.mul_(spread)
    torch.addcmul(constant, slope, logits, out=still)
    torch.addcmul(lora, cross, logits, out=heard)
    for number, one in enumerate(loras):
        torch.mm(one.hidden[rows], one.factor, out=output)
        torch.mul(output, one.slope[rows], out=logits)
        torch.addcmul(still, heard, logits.sub_(one.off[rows]), out=logits)
        if one.shift:
            logits.add_(one.shift)
        if number:
            update.addcmul_(logits.sigmoid_(), output)
        else:
            torch.mul(logits.sigmoid_(), output, out=update)
    base.addcmul_(update, w_out)
    if base is not out:
        out.copy_(base)
