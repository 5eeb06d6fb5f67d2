"""The gated sum on a processor: added to the base's output where it lies, a few tokens at a time.

Where Numba is installed it is one compiled pass (:mod:`.compiled_gate`). Else it is PyTorch's calls, on what fits a
core's own cache, so that the many short passes cost little, and memory is read and written once. A LoRA costs five of
them: its output by a small product, the norm of that (a factor and a shift a token, known before, see :mod:`.packed`),
the logits, the sigmoid, the sum. Every pass gives a thread the same tokens, so that it finds in its own cache what it
left there: a plain product would be shared out by channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .choose import compiled_gate
from .packed import BLOCK, Packed

# Of one buffer, a thread. Half of it and twice as much are slower: a call costs microseconds, a core's cache is small.
CACHE_BYTES = 256 << 10
BUFFERS = 5  # in use at once
WHOLE, TILE = 6144, 1536  # of more channels than the one, the other at a time: few tokens share such large factors
Knobs = Sequence[tuple[float, float, float]]
Rows = tuple[Tensor, Tensor, Tensor]  # of some tokens: hidden part (threads, tokens a thread, r), slope and off (T, 1)
Moments = tuple[Tensor, Tensor]  # of the base's output: mean and 1/√(var + eps), each (T, 1)


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
    wide, channels = torch.promote_types(out.dtype, torch.float32), out.shape[1]
    hidden, rows = hidden.to(wide), coefficients.to(wide)
    loras = _Loras.of(hidden, packed, knobs, eps)
    compiled = compiled_gate(out.dtype) if tokens is None and out.stride(1) == 1 else None
    if compiled is not None and all((last - first) % BLOCK == 0 for first, last in packed.bounds):  # not in training
        compiled(out, hidden, loras.factors, rows, loras.slopes, loras.offs, loras.shifts, packed.bounds, eps)
        return
    loras = loras.one_by_one(hidden, packed)
    width = _tile(channels)
    count = _evenly(len(out), tokens or tokens_at_once(width))
    buffers = [out.new_empty(count * width, dtype=wide) for _ in range(BUFFERS - 2)]
    whole = len(out) - len(out) % count
    for first, last, some in ((0, whole, count), (whole, len(out), len(out) - whole)):
        if first == last:
            continue
        threads = torch.get_num_threads()
        parts = 1 if some % threads else threads
        tiles = [
            _Tile(loras, rows, slice(start, min(start + width, channels)), eps, buffers, (parts, some // parts))
            for start in range(0, channels, width)
        ]
        for part, *own in zip(
            out[first:last].split(some), *(one.rows(first, last, some, parts) for one in loras), strict=True
        ):
            moments = _moments(part, eps) if len(tiles) > 1 else None
            for tile, piece in zip(tiles, part.split(width, 1), strict=True):
                tile.add(piece, own, moments)


def tokens_at_once(channels: int) -> int:
    """So many that each thread's part fits its cache, the same for each: what is in memory besides the output does not
    grow with it."""
    threads = torch.get_num_threads()
    return threads * max(-(-8 // threads), CACHE_BYTES // (4 * channels))


def _tile(channels: int) -> int:
    """How many channels at a time."""
    return channels if channels <= WHOLE else BLOCK * -(-channels // (BLOCK * -(-channels // TILE)))


def _evenly(tokens: int, most: int) -> int:
    """How many at a time, at most about ``most``, so that no small rest is left; whole shares for the threads."""
    threads = torch.get_num_threads()
    share = -(-tokens // -(-tokens // most)) if tokens else 1
    return min(threads * -(-share // threads), max(tokens, 1))


def _moments(base: Tensor, eps: float) -> Moments:
    """Of all channels of some tokens, a few at a time: the norm itself is thrown away."""
    wide, channels = torch.promote_types(base.dtype, torch.float32), base.shape[1]
    one, zero = base.new_ones(channels, dtype=wide), base.new_zeros(channels, dtype=wide)
    few = base.split(tokens_at_once(channels))
    found = [torch.native_layer_norm(some, (channels,), one, zero, eps)[1:] for some in few]
    mean, spread = (torch.cat(parts) for parts in zip(*found, strict=True))
    return mean, spread


@dataclass(frozen=True)
class _Loras:
    """``factors`` (R, d) with scale and gain, ``slopes`` and ``offs`` (K, T); see :class:`_Lora`."""

    factors: Tensor
    slopes: Tensor
    offs: Tensor
    shifts: list[float]

    @classmethod
    def of(cls, hidden: Tensor, packed: Packed, knobs: Knobs, eps: float) -> _Loras:
        # A copy, also because it is written to; products with rows a rank are quicker than with rows a channel.
        factors = hidden.new_empty(packed.up.shape[::-1]).copy_(packed.up.t())
        statistics = torch.cat([packed.root, packed.mean[:, None]], 1).to(hidden.dtype)
        slopes, offs = hidden.new_empty(2, len(knobs), len(hidden))
        for (first, last), (scale, _, gain), slope, off in zip(packed.bounds, knobs, slopes, offs, strict=True):
            found = hidden[:, first:last] @ statistics[first:last].mul_(scale * gain)
            torch.linalg.vector_norm(found[:, :-1], dim=1, out=slope)
            off.copy_(found[:, -1])
            factors[first:last].mul_(scale * gain)
        # The gain acts behind the gate: it makes the output louder, and the norm, with its floor, no other.
        slopes.square_().add_(hidden.new_tensor([eps * gain * gain for *_, gain in knobs])[:, None]).rsqrt_()
        return cls(factors, slopes, offs.mul_(slopes), [shift for _, shift, _ in knobs])

    def one_by_one(self, hidden: Tensor, packed: Packed) -> list[_Lora]:
        return [
            _Lora(hidden[:, first:last], self.factors[first:last], slope[:, None], off[:, None], shift)
            for (first, last), slope, off, shift in zip(packed.bounds, self.slopes, self.offs, self.shifts, strict=True)
        ]


class _Tile:
    """The work on some channels of ``shape[0]·shape[1]`` tokens, as often as there are so many. ``shape``: threads,
    tokens a thread; ``buffers`` are written over."""

    def __init__(
        self, loras: Sequence[_Lora], coefficients: Tensor, channels: slice, eps: float, buffers: Sequence[Tensor],
        shape: tuple[int, int],
    ):  # fmt: skip
        self.factors = [one.factor[:, channels].expand(shape[0], -1, -1) for one in loras]
        self.shifts = [one.shift for one in loras]
        self.coefficients, self.eps = coefficients[:, channels].unbind(0), eps
        tokens, width = shape[0] * shape[1], channels.stop - channels.start
        # New ones every time would be new pages every time.
        self.output, self.logits, self.update = (one[: tokens * width].view(tokens, width) for one in buffers)
        self.by_thread = self.output.view(*shape, width)

    def add(self, out: Tensor, loras: Sequence[Rows], moments: Moments | None) -> None:
        """``out`` (tokens, channels of the tile), what they hear of each LoRA, and ``moments`` where ``out`` has not
        all channels."""
        output, logits, update = self.output, self.logits, self.update
        narrow = out.dtype != output.dtype
        still, heard = self._base(output.copy_(out) if narrow else out, moments)
        for number, (hidden, slope, off) in enumerate(loras):
            torch.bmm(hidden, self.factors[number], out=self.by_thread)
            torch.mul(output, slope, out=logits)
            torch.addcmul(still, heard, logits.sub_(off), out=logits)
            if self.shifts[number]:
                logits.add_(self.shifts[number])
            if number:
                update.addcmul_(logits.sigmoid_(), output)
            else:
                torch.mul(logits.sigmoid_(), output, out=update)
        base = still.copy_(out) if narrow else out  # once more: the cache is better used by what lies in between
        base.addcmul_(update, self.coefficients[4])
        if narrow:
            out.copy_(base)

    def _base(self, base: Tensor, moments: Moments | None) -> tuple[Tensor, Tensor]:
        """Of the logits, what no LoRA changes, and the factor of a LoRA's norm."""
        constant, slope, lora, cross, _ = self.coefficients
        if moments is None:
            return self._normed(base, slope, constant), self._normed(base, cross, lora)
        normed = torch.sub(base, moments[0], out=self.logits).mul_(moments[1])
        return torch.addcmul(constant, slope, normed), torch.addcmul(lora, cross, normed)

    def _normed(self, base: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.native_layer_norm(base, (base.shape[1],), weight, bias, self.eps)[0]
