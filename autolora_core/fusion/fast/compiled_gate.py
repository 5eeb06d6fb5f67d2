"""The gated sum on a processor as one compiled pass, for those who have Numba (``pip install numba``).

Imported only where Numba is there. PyTorch's calls go over a layer's output two dozen times, at best in a core's cache.
Here a core takes some tokens, reads them once for the base's norm, and once more for everything else: a piece of a row
is widened to float32, and what comes in between (the LoRAs' outputs, their norms, logits, sigmoids, the sum) never
leaves the core's nearest cache. Machine code is made at the first use of a dtype, in some three seconds, and kept in
memory only: Numba's cache on disk would be a pickle.

Small functions are kept apart (``inline="never"``) and read pieces of ``PIECE`` channels, however few are left: loops
of a known length over few arrays are those that LLVM turns into vector code.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numba import njit, prange, types
from torch import Tensor

from .packed import BLOCK

log = logging.getLogger(__name__)
PIECE = 128  # channels; half and twice as many are slower
TOKENS = 64  # that share a copy of the factors of a piece
FEWEST = 16  # tokens that are worth another thread
DTYPES = (torch.float32, torch.bfloat16)
# No assumption that there are no NaNs: they have to come out.
_OPTIONS = {"fastmath": {"reassoc", "nsz", "contract", "arcp", "afn"}, "error_model": "numpy", "nogil": True}
_SMALL = {**_OPTIONS, "inline": "never"}
# tanh z = z·P(z²)/Q(z²) for |z| ≤ 8, a minimax fit: at most 2e-7 off, beyond it tanh is 1 to 2.3e-7.
EDGE = np.float32(8.0)
_f, _u = np.float32, np.uint32
_P = (0.999999065, 0.126997811, 2.68449456e-3, 7.08344469e-6, -6.01998448e-9)
_Q = (0.460327738, 2.27973876e-2, 1.95298991e-4)
_P0, _P1, _P2, _P3, _P4 = map(_f, _P)
_Q1, _Q2, _Q3 = map(_f, _Q)
_1, _2, _3, _4, _5, _6, _7, _8, _9, _10, _11, _12, _13, _14, _15 = (i * PIECE for i in range(1, BLOCK))


@njit(**_SMALL)
def _product(acc, h, p, begun):
    """``acc`` (PIECE,) of ``h`` (16,) and ``p`` (16·PIECE,): 16 ranks of a LoRA's output for one token."""
    a, b, c, d, e, f, g, i = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
    j, k, m, n, o, q, r, s = h[8], h[9], h[10], h[11], h[12], h[13], h[14], h[15]
    for x in range(PIECE):
        acc[x] = (
            (acc[x] if begun else _f(0.0))  # no product: what another token left there may be no number
            + (a * p[x] + b * p[x + _1] + c * p[x + _2] + d * p[x + _3])
            + (e * p[x + _4] + f * p[x + _5] + g * p[x + _6] + i * p[x + _7])
            + (j * p[x + _8] + k * p[x + _9] + m * p[x + _10] + n * p[x + _11])
            + (o * p[x + _12] + q * p[x + _13] + r * p[x + _14] + s * p[x + _15])
        )


@njit(**_SMALL)
def _pass(update, y, still, heard, slope, off, shift):
    """``update += y·σ(still + heard·(slope·y − off) + shift)``."""
    for x in range(PIECE):
        z = _f(0.5) * (still[x] + (y[x] * slope - off) * heard[x] + shift)
        z = min(max(z, -EDGE), EDGE)
        w = z * z
        top = (((_P4 * w + _P3) * w + _P2) * w + _P1) * w + _P0
        bottom = ((_Q3 * w + _Q2) * w + _Q1) * w + _f(1.0)
        update[x] += y[x] * (_f(0.5) + _f(0.5) * (z * top / bottom))


@njit(**_SMALL)
def _begin(still, heard, update, row, table, spread, off):
    """What no LoRA changes of the logits, and the factor of a LoRA's norm; ``table`` (5·PIECE,)."""
    for x in range(PIECE):
        normed = row[x] * spread + off
        still[x] = table[x] + table[x + _1] * normed
        heard[x] = table[x + _2] + table[x + _3] * normed
        update[x] = _f(0.0)


@njit(**_SMALL)
def _end(row, update, table):
    for x in range(PIECE):
        row[x] += update[x] * table[x + _4]


@njit(**_SMALL)
def _sums(row, about, count):
    total, squares = _f(0.0), _f(0.0)
    for x in range(count):
        apart = row[x] - about
        total += apart
        squares += apart * apart
    return total, squares


