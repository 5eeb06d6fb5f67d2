"""The gated sum on a GPU by Triton: up-projection, both norms, gate and sum, without any branch output.

Imported only where Triton is there. A program holds some tokens: what the down factors made of them, and the norms'
statistics of every LoRA, which follow from that alone (see :mod:`.packed`). Then it goes over the channels, tile by
tile: the LoRAs' outputs on the tensor cores, gate, and sum, all in registers.

The statistics of the base's own output need a reading of their own. ``Launch.split`` gives that to a kernel before; in
a whole launch the same program does it, and reads its rows again from the cache as far as they fit.

How strong a LoRA is, where sampling stands and how many channels and tokens there are is data: only the number of
LoRAs and their largest rank, both rounded up (:func:`bucket`), and the dtype make another kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .packed import BLOCK, Packed

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)  # numbers of LoRAs that have a kernel
RANKS = (16, 32, 64, 128, 256)
WIDEST = 64  # ranks that a tile holds at once
PROGRAMS = 380  # that keep a large card busy
STATISTICS = (2, 1024)  # tokens and channels of a tile of the base's statistics


@triton.jit
def _base_moments(y0, at, inside, channels, BM: tl.constexpr, BN: tl.constexpr):
    """Mean and mean square deviation of BM rows. Sums are taken about the mean of the first tile: where that is far
    from the others' the spread is large as well, so nothing cancels."""
    columns = tl.arange(0, BN)
    first = tl.load(y0 + at[:, None] + columns[None], mask=inside[:, None] & (columns < channels)[None], other=0.0)
    about = tl.sum(first.to(tl.float32), 1) / tl.minimum(channels, BN)
    sums = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM, BN), tl.float32)
    for start in range(0, channels, BN):
        there = (start + columns < channels)[None]
        values = tl.load(y0 + at[:, None] + start + columns[None], mask=inside[:, None] & there, other=0.0)
        apart = tl.where(there, values.to(tl.float32) - about[:, None], 0.0)
        sums += apart
        squares += apart * apart
    off = tl.sum(sums, 1) / channels
    return about + off, tl.sum(squares, 1) / channels - off * off


@triton.jit(do_not_specialize=["tokens"])
def _statistics(y0, moments, tokens, channels, y_stride, eps, BM: tl.constexpr, BN: tl.constexpr):
    """``moments`` (2, tokens): mean and 1/√(var + eps) of the base's output over its channels."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rows < tokens
    mean, spread = _base_moments(y0, rows.to(tl.int64) * y_stride, inside, channels, BM, BN)
    tl.store(moments + rows, mean, mask=inside)
    tl.store(moments + tokens + rows, tl.rsqrt(spread + eps), mask=inside)


@triton.jit
def _hidden(hidden, at, inside, start, last, BR: tl.constexpr):
    """(BM, BR) of what the down factors made, zero beyond a LoRA's own columns."""
    columns = start + tl.arange(0, BR)
    return tl.load(hidden + at[:, None] + columns[None], mask=inside[:, None] & (columns < last)[None], other=0.0)


