"""The sketches of many modules of one shape at once: what a whole-file pass computes, at the speed of reading.

The numbers are those of :mod:`.sketch`, to rounding far below the float16 they are stored in. With the Gram matrices
``Gu = upᵀup = L Lᵀ`` and ``Gd = down downᵀ`` (r×r), ``Lᵀ Gd L = E Λ Eᵀ`` holds the squared singular values, and

    U = up · L⁻ᵀ E        V = downᵀ · L E Λ^{-1/2}

so one small eigendecomposition a module serves both sides. The long products are float32, everything r×r is float64.
A Gram matrix squares the condition number: modules that float32 would blur are done again in float64, and the few
whose Gram matrix is singular one by one by :func:`.sketch.sketch`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .sketch import SketchSize, _signs

# Squared singular values below this share of the largest are not trusted to float32 products, or to float64 ones.
TRUST = {torch.float32: 1e-5, torch.float64: 1e-11}
MAX_SIGN_BYTES = 160 << 20  # twice what FLUX's modules take


@dataclass(frozen=True)
class Stacked:
    """``rows`` (n, width) float32 and ``log_norms`` (n,) float64 of n modules; ``sure`` (n,) bool: those that can be
    used. ``gram`` (n, r, r) float64: upᵀup."""

    rows: Tensor
    log_norms: Tensor
    sure: Tensor
    gram: Tensor


def sketch_stack(names: Sequence[str], up: Tensor, down: Tensor, size: SketchSize, gram_down: Tensor) -> Stacked:
    """The sketches of n modules: ``up`` (n, out, r) and ``down`` (m, r, in) of one dtype, ``gram_down`` (m, r, r)
    float64: down downᵀ. Where n is p·m, p modules after one another share a down factor (a fused layer's q, k and v).

    A module that is zero, not finite or too badly conditioned for the dtype is not sure.
    """
    count, shared = len(names), len(names) // len(down)
    gram_up = torch.bmm(up.mT, up).double()
    core = _core(gram_up, gram_down.repeat_interleave(shared, 0), TRUST[up.dtype])
    out, into = _signs_of(names, ">out", up.shape[1], size), _signs_of(names, ">in", down.shape[2], size)
    out, into = out.to(up.dtype), into.to(up.dtype)
    seen_out = torch.bmm(out[:, : size.product], up).double()
    wide = into[:, : size.product].reshape(len(down), shared * size.product, -1)
    seen_in = torch.bmm(wide, down.mT).double().view(count, size.product, -1)
    product = seen_out @ seen_in.mT / (size.product * core.norm[:, None, None])
    both = zip((seen_out, seen_in), core.bases, strict=True)
    grams = [_gram(seen[:, : size.gram] @ basis, size) for seen, basis in both]
    left, right = (basis.to(up.dtype) for basis in core.bases)
    diagonals = [_squares(torch.bmm(up, left), 1), _squares(torch.bmm(down.mT, _side_by_side(right, shared)), shared)]
    spread = [_spread(of, signs[:, size.product :]) for of, signs in zip(diagonals, (out, into), strict=True)]
    rows = torch.cat([product.flatten(1), *grams, *spread], dim=1)
    sure = core.sure & torch.isfinite(rows).all(dim=1)
    return Stacked(rows.float(), core.norm.log(), sure, gram_up)


@dataclass(frozen=True)
class _Core:
    """``bases``: (n, r, r) each; ``up @ bases[0]`` is U and ``down.T @ bases[1]`` V, columns times √(σ/Σσ). ``norm``
    (n,) is ‖ΔW‖_F."""

    bases: tuple[Tensor, Tensor]
    norm: Tensor
    sure: Tensor


def _core(gram_up: Tensor, gram_down: Tensor, trust: float) -> _Core:
    length = gram_up.diagonal(dim1=1, dim2=2).sqrt()
    usable = torch.isfinite(gram_up).all(dim=(1, 2)) & torch.isfinite(gram_down).all(dim=(1, 2))
    usable &= (length > 0).all(dim=1)
    if not usable.all():  # in their place something harmless
        eye = torch.eye(gram_up.shape[1], dtype=torch.float64)
        gram_up, gram_down = (torch.where(usable[:, None, None], gram, eye) for gram in (gram_up, gram_down))
        length = torch.where(usable[:, None], length, 1.0)
    pairs = length[:, :, None] * length[:, None]
    # Columns of one length: only genuinely dependent ones come near the tolerance.
    lower, failed = torch.linalg.cholesky_ex(gram_up / pairs)
    usable &= (failed == 0) & (lower.diagonal(dim1=1, dim2=2).amin(dim=1).square() > trust)
    if failed.any():
        lower = torch.where((failed == 0)[:, None, None], lower, torch.eye(lower.shape[1], dtype=torch.float64))
    values, vectors = torch.linalg.eigh(lower.mT @ (gram_down * pairs) @ lower)
    usable &= values[:, 0] > trust * values[:, -1]
    values = values.clamp_min(torch.finfo(torch.float64).tiny)
    sigma = values.sqrt()
    weighted = vectors * (sigma / sigma.sum(dim=1, keepdim=True)).sqrt()[:, None]
    left = torch.linalg.solve_triangular(lower.mT, weighted, upper=True) / length[:, :, None]
    right = length[:, :, None] * (lower @ (weighted / sigma[:, None]))
    return _Core((left, right), values.sum(dim=1).sqrt(), usable)


@cache
def _triangle(side: int) -> tuple[Tensor, Tensor]:
    """Places in a flat (side, side) matrix of its upper triangle, and √2 off the diagonal."""
    rows, columns = torch.triu_indices(side, side)
    return rows * side + columns, torch.where(rows == columns, 1.0, 2.0**0.5).double()


def _gram(basis: Tensor, size: SketchSize) -> Tensor:
    """(n, g, r) → (n, g(g+1)/2): the triangles of the projectors' Gram sketches."""
    places, weights = _triangle(size.gram)
    return (basis @ basis.mT).flatten(1)[:, places] * (weights / size.gram)


def _side_by_side(bases: Tensor, shared: int) -> Tensor:
    """(n, r, r) → (n / shared, r, shared·r)."""
    return bases.view(-1, shared, *bases.shape[1:]).transpose(1, 2).flatten(2) if shared > 1 else bases


def _squares(projected: Tensor, shared: int) -> Tensor:
    """(m, rows, shared·r) → (m·shared, rows): squared lengths of its rows, part by part."""
    if shared == 1:
        return torch.linalg.vector_norm(projected, dim=2).square_()
    lengths = torch.linalg.vector_norm(projected.unflatten(2, (shared, -1)), dim=3).square_()
    return lengths.transpose(1, 2).flatten(0, 1)


def _spread(diagonal: Tensor, signs: Tensor) -> Tensor:
    """(n, d) float64: the diagonal (n, rows) of the soft projector, hashed with ``signs`` (n, d, rows)."""
    centred = diagonal - diagonal.mean(dim=1, keepdim=True)
    return torch.bmm(signs, centred[:, :, None])[:, :, 0].double() * diagonal.shape[1] ** 0.5


class _SignCache:
    """The random signs of modules by name, one byte each: every file of a family asks for the same ones."""

    def __init__(self, most: int = MAX_SIGN_BYTES):
        self._most, self._bytes = most, 0
        self._kept: OrderedDict[tuple[str, int, int], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, name: str, rows: int, columns: int) -> Tensor:
        """(columns, rows) int8."""
        key = (name, rows, columns)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = _signs(name, rows, columns).T.to(torch.int8).contiguous()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += made.numel()
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].numel()
        return made

    def clear(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0


_cache = _SignCache()


def forget_signs() -> None:
    """Give back the memory that :func:`sketch_stack` holds for the next file, at the end of many files."""
    _cache.clear()


def _signs_of(names: Sequence[str], side: str, rows: int, size: SketchSize) -> Tensor:
    """(n, product + diag, rows) int8."""
    return torch.stack([_cache.of(name + side, rows, size.product + size.diag) for name in names])
