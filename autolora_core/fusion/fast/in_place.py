"""The gated sum on a processor: added to the base's output where it lies, a few tokens at a time.

What is worked on fits a core's own cache, so that the many short passes over it cost little, and memory is read and
written once. A LoRA costs five of them: its output by a small product, the norm of that (a factor and a shift a token,
known before, see :mod:`.packed`), the logits, the sigmoid, the sum. Every pass gives a thread the same tokens, so that
it finds in its own cache what it left there: a plain product would be shared out by channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .packed import Packed

# Of one buffer, a thread. Half of it and twice as much are slower: a call costs microseconds, a core's cache is small.
CACHE_BYTES = 256 << 10
BUFFERS = 5  # in use at once
Knobs = Sequence[tuple[float, float, float]]
Rows = tuple[Tensor, Tensor, Tensor]  # of some tokens: hidden part (threads, tokens a thread, r), slope and off (T, 1)


@dataclass(frozen=True)
class _Lora:
    """``hidden`` (T, r), ``factor`` (r, d) with scale and gain; the norm of its output is ``slope·y − off``, each
    (T, 1)."""

    hidden: Tensor
    factor: Tensor
    slope: Tensor
    off: Tensor
    shift: float

    def rows(self, first: int, last: int, count: int, parts: int) -> Iterator[Rows]:
        """Of ``count`` tokens at a time, all views made at once."""
        hidden = self.hidden[first:last].view(-1, parts, count // parts, self.hidden.shape[1])
        return zip(hidden, *(one[first:last].view(-1, count, 1) for one in (self.slope, self.off)), strict=True)


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
    loras, rows = _loras(hidden.to(wide), packed, knobs, eps), coefficients.to(wide).unbind(0)
    count = min(tokens or tokens_at_once(out.shape[1]), max(len(out), 1))
    buffers = [out.new_empty(count, out.shape[1], dtype=wide) for _ in range(BUFFERS - 2)]
    whole = len(out) - len(out) % count
    for first, last, some in ((0, whole, count), (whole, len(out), len(out) - whole)):
        if first == last:
            continue
        threads = torch.get_num_threads()
        parts = 1 if some % threads else threads
        piece = _Piece(loras, rows, eps, [buffer[:some] for buffer in buffers], parts)
        for part, *own in zip(
            out[first:last].split(some), *(one.rows(first, last, some, parts) for one in loras), strict=True
        ):
            piece.add(part, own)


def tokens_at_once(channels: int) -> int:
    """So many that each thread's part fits its cache, the same for each: what is in memory besides the output does not
    grow with it."""
    threads = torch.get_num_threads()
    return threads * max(-(-8 // threads), CACHE_BYTES // (4 * channels))


def _loras(hidden: Tensor, packed: Packed, knobs: Knobs, eps: float) -> list[_Lora]:
    # A copy, also because it is written to; products with rows a rank are quicker than with rows a channel.
    factors = hidden.new_empty(packed.up.shape[::-1]).copy_(packed.up.t())
    statistics = torch.cat([packed.root, packed.mean[:, None]], 1).to(hidden.dtype)
    slopes, offs = hidden.new_empty(2, len(knobs), len(hidden), 1)
    loras = []
    for (first, last), (scale, shift, gain), slope, off in zip(packed.bounds, knobs, slopes, offs, strict=True):
        own, columns = hidden[:, first:last], slice(first, last)
        found = own @ statistics[columns].mul_(scale * gain)
        torch.linalg.vector_norm(found[:, :-1], dim=1, keepdim=True, out=slope)
        off.copy_(found[:, -1:])
        loras.append(_Lora(own, factors[columns].mul_(scale * gain), slope, off, shift))
    # The gain acts behind the gate: it makes the output louder, and the norm, with its floor, no other.
    slopes.square_().add_(hidden.new_tensor([eps * gain * gain for *_, gain in knobs])[:, None, None]).rsqrt_()
    offs.mul_(slopes)
    return loras


class _Piece:
    """Some tokens' work, as often as there are so many; ``buffers``, each (tokens, d), are written over."""

    def __init__(
        self, loras: Sequence[_Lora], coefficients: Sequence[Tensor], eps: float, buffers: Sequence[Tensor], parts: int
    ):
        self.factors = [one.factor.expand(parts, *one.factor.shape) for one in loras]
        self.shifts = [one.shift for one in loras]
        self.coefficients, self.eps = coefficients, eps
        self.output, self.logits, self.update = buffers  # new ones every time would be new pages every time
        self.by_thread = self.output.view(parts, -1, self.output.shape[1])

    def add(self, out: Tensor, loras: Sequence[Rows]) -> None:
        """``out`` (tokens, d) and what they hear of each LoRA."""
        constant, slope, lora, cross, w_out = self.coefficients
        output, logits, update = self.output, self.logits, self.update
        narrow = out.dtype != output.dtype
        base = output.copy_(out) if narrow else out
        still = self._normed(base, slope, constant)
        heard = self._normed(base, cross, lora)
        for number, (hidden, steep, off) in enumerate(loras):
            torch.bmm(hidden, self.factors[number], out=self.by_thread)
            torch.mul(output, steep, out=logits)
            torch.addcmul(still, heard, logits.sub_(off), out=logits)
            if self.shifts[number]:
                logits.add_(self.shifts[number])
            if number:
                update.addcmul_(logits.sigmoid_(), output)
            else:
                torch.mul(logits.sigmoid_(), output, out=update)
        base = still.copy_(out) if narrow else out  # once more: the cache is better used by what lies in between
        base.addcmul_(update, w_out)
        if narrow:
            out.copy_(base)

    def _normed(self, base: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.native_layer_norm(base, (base.shape[1],), weight, bias, self.eps)[0]
