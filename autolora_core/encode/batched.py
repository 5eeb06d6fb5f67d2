"""The sketches of many modules of one rank at once: what a whole-file pass computes, at the speed of reading.

The numbers are those of :mod:`.sketch`, to rounding far below the float16 they are stored in. With the Gram matrices
``Gu = upᵀup = L Lᵀ`` and ``Gd = down downᵀ`` (r×r), ``Lᵀ Gd L = E Λ Eᵀ`` holds the squared singular values, and

    U = up · L⁻ᵀ E        V = downᵀ · L E Λ^{-1/2}

so one small eigendecomposition a module serves both sides. The long products (:mod:`.long_products`) are float32,
everything r×r is float64. A Gram matrix squares the condition number: modules that float32 would blur are done again
in float64, and the few whose Gram matrix is singular one by one by :func:`.sketch.sketch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .long_products import Side
from .sketch import SketchSize

# Squared singular values below this share of the largest are not trusted to float32 products, or to float64 ones.
TRUST = {torch.float32: 1e-5, torch.float64: 1e-11}


@dataclass(frozen=True)
class Sketched:
    """``rows`` (n, width) float32 and ``log_norms`` (n,) float64 of n parts; ``sure`` (n,) bool: those that can be
    used. ``gram`` (n, r, r) float64: upᵀup; ``gram_down`` (m, r, r) float64: down downᵀ of m modules."""

    rows: Tensor
    log_norms: Tensor
    sure: Tensor
    gram: Tensor
    gram_down: Tensor


def sketch_modules(
    names: Sequence[Sequence[str]], ups: Sequence[Sequence[Tensor]], downs: Sequence[Tensor], size: SketchSize,
    dtype: torch.dtype = torch.float32,
) -> Sketched:  # fmt: skip
    """The sketches of the parts of m modules of one rank, module by module: ``names[i][j]`` is ``ups[i][j]`` (rows, r)
    times ``downs[i]`` (r, in).

    A part that is zero, not finite or too badly conditioned for ``dtype`` is not sure.
    """
    flat = [name for some in names for name in some]
    outs = Side([up for some in ups for up in some], [[name + ">out"] for name in flat], True, size, dtype)
    ins = Side(downs, [[name + ">in" for name in some] for some in names], False, size, dtype)
    (gram, seen_out), (gram_down, seen_in) = outs.first(), ins.first()
    module = torch.tensor([i for i, some in enumerate(names) for _ in some])
    core = _core(gram, gram_down[module] if len(flat) > len(names) else gram_down, TRUST[dtype])
    product = seen_out @ seen_in.mT / (size.product * core.norm[:, None, None])
    both = zip((seen_out, seen_in), core.bases, strict=True)
    grams = [_gram(seen[:, : size.gram] @ basis, size) for seen, basis in both]
    spread = [side.second(basis) for side, basis in zip((outs, ins), core.bases, strict=True)]
    rows = torch.cat([product.flatten(1), *grams, *spread], dim=1)
    return Sketched(rows.float(), core.norm.log(), core.sure & torch.isfinite(rows).all(dim=1), gram, gram_down)


@dataclass(frozen=True)
class _Core:
    """``bases``: (n, r, r) each; ``up @ bases[0]`` is U and ``down.T @ bases[1]`` V, columns times √(σ/Σσ). ``norm``
    (n,) is ‖ΔW‖_F."""

    bases: tuple[Tensor, Tensor]
    norm: Tensor
    sure: Tensor


def _core(gram_up: Tensor, gram_down: Tensor, trust: float) -> _Core:
    squares = gram_up.diagonal(dim1=1, dim2=2)
    # No number of a Gram matrix is larger than those of its diagonal.
    usable = torch.isfinite(squares.sum(dim=1) + gram_down.diagonal(dim1=1, dim2=2).sum(dim=1))
    usable &= (squares > 0).all(dim=1)
    if not usable.all():  # in their place something harmless
        eye = torch.eye(gram_up.shape[1], dtype=torch.float64)
        gram_up, gram_down = (torch.where(usable[:, None, None], gram, eye) for gram in (gram_up, gram_down))
        squares = gram_up.diagonal(dim1=1, dim2=2)
    root, failed = torch.linalg.cholesky_ex(gram_up)
    # What is left of a column when those before it are taken off, as a share of it: only genuinely dependent columns,
    # not unequal scales, come near the tolerance.
    usable &= (failed == 0) & ((root.diagonal(dim1=1, dim2=2).square() / squares).amin(dim=1) > trust)
    if failed.any():
        root = torch.where((failed == 0)[:, None, None], root, torch.eye(root.shape[1], dtype=torch.float64))
    values, vectors = torch.linalg.eigh(root.mT @ (gram_down @ root))
    usable &= values[:, 0] > trust * values[:, -1]
    values = values.clamp_min(torch.finfo(torch.float64).tiny)
    sigma = values.sqrt()
    weight = (sigma / sigma.sum(dim=1, keepdim=True)).sqrt()
    left = torch.linalg.solve_triangular(root.mT, vectors * weight[:, None], upper=True)
    right = (root @ vectors).mul_((weight / sigma)[:, None])
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
