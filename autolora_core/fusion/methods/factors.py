"""A branch as two flat factors ``up @ down``, for the methods that work in the space of the down matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..branches import Branch

# Largest rank that is taken as it is; a dense update is represented by this many of its directions.
MAX_RANK = 128
POWER_STEPS, SEED = 2, 0
# Relative to the largest eigenvalue of a Gram matrix: directions below are rounding.
NEGLIGIBLE = 1e-10


@dataclass(frozen=True)
class Factors:
    """``up`` (out, r) with the branch's scale in it, ``down`` (r, n), n = in·kernel, both float64.

    ``exact``: up @ down is the whole update. Otherwise it is its best part, and the branch itself still has to run.
    """

    up: Tensor
    down: Tensor
    exact: bool


def factors_of(branch: Branch, most: int = MAX_RANK) -> Factors:
    """Factors of any branch; those of rank beyond ``most`` are cut to their largest singular directions."""
    if branch.kind == "lowrank":
        up, down = branch.up.double() * branch.scale, branch.full_down().flatten(1)
        if branch.rank <= most:
            return Factors(up, down, True)
        left, right = torch.linalg.qr(up), torch.linalg.qr(down.T)
        u, s, v = torch.linalg.svd(left.R @ right.R.T)
        return Factors(left.Q @ (u * s)[:, :most], (right.Q @ v.T[:, :most]).T, False)
    if branch.kind == "kron":
        return _kron_factors(branch, most)
    u, s, v = _dense_svd(branch.dense.double().flatten(1), most)
    kept, _ = _largest(s, most)
    return Factors((u * s)[:, kept] * branch.scale, v[:, kept].T, False)


def orthonormal_rows(matrix: Tensor) -> Tensor:
    """(r', n) orthonormal rows that span those of ``matrix`` (r, n), float64; r' is its numerical rank.

    As thin as a QR of the transpose, but without the arbitrary directions QR returns for dependent rows.
    """
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    kept = values > NEGLIGIBLE * values.max().clamp_min(1e-300)
    return (vectors[:, kept] / values[kept].sqrt()).T @ matrix


def _largest(s: Tensor, most: int) -> tuple[Tensor, bool]:
    """(places of the ``most`` largest of singular values ``s`` (r,) that are no rounding, whether these are all)."""
    telling = s > NEGLIGIBLE**0.5 * s.max()
    kept = s.argsort(descending=True)[:most]
    kept = kept[telling[kept]]
    return kept, len(kept) == int(telling.sum())


def _kron_factors(branch: Branch, most: int) -> Factors:
    """Of left ⊗ right, from the SVDs of both: singular triplet (i, j) is a Kronecker product of the i-th and the j-th.

    Which are kept is told by their values; only those are made, ``most`` columns of out and of in·kernel numbers.
    """
    a = torch.linalg.svd(branch.left.double(), full_matrices=False)
    b = torch.linalg.svd(branch.right.double().flatten(1), full_matrices=False)
    s = torch.outer(a.S, b.S).flatten()
    kept, exact = _largest(s, most)
    i, j = kept // len(b.S), kept % len(b.S)
    up = (a.U[:, i].unsqueeze(1) * (b.U[:, j] * s[kept] * branch.scale)).flatten(0, 1)
    down = (a.Vh[i].unsqueeze(2) * b.Vh[j].unsqueeze(1)).flatten(1)
    return Factors(up, down, exact)


def _dense_svd(matrix: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular triplets by subspace iteration from a fixed start; all of them for small matrices."""
    if min(matrix.shape) <= 2 * most:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vh.T
    start = torch.randn(matrix.shape[1], most + 16, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    basis = torch.linalg.qr(matrix @ start.to(matrix.device)).Q
    for _ in range(POWER_STEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, vh.T