@njit(**_SMALL)
def _read_float(row, bits, source):
    for x in range(source.shape[0]):
        row[x] = source[x]


@njit(**_SMALL)
def _write_float(goal, row, bits):
    for x in range(goal.shape[0]):
        goal[x] = row[x]


@njit(**_SMALL)
def _read_bfloat(row, bits, source):
    """bfloat16 is the upper half of a float32."""
    for x in range(source.shape[0]):
        bits[x] = _u(source[x]) << _u(16)


@njit(**_SMALL)
def _write_bfloat(goal, row, bits):
    """To the nearest, ties to even; what is no number stays none."""
    for x in range(goal.shape[0]):
        one = bits[x]
        rounded = (one + _u(0x7FFF) + ((one >> _u(16)) & _u(1))) >> _u(16)
        goal[x] = np.uint16((one >> _u(16)) | _u(0x40) if (one & _u(0x7FFFFFFF)) > _u(0x7F800000) else rounded)


@njit(**_SMALL)
def _copy(panel, rows, start, count):
    """``rows`` (n, d) from ``start`` on into ``panel`` (n·PIECE,)."""
    for j in range(rows.shape[0]):
        source, goal = rows[j, start : start + count], panel[j * PIECE : j * PIECE + count]
        for x in range(count):
            goal[x] = source[x]


