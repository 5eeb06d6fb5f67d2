"""The canonical form of one update: what a factorisation does not change.

A LoRA's factors are not unique: A → RA, B → BR⁻¹ gives the same ΔW. Its singular value decomposition is (up to signs
and ties), and it can be had without the dense matrix: thin QR of both factors, then the SVD of the r×r core
(Golub & Van Loan, Matrix Computations, §5.4; used for LoRA weights in W2T, arXiv 2603.15990). Everything in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UnsupportedAdapterError

if TYPE_CHECKING:
    from ..lora.adapters import Update

# Singular values below this share of the largest are rounding noise of float64 products, not directions.
RANK_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Canonical:
    """``ΔW = exp(log_norm) · u · diag(sigma) · vᵀ`` with ``‖sigma‖₂ = 1``; conv kernels are flattened into ``in``.

    ``sigma`` (r,) descending, ``u`` (out, r), ``v`` (in·k, r), all float64; r is the numerical rank. A zero update
    has r = 0 and ``log_norm = -inf``. ``log_norm`` is the natural logarithm of ‖ΔW‖_F.
    """

    module: str
    sigma: Tensor
    u: Tensor
    v: Tensor
    log_norm: float

    @property
    def rank(self) -> int:
        """Number of singular values above rounding noise."""
        return self.sigma.numel()


def has_linear_part(update: Update) -> bool:
    """Whether the update carries factors or a dense matrix (DoRA does: its direction; OFT does not)."""
    return update.dense is not None or (update.up is not None and update.down is not None)


def factors(update: Update) -> tuple[Tensor, Tensor]:
    """The update as two float64 matrices (out, r) and (r, in·k); a Tucker core is multiplied into the second.

    ``ΔW[o, i, k] = Σ_ab up[o, a] · mid[a, b, k] · down[b, i]`` (LoCon, arXiv 2309.14859).
    Raises :class:`UnsupportedAdapterError` when there are no factors.
    """
    if update.up is None or update.down is None:
        raise UnsupportedAdapterError(
            f"a {update.kind} update has no low-rank factors", key=update.module, fix="ask has_linear_part() first"
        )
    up, down = update.up.double().flatten(1), update.down.double()
    if update.mid is not None:
        down = torch.einsum("ab...,bi->ai...", update.mid.double(), down.flatten(1))
    return up, down.flatten(1)


def canonical(update: Update) -> Canonical:
    """The canonical form of ``update``, exact to float64.

    For a non-additive kind that carries factors (DoRA) this is the form of its low-rank part alone. Raises
    :class:`UnsupportedAdapterError` when there is neither a factor pair nor a dense matrix.
    """
    if update.dense is not None:
        u, sigma, vt = torch.linalg.svd(update.dense.double().flatten(1), full_matrices=False)
        return _pack(update.module, u, sigma, vt.T)
    up, down = factors(update)
    left, right = torch.linalg.qr(up), torch.linalg.qr(down.T)
    u, sigma, vt = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    return _pack(update.module, left.Q @ u, sigma, right.Q @ vt.T)


def _pack(module: str, u: Tensor, sigma: Tensor, v: Tensor) -> Canonical:
    norm = torch.linalg.vector_norm(sigma)
    if norm == 0 or not torch.isfinite(norm):
        empty = sigma[:0]
        return Canonical(module, empty, u[:, :0], v[:, :0], float("-inf") if norm == 0 else float("nan"))
    rank = int((sigma > RANK_TOLERANCE * sigma[0]).sum())
    u, v = u[:, :rank], v[:, :rank]
    # Singular vectors come in pairs of either sign: the largest entry of u is made positive.
    sign = torch.sign(u.gather(0, u.abs().argmax(dim=0, keepdim=True)))
    return Canonical(module, sigma[:rank] / norm, u * sign, v * sign, float(norm.log()))


def inner_product(a: Canonical, b: Canonical) -> float:
    """Cosine ⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖ ‖ΔW_b‖) from r×r products, never dense: Σ σ_a σ_b (u_aᵀu_b) ⊙ (v_aᵀv_b)."""
    weights = a.sigma[:, None] * b.sigma[None]
    return float((weights * (a.u.T @ b.u) * (a.v.T @ b.v)).sum())
