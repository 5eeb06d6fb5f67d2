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
    """The sketches of n modules: ``up`` (n, out, r) and ``down`` (n, r, in) of one dtype, ``gram_down`` (n, r, r)
    float64: down downᵀ. A module that is zero, not finite or too badly conditioned for the dtype is not sure."""
    gram_up = torch.bmm(up.mT, up).double()
    core = _core(gram_up, gram_down, TRUST[up.dtype])
    out, into = _signs_of(names, ">out", up.shape[1], size), _signs_of(names, ">in", down.shape[2], size)
    out, into = out.to(up.dtype), into.to(up.dtype)
    seen_out = torch.bmm(out[:, : size.product], up).double()
    seen_in = torch.bmm(into[:, : size.product], down.mT).double()
    product = seen_out @ seen_in.mT / (size.product * core.norm[:, None, None])
    grams = [
        _gram(seen[:, : size.gram] @ basis, size) for seen, basis in zip((seen_out, seen_in), core.bases, strict=True)
    ]
    spread = [
        _spread(tall, basis.to(up.dtype), signs[:, size.product :])
        for tall, basis, signs in zip((up, down.mT), core.bases, (out, into), strict=True)
    ]
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
    finite = torch.isfinite(gram_up).all(dim=(1, 2)) & torch.isfinite(gram_down).all(dim=(1, 2))
    usable = finite & (length > 0).all(dim=1)
    eye = torch.eye(gram_up.shape[1], dtype=torch.float64)
    length = torch.where(usable[:, None], length, 1.0)
    pairs = length[:, :, None] * length[:, None]
    # Columns of one length: only genuinely dependent ones come near the tolerance.
    lower, failed = torch.linalg.cholesky_ex(torch.where(usable[:, None, None], gram_up / pairs, eye))
    usable &= (failed == 0) & (lower.diagonal(dim1=1, dim2=2).amin(dim=1).square() > trust)
    lower = torch.where(usable[:, None, None], lower, eye)
    squared = lower.mT @ torch.where(usable[:, None, None], gram_down * pairs, eye) @ lower
    values, vectors = torch.linalg.eigh(squared)
    usable &= values[:, 0] > trust * values[:, -1]
    values = values.clamp_min(torch.finfo(torch.float64).tiny)
    sigma = values.sqrt()
    weighted = vectors * (sigma / sigma.sum(dim=1, keepdim=True)).sqrt()[:, None]
    left = torch.linalg.solve_triangular(lower.mT, weighted, upper=True) / length[:, :, None]
    right = length[:, :, None] * (lower @ (weighted / sigma[:, None]))
    return _Core((left, right), values.sum(dim=1).sqrt(), usable)


def _gram(basis: Tensor, size: SketchSize) -> Tensor:
    """(n, g, r) → (n, g(g+1)/2): the triangles of the projectors' Gram sketches."""
    rows, columns = torch.triu_indices(size.gram, size.gram)
    both = basis @ basis.mT / size.gram
    return both[:, rows, columns] * torch.where(rows == columns, 1.0, 2.0**0.5)


def _spread(factor: Tensor, basis: Tensor, signs: Tensor) -> Tensor:
    """(n, d) float64: the diagonal of the soft projector, hashed with ``signs`` (n, d, rows)."""
    diagonal = torch.linalg.vector_norm(torch.bmm(factor, basis), dim=2).square()
    diagonal -= diagonal.mean(dim=1, keepdim=True)
    return torch.bmm(signs, diagonal[:, :, None])[:, :, 0].double() * factor.shape[1] ** 0.5


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


_cache = _SignCache()


def _signs_of(names: Sequence[str], side: str, rows: int, size: SketchSize) -> Tensor:
    """(n, product + diag, rows) int8."""
    return torch.stack([_cache.of(name + side, rows, size.product + size.diag) for name in names])