def _build(number: type, read: Callable, write: Callable) -> Callable:
    """``gate(out, stride, channels, hidden, factors, table, slopes, offs, shifts, bounds, eps, size)``; ``number``: how
    the output is stored. It shares tokens out, ``size`` each, to Numba's threads."""
    floats, rows, flat = types.float32, types.float32[:, ::1], types.float32[::1]
    shared = (number[::1], types.int64, types.int64, rows, rows, rows, rows, rows, flat, types.int64[:, ::1], floats)

    @njit(**_SMALL)
    def moments(row, bits, own, eps):
        """Mean and 1/√(var + eps) of ``own`` (d,). Sums are taken about the mean of its first piece."""
        channels, total, squares, about = own.shape[0], _f(0.0), _f(0.0), _f(0.0)
        for start in range(0, channels, PIECE):
            count = min(PIECE, channels - start)
            read(row, bits, own[start : start + count])
            if start == 0:
                about = _sums(row, _f(0.0), count)[0] / _f(count)
            more, more_squares = _sums(row, about, count)
            total += more
            squares += more_squares
        middle = total / _f(channels)
        return about + middle, _f(1.0) / np.sqrt(max(squares / _f(channels) - middle * middle, _f(0.0)) + eps)

    @njit(types.void(*shared, types.int64, types.int64), **_OPTIONS)
    def some(out, stride, channels, hidden, factors, table, slopes, offs, shifts, bounds, eps, first, last):
        scratch = np.zeros((5, PIECE), np.float32)
        still, heard, y, update, row = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
        bits = row.view(np.uint32)
        panel, coefficients = np.zeros(factors.shape[0] * PIECE, np.float32), np.zeros(5 * PIECE, np.float32)
        statistics = np.empty((2, TOKENS), np.float32)
        for top in range(first, last, TOKENS):
            end = min(top + TOKENS, last)
            for t in range(top, end):
                middle, spread = moments(row, bits, out[t * stride : t * stride + channels], eps)
                statistics[0, t - top], statistics[1, t - top] = spread, -middle * spread
            for start in range(0, channels, PIECE):
                count = min(PIECE, channels - start)
                _copy(panel, factors, start, count)
                _copy(coefficients, table, start, count)
                for t in range(top, end):
                    own = out[t * stride + start : t * stride + start + count]
                    read(row, bits, own)
                    _begin(still, heard, update, row, coefficients, statistics[0, t - top], statistics[1, t - top])
                    for k in range(bounds.shape[0]):
                        for j in range(bounds[k, 0], bounds[k, 1], BLOCK):
                            _product(
                                y, hidden[t, j : j + BLOCK], panel[j * PIECE : (j + BLOCK) * PIECE], j > bounds[k, 0]
                            )
                        _pass(update, y, still, heard, slopes[k, t], offs[k, t], shifts[k])
                    _end(row, update, coefficients)
                    write(own, row, bits)

    def shared_out(out, stride, channels, hidden, factors, table, slopes, offs, shifts, bounds, eps, size):
        tokens = hidden.shape[0]
        for part in prange((tokens + size - 1) // size):
            low = part * size
            some(
                out, stride, channels, hidden, factors, table, slopes, offs, shifts, bounds, eps, low,
                min(low + size, tokens),
            )  # fmt: skip

    if not _has_safe_threads():
        return functools.partial(_by_own_threads, some)
    together = njit(types.void(*shared, types.int64), parallel=True, **_OPTIONS)(shared_out)
    return functools.partial(_by_numba, some, together)


def _has_safe_threads() -> bool:
    """Numba's plainest threads end the process when two callers meet; OpenMP's and TBB's do not."""
    wanted = numba.config.THREADING_LAYER
    if wanted not in ("default", "safe", "threadsafe", "omp", "tbb"):
        return False
    if wanted == "default" and "workqueue" in numba.config.THREADING_LAYER_PRIORITY[:1]:
        return False
    try:
        from numba.np.ufunc import omppool  # noqa: F401
    except ImportError:
        return wanted == "tbb"
    return True


def _by_numba(some: Callable, together: Callable, *arguments: object) -> None:
    *arguments, tokens, parts = arguments
    if parts < 2:
        some(*arguments, 0, tokens)
        return
    before = numba.get_num_threads()
    numba.set_num_threads(min(parts, numba.config.NUMBA_NUM_THREADS))
    try:
        together(*arguments, -(-tokens // parts))
    finally:
        numba.set_num_threads(before)


def _by_own_threads(some: Callable, *arguments: object) -> None:
    *arguments, tokens, parts = arguments
    size = -(-tokens // parts)
    others = [_pool().submit(some, *arguments, low, min(low + size, tokens)) for low in range(size, tokens, size)]
    some(*arguments, 0, min(size, tokens))
    for other in others:
        other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="autolora-gate")


def ready(dtype: torch.dtype) -> bool:
    """Whether outputs of ``dtype`` can be added to; makes the machine code the first time."""
    return dtype in DTYPES and _gate(dtype) is not None


@functools.cache
def _gate(dtype: torch.dtype) -> Callable:
    log.info("Numba compiles the gate for %s, once a session: some three seconds", dtype)
    if dtype == torch.bfloat16:
        return _build(types.uint16, _read_bfloat, _write_bfloat)
    return _build(types.float32, _read_float, _write_float)


def add_gated(
    out: Tensor, hidden: Tensor, factors: Tensor, coefficients: Tensor, slopes: Tensor, offs: Tensor,
    shifts: list[float], bounds: tuple[tuple[int, int], ...], eps: float,
) -> None:  # fmt: skip
    """``out += w_out·Σ_k y_k·σ(c0 + c1·n0 + (slope_k·y_k − off_k)·(c2 + c3·n0) + shift_k)``, y_k = hidden_k factors_k.

    ``out`` (T, d) in one of ``DTYPES``, on a processor, its rows may have gaps. All else is float32: ``hidden`` (T, R),
    ``factors`` (R, d), ``coefficients`` (5, d), ``slopes`` and ``offs`` (K, T). ``bounds``: a LoRA's rows of
    ``factors``, whole blocks of 16. Raises ``ValueError`` for sizes that do not fit: machine code asks no more.
    """
    (tokens, channels), (rows, loras) = out.shape, (len(factors), len(bounds))
    shapes = [tuple(one.shape) for one in (hidden, factors, coefficients, slopes, offs)]
    fitting = [(tokens, rows), (rows, channels), (5, channels), (loras, tokens), (loras, tokens)]
    whole = all(0 <= a <= b <= rows and (b - a) % BLOCK == 0 for a, b in bounds)
    if shapes != fitting or len(shifts) != loras or not whole or out.stride(1) != 1:
        raise ValueError(f"{shapes} with bounds {bounds} do not fit an output of {tuple(out.shape)}")
    if not tokens or not channels:
        return
    stride = out.stride(0) if tokens > 1 else channels
    flat = out.as_strided(((tokens - 1) * stride + channels,), (1,))
    flat = flat.view(torch.uint16) if out.dtype == torch.bfloat16 else flat
    tensors = (hidden, factors, coefficients, slopes, offs)
    numbers = (np.array(shifts, np.float32), np.array(bounds, np.int64).reshape(-1, 2), np.float32(eps))
    parts = max(1, min(torch.get_num_threads(), tokens // FEWEST))
    arrays = (one.detach().contiguous().numpy() for one in tensors)
    _gate(out.dtype)(flat.detach().numpy(), stride, channels, *arrays, *numbers, tokens, parts)
