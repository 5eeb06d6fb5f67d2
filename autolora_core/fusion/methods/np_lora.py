"""NP-LoRA (arXiv 2511.11051): the subject gives way to the style in the directions that the style reads.

    ΔW = ΔW_style + ΔW_subject (I − μ/(1+μ) Q Qᵀ),  Q = orthonormal basis of the rows of A_style

μ = 0 is the plain sum, μ → ∞ removes everything of the subject that lives in the style's row space. The projection acts
on the input side, so a low-rank subject stays one of the same rank. Several styles are protected together, through a
basis of all their rows; several subjects are projected one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ..branches import Branch
from .factors import factors_of, orthonormal_rows


def merge(subjects: Iterable[Branch], styles: Iterable[Branch], mu: float) -> list[Branch]:
    """The branches of one module whose sum is the merged update. μ ≥ 0; ``math.inf`` is the hard projection.

    A style that has no factors of its own (LoKr of high rank, a dense difference) protects its largest directions.
    """
    subjects, styles = list(subjects), list(styles)
    share = 1.0 if math.isinf(mu) else mu / (1 + mu)
    if not styles or not subjects or share == 0:
        return [*subjects, *styles]
    basis = orthonormal_rows(torch.cat([orthonormal_rows(factors_of(style).down) for style in styles]))
    return [*(part for subject in subjects for part in project(subject, basis, share)), *styles]


def project(branch: Branch, basis: Tensor, share: float) -> list[Branch]:
    """Branches whose sum is ΔW (I − ``share`` · basisᵀ basis); ``basis`` (q, n) orthonormal rows, float64.

    A low-rank branch gives one of the same rank. Others stay as they are and get a low-rank correction beside them:
    ΔW minus (share · ΔW basisᵀ) basis.
    """
    if branch.kind == "lowrank":
        down = branch.full_down()
        flat = down.flatten(1)
        flat = flat - share * (flat @ basis.T) @ basis
        return [replace(branch, down=flat.reshape(down.shape).float(), mid=None)]
    whole = branch.delta()
    up = -share * whole.flatten(1) @ basis.T
    down = basis.reshape(basis.shape[0], *whole.shape[1:])
    empty = {"left": None, "right": None, "dense": None, "scale": 1.0}
    return [branch, replace(branch, up=up.float(), down=down.float(), **empty)]