@triton.jit
def _lora_moments(
    hidden, mean, root, at, inside, first, last, width, BM: tl.constexpr, BR: tl.constexpr, BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Mean and mean square deviation of ``up h`` for BM tokens, from h alone. ``width``: columns of ``root``."""
    inner = tl.arange(0, BR)
    middle = tl.zeros((BM,), tl.float32)
    spread = tl.zeros((BM,), tl.float32)
    for i in range(BLOCKS):
        low = first + i * BR
        own = _hidden(hidden, at, inside, low, last, BR).to(tl.float32)
        middle += tl.sum(own * tl.load(mean + low + inner, mask=low + inner < last, other=0.0)[None], 1)
        coordinates = tl.zeros((BM, BR), tl.float32)
        for j in range(i, BLOCKS):  # R is upper triangular
            rows, columns = first + j * BR + inner, i * BR + inner
            there = (rows < last)[:, None] & (columns < last - first)[None]
            block = tl.load(root + rows[:, None] * width + columns[None], mask=there, other=0.0)
            part = _hidden(hidden, at, inside, first + j * BR, last, BR).to(tl.float32)
            coordinates = tl.dot(part, block, coordinates, input_precision=PRECISION)
        spread += tl.sum(coordinates * coordinates, 1)
    return middle, spread


@triton.jit
def _passed(logit, y, FAST: tl.constexpr):
    """``2·σ(2·logit)·y``, exact to float32; or to the 11 bits of a half, by σ(2x) = ½ + ½ tanh x, two at a time."""
    if FAST:
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f16x2 $0, $1;", "=r,r", [logit.to(tl.float16)], dtype=tl.float16, is_pure=True, pack=2
        )
        return y + y * tanh.to(tl.float32)
    return 2.0 * y / (1.0 + tl.exp(-2.0 * logit))


@triton.jit(do_not_specialize=["tokens", "tiles", "width", "loras"])
def _sum(
    y0, out, hidden, up, mean, root, spans, knobs, coefficients, moments, tokens, channels, tiles, loras,
    share, eps, y_stride, out_stride, h_stride, up_stride, width, LOOKED: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, LORAS: tl.constexpr, BLOCKS: tl.constexpr, HELD: tl.constexpr,
    TILTED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """``LOOKED``: ``moments`` holds the base's statistics. ``WIDE``: products of float32 copies."""
    top = tl.program_id(0) * BM
    rows = top + tl.arange(0, BM)
    inside = rows < tokens
    y0 += top.to(tl.int64) * y_stride  # so that 32 bits do for the rest
    out += top.to(tl.int64) * out_stride
    hidden += top.to(tl.int64) * h_stride
    y_at, h_at, o_at = (rows - top) * y_stride, (rows - top) * h_stride, (rows - top) * out_stride
    if LOOKED:
        base_mean = tl.load(moments + rows, mask=inside, other=0.0)
        base_spread = tl.load(moments + tokens + rows, mask=inside, other=0.0)
    else:
        base_mean, base_spread = _base_moments(y0, y_at, inside, channels, BM, BN)
        base_spread = tl.rsqrt(base_spread + eps)
    base_off = -base_mean * base_spread
    way = 2.0 * share - 1.0
    firsts, lasts, slopes, offs, shifts, gains, held = (), (), (), (), (), (), ()
    for k in tl.static_range(LORAS):  # a bucket may be larger than what is there: those have no columns
        present = k < loras
        first = tl.multiple_of(tl.load(spans + 2 * k, mask=present, other=0), 16)
        last = tl.multiple_of(tl.load(spans + 2 * k + 1, mask=present, other=0), 16)
        scale = tl.load(knobs + 5 * k, mask=present, other=0.0)
        middle, spread = _lora_moments(hidden, mean, root, h_at, inside, first, last, width, BM, BR, BLOCKS, PRECISION)
        slope = scale * tl.rsqrt(scale * scale * spread + eps)
        shift = tl.load(knobs + 5 * k + 1, mask=present, other=0.0)
        shift += way * tl.load(knobs + 5 * k + 2, mask=present, other=0.0)
        gain = tl.load(knobs + 5 * k + 3, mask=present, other=0.0)
        gain += way * tl.load(knobs + 5 * k + 4, mask=present, other=0.0)
        firsts, lasts, slopes = firsts + (first,), lasts + (last,), slopes + (slope,)
        if HELD:
            held = held + (_hidden(hidden, h_at, inside, first, last, BR),)
        offs, shifts, gains = offs + (-middle * slope,), shifts + (0.5 * shift,), gains + (0.5 * scale * tl.exp(gain),)
    low = tl.program_id(1) * tiles * BN
    inner = tl.arange(0, BR)
    high = tl.minimum(low + tiles * BN, channels)
    columns = low + tl.arange(0, BN)
    ahead = tl.load(y0 + y_at[:, None] + columns[None], mask=inside[:, None] & (columns < high)[None], other=0.0)
    for start in range(low, high, BN):
        columns = start + tl.arange(0, BN)
        there = columns < high
        mask = inside[:, None] & there[None]
        base = ahead.to(tl.float32)  # the next tile is on its way while this one is worked on
        more = inside[:, None] & (columns + BN < high)[None]
        ahead = tl.load(y0 + y_at[:, None] + (columns + BN)[None], mask=more, other=0.0)
        normed = base * base_spread[:, None] + base_off[:, None]
        c = coefficients + columns  # halved: see _passed
        constant = tl.load(c, mask=there, other=0.0)[None]
        constant += normed * tl.load(c + channels, mask=there, other=0.0)[None]
        cross = tl.load(c + 2 * channels, mask=there, other=0.0)[None]
        cross += normed * tl.load(c + 3 * channels, mask=there, other=0.0)[None]
        update = tl.zeros((BM, BN), tl.float32)
        for k in tl.static_range(LORAS):
            y = tl.zeros((BM, BN), tl.float32)
            for i in range(BLOCKS):
                j = firsts[k] + i * BR
                if HELD:
                    h = held[k]
                else:
                    h = _hidden(hidden, h_at, inside, j, lasts[k], BR)
                own = (j + inner < lasts[k])[:, None] & there[None]
                factor = tl.load(up + columns[None] * (up_stride * 16) + (j + inner)[:, None], mask=own, other=0.0)
                if WIDE:
                    h, factor = h.to(tl.float32), factor.to(tl.float32)
                y = tl.dot(h, factor, y, input_precision=PRECISION)
            logit = (y * slopes[k][:, None] + offs[k][:, None]) * cross
            if TILTED:
                logit += constant + shifts[k]
            else:
                logit += constant
            update += _passed(logit, y * gains[k], FAST)
        total = base + update * tl.load(c + 4 * channels, mask=there, other=0.0)[None]
        tl.store(out + o_at[:, None] + columns[None], total.to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class Launch:
    """How to run: ``split`` or whole, tokens and channels of a tile, tiles a program, warps, stages; ``held``: what the
    down factors made stays in registers (as far as a tile holds a whole rank)."""

    split: bool = True
    tokens: int = 64
    channels: int = 64
    tiles: int = 16
    warps: int = 4
    stages: int = 3
    held: bool = True


def bucket(size: int, sizes: tuple[int, ...]) -> int | None:
    """The smallest of ``sizes`` that holds ``size``; None where none does."""
    return next((one for one in sizes if one >= size), None)


def gated(
    y0: Tensor, hidden: Tensor, packed: Packed, coefficients: Tensor, knobs: Tensor, eps: float, share: float = 0.0,
    tilted: bool = False, launch: Launch | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``y0 + Σ_k exp(gain_k)·w_out·g_k·y_k`` (T, d): new, or in ``out``, which may be ``y0`` in a split launch. As
    :func:`.chunked.gated`, but ``coefficients`` are halved (all but w_out), ``knobs`` (K, 5) float32 are scale, shift
    and its slope, gain and its slope (logarithms), and ``share`` says where sampling stands."""
    tokens, channels = y0.shape
    loras, rank = len(packed.bounds), bucket(packed.root.shape[1], RANKS)
    launch = launch or choose(tokens, channels, bucket(loras, COUNTS), rank)
    exact = y0.dtype == torch.float32
    options = {
        "LORAS": bucket(loras, COUNTS),
        "BR": min(rank, WIDEST),
        "BLOCKS": max(1, rank // WIDEST),
        "FAST": not exact and y0.is_cuda and torch.version.hip is None,
        "PRECISION": "tf32x3" if exact else "tf32",
        "WIDE": not y0.is_cuda,  # Triton's interpreter cannot multiply bfloat16
        "LOOKED": launch.split,
        "HELD": launch.held and rank <= WIDEST,
        "TILTED": tilted,
        **{"BM": launch.tokens, "BN": launch.channels, "num_warps": launch.warps, "num_stages": launch.stages},
    }
    tiles = launch.tiles if launch.split else triton.cdiv(channels, launch.channels)
    if out is None:
        out = torch.empty((tokens, channels), dtype=y0.dtype, device=y0.device)
    moments = torch.empty((2, tokens) if launch.split else 1, dtype=torch.float32, device=y0.device)
    if launch.split:
        _statistics[(triton.cdiv(tokens, STATISTICS[0]),)](
            y0, moments, tokens, channels, y0.stride(0), eps, BM=STATISTICS[0], BN=STATISTICS[1], num_warps=4
        )
    _sum[(triton.cdiv(tokens, launch.tokens), triton.cdiv(channels, tiles * launch.channels))](
        y0, out, hidden, packed.up, packed.mean, packed.root, packed.spans, knobs, coefficients, moments, tokens,
        channels, tiles, loras, share, eps, y0.stride(0), out.stride(0), hidden.stride(0),
        packed.up.stride(0) // BLOCK, packed.root.stride(0), **options,
    )  # fmt: skip
    return out


def choose(tokens: int, channels: int, loras: int, rank: int) -> Launch:
    """A launch that does well for this shape, measured on an H100: tall narrow tiles, and as many of them a program as
    leave some programs for every processor. More factors a tile need more warps' registers, and shared memory."""
    rows = 64 if tokens > 32 else 16
    programs = triton.cdiv(tokens, rows) * triton.cdiv(channels, 32)
    tiles = next((tiles for tiles in (64, 32, 16, 8, 4) if programs >= PROGRAMS * tiles), 2)
    factors, held = loras * min(rank, WIDEST), rank <= WIDEST
    stages = 3 if factors <= 192 else 2 if held else 1
    return Launch(True, rows, 32, tiles, 4 if factors <= 64 else 8, stages, held=held)
