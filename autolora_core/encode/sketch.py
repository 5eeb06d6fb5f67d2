"""Fixed-size numbers of one module's update, computed from the factors, never from the dense matrix.

With ΔW scaled to unit Frobenius norm, ΔW = U diag(σ) Vᵀ and the soft projectors P = U diag(σ/Σσ) Uᵀ (output side)
and Q = V diag(σ/Σσ) Vᵀ (input side), each of trace one:

    product    R_outᵀ ΔW R_in / s            s·s numbers; inner products of sketches estimate ⟨ΔW_a, ΔW_b⟩
    gram_out   R_outᵀ P R_out / g            g(g+1)/2; which outputs are written, whatever the inputs were
    gram_in    R_inᵀ Q R_in / g              g(g+1)/2
    diag_out   S_out · diag(P) · √out        d; the projector diagonals, hashed to a fixed size
    diag_in    S_in · diag(Q) · √in          d

σ/Σσ instead of a hard rank cut: the deep singular vectors of trained LoRAs are nearly tied, and a weight that goes to
zero with σ makes these functions of ΔW continuous. R and S hold random signs drawn from SHAKE-128 of the *full* module
name and side (Achlioptas 2003: signs serve as well as Gaussians), so they are the same on every machine for ever.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .canonical import factors

if TYPE_CHECKING:
    from ..lora.adapters import Update

KINDS = ("product", "gram_out", "gram_in", "diag_out", "diag_in")
# Directions of a factor below this share of its largest (squared) are rounding noise of its Gram matrix.
GRAM_TOLERANCE = 1e-13
# A dense update is read through this many random directions; see `_range_of_dense`.
DENSE_RANK = 32


@dataclass(frozen=True)
class SketchSize:
    """``product`` s, ``gram`` g (≤ s) and ``diag`` d of the table above."""

    product: int
    gram: int
    diag: int

    def __post_init__(self):
        if not 1 <= self.gram <= self.product:
            raise ValueError(f"gram size {self.gram} must lie between 1 and the product size {self.product}")

    @property
    def widths(self) -> tuple[int, ...]:
        """How many numbers each of :data:`KINDS` takes."""
        triangle = self.gram * (self.gram + 1) // 2
        return (self.product**2, triangle, triangle, self.diag, self.diag)

    @property
    def width(self) -> int:
        """Numbers a module."""
        return sum(self.widths)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each of :data:`KINDS` lies in a module's row."""
        ends = np.cumsum(self.widths)
        return tuple(slice(int(end) - width, int(end)) for end, width in zip(ends, self.widths, strict=True))


@dataclass(frozen=True)
class Spectrum:
    """ΔW = exp(log_norm) · (left·up_basis) diag(sigma) (right·down_basis)ᵀ without forming the singular vectors.

    ``left`` (out, r), ``right`` (in, r), ``up_basis`` and ``down_basis`` (r, q), ``sigma`` (q,) of unit norm; float64.
    """

    left: Tensor
    right: Tensor
    up_basis: Tensor
    down_basis: Tensor
    sigma: Tensor
    log_norm: float


def spectrum(update: Update) -> Spectrum | None:
    """The spectrum of an update through the r×r Gram matrices of its factors; None for a zero or non-finite one.

    Gram matrices cost a tenth of a QR and square the condition number; the columns are balanced first, so that only
    genuinely dependent columns, not unequal scales, come near the tolerance.
    """
    up, down = leading_factors(update.dense) if update.dense is not None else factors(update)
    length = torch.linalg.vector_norm(up, dim=0)
    if not (torch.isfinite(length).all() and torch.isfinite(down).all()):
        return None
    left, right = up / torch.where(length > 0, length, 1), (down * length[:, None]).T
    left_root, left_inverse = _gram_root(left)
    right_root, right_inverse = _gram_root(right)
    u, sigma, vt = torch.linalg.svd(left_root @ right_root.T, full_matrices=False)
    norm = torch.linalg.vector_norm(sigma)
    if norm == 0:
        return None
    return Spectrum(left, right, left_inverse @ u, right_inverse @ vt.T, sigma / norm, float(norm.log()))


def sketch(update: Update, size: SketchSize) -> tuple[np.ndarray, float] | None:
    """``(row (size.width,) float32, log ‖ΔW‖_F)`` of one update, or None when it is zero or not finite."""
    spec = spectrum(update)
    if spec is None:
        return None
    soft = spec.sigma / spec.sigma.sum()
    sides = [
        (update.module + ">out", spec.left, spec.up_basis),
        (update.module + ">in", spec.right, spec.down_basis),
    ]
    projected, grams, diagonals = [], [], []
    for name, factor, basis in sides:
        signs = _signs(name, factor.shape[0], size.product + size.diag)
        basis_sketch = (signs[:, : size.product].T.double() @ factor) @ basis
        projected.append(basis_sketch)
        grams.append(_triangle((basis_sketch[: size.gram] * soft) @ basis_sketch[: size.gram].T) / size.gram)
        diagonal = (factor @ (basis * soft.sqrt())).square().sum(dim=1)
        spread = signs[:, size.product :].T.double() @ (diagonal - diagonal.mean())
        diagonals.append(spread * factor.shape[0] ** 0.5)
    product = (projected[0] * spec.sigma) @ projected[1].T / size.product
    row = torch.cat([product.flatten(), *grams, *diagonals])
    return row.float().numpy(), spec.log_norm


def _gram_root(factor: Tensor) -> tuple[Tensor, Tensor]:
    """``(S, T)``, both (·, r)-sized, with factor = Q S, Q orthonormal, and Q = factor · T."""
    values, vectors = torch.linalg.eigh(factor.T @ factor)
    keep = values > GRAM_TOLERANCE * values[-1].clamp_min(0)
    root, vectors = values[keep].sqrt(), vectors[:, keep]
    return root[:, None] * vectors.T, vectors / root


def _signs(name: str, rows: int, columns: int) -> Tensor:
    """(rows, columns) float32 of ±1, a function of the name alone; column j does not depend on ``columns``."""
    stride = -(-rows // 8)
    bits = np.frombuffer(hashlib.shake_128(name.encode()).digest(stride * columns), np.uint8)
    bits = np.unpackbits(bits.reshape(columns, stride), axis=1)[:, :rows]
    return torch.from_numpy(bits.astype(np.float32)).mul_(2).sub_(1).T


def _triangle(matrix: Tensor) -> Tensor:
    """Upper triangle of a symmetric matrix with √2 off the diagonal, so that lengths are kept."""
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns] * torch.where(rows == columns, 1.0, 2.0**0.5)


def leading_factors(dense: Tensor) -> tuple[Tensor, Tensor]:
    """A dense update as factors of at most :data:`DENSE_RANK` directions: exact below, the leading ones above.

    Randomised range finder with one power iteration (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4),
    its random matrix fixed.
    """
    matrix = dense.flatten(1).float()
    outputs, inputs = matrix.shape
    if min(outputs, inputs) <= DENSE_RANK:
        # The identity on the shorter side: on the longer one it would be a matrix of thousands of "directions".
        eye = torch.eye(min(outputs, inputs), dtype=torch.float64)
        return (eye, matrix.double()) if outputs < inputs else (matrix.double(), eye)
    probe = _signs("dense", matrix.shape[1], DENSE_RANK)
    basis, _ = torch.linalg.qr(matrix @ probe)
    basis, _ = torch.linalg.qr(matrix @ (matrix.T @ basis))
    return basis.double(), (basis.T @ matrix).double()
