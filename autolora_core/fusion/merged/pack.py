"""The update of one parameter as tensors of a LoRA file that stock ComfyUI reads.

low rank   lora_up, lora_down, alpha = rank    branches laid side by side; alpha/rank is 1
kron       lokr_w1, lokr_w2                    one LoKr alone
dense      diff                                what is left, or when the factors would be larger than that
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import LoraError
from ..branches import Branch

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# ‖Σ‖² relative to the squared sum of norms: what is left of LoRAs that cancel each other is rounding.
NEGLIGIBLE = 1e-14


@dataclass(frozen=True)
class Piece:
    """``tensors``: suffix → what is stored; ``rank`` of a low-rank update, None of the others.

    ``size``: ‖exact update‖²; ``wrong``: ‖stored − exact update‖².
    """

    tensors: dict[str, Tensor]
    rank: int | None
    size: float
    wrong: float

    @property
    def dense(self) -> bool:
        return "diff" in self.tensors


def pack(
    name: str, branches: Sequence[Branch], shape: tuple[int, ...], dtype: torch.dtype, extra: Tensor | None = None
) -> Piece | None:
    """``branches`` plus ``extra`` (``shape``) as one update of the parameter ``name`` of ``shape`` (out, in, *k).

    None for an update that is exactly zero. Raises ``LoraError`` for numbers that ``dtype`` cannot hold.
    """
    piece = _pack(branches, shape, dtype, extra)
    if not all(bool(torch.isfinite(value).all()) for value in piece.tensors.values()):
        raise LoraError(
            f"the update of {name} has numbers that {str(dtype).removeprefix('torch.')} cannot hold",
            key=name,
            fix="choose dtype bfloat16 or float32",
        )
    return piece if piece.size else None


def _pack(branches: Sequence[Branch], shape: tuple[int, ...], dtype: torch.dtype, extra: Tensor | None) -> Piece:
    if extra is None and all(branch.kind == "lowrank" for branch in branches):
        shared, columns = _by_down(branches), math.prod(shape[1:])
        rank = sum(own[0].rank for own in shared)
        if rank * (shape[0] + columns) < shape[0] * columns:
            return _low_rank(shared, shape, dtype)
    if extra is None and len(branches) == 1 and _is_lokr(branches[0], shape):
        return _lokr(branches[0], dtype)
    return _dense(branches, shape, dtype, extra)


def _by_down(branches: Sequence[Branch]) -> list[list[Branch]]:
    """Branches that share their down factor, as those do that a gate has cut to slices: together of one rank."""
    shared: dict[tuple[int, int], list[Branch]] = {}
    for branch in branches:
        shared.setdefault((id(branch.down), id(branch.mid)), []).append(branch)
    return list(shared.values())


def _low_rank(shared: Sequence[Sequence[Branch]], shape: tuple[int, ...], dtype: torch.dtype) -> Piece:
    """Branches of a slice are zero on the other rows."""
    ups = []
    for own in shared:
        up = torch.zeros(shape[0], own[0].rank, dtype=torch.float64)
        for branch in own:
            start, stop = branch.span(shape[0])
            up[start:stop] += branch.up.double() * branch.scale
        ups.append(up)
    downs = [own[0].full_down().flatten(1) for own in shared]
    up, down, size, wrong = _rounded(torch.cat(ups, dim=1), torch.cat(downs), dtype)
    rank = up.shape[1]
    tensors = {
        "lora_up.weight": up.reshape(*up.shape, *[1] * (len(shape) - 2)),
        "lora_down.weight": down.reshape(rank, *shape[1:]),
        "alpha": torch.tensor(float(rank)),
    }
    return Piece(tensors, rank, size, wrong)


def _is_lokr(branch: Branch, shape: tuple[int, ...]) -> bool:
    """ComfyUI multiplies matrices and two-dimensional kernels out; for other kernels it would mix up the axes."""
    return branch.kind == "kron" and branch.width == shape[0] and len(branch.kernel) in (0, 2)


def _lokr(branch: Branch, dtype: torch.dtype) -> Piece:
    """Flattened, left ⊗ right is an outer product: balanced and measured like one of rank one."""
    left, right = branch.left.double() * branch.scale, branch.right.double()
    one, two, size, wrong = _rounded(left.reshape(-1, 1), right.reshape(1, -1), dtype)
    if not size:
        return Piece({}, None, 0.0, 0.0)
    return Piece({"lokr_w1": one.reshape(left.shape), "lokr_w2": two.reshape(right.shape)}, None, size, wrong)


def _dense(branches: Sequence[Branch], shape: tuple[int, ...], dtype: torch.dtype, extra: Tensor | None) -> Piece:
    exact = torch.zeros(shape, dtype=torch.float64)
    if extra is not None:
        exact += extra.reshape(shape)
    for branch in branches:
        start, stop = branch.span(shape[0])
        exact[start:stop] += branch.delta().reshape(stop - start, *shape[1:])
    stored = exact.to(dtype)
    return Piece({"diff": stored}, None, _squared(exact), _squared(exact.sub_(stored)))


def _rounded(up: Tensor, down: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, float, float]:
    """``up`` (out, r) and ``down`` (r, n), float64, in ``dtype``; ‖up down‖² and that of what rounding changed in it.

    Every column and its row get norms as alike as a power of two makes them: neither overflows nor vanishes while the
    other has room, and numbers that need no rounding stay as they are. Products that are zero are left out.
    """
    tall, wide = up.norm(dim=0), down.norm(dim=1)
    kept = (tall > 0) & (wide > 0)
    up, down, tall, wide = up[:, kept], down[kept], tall[kept], wide[kept]
    power = torch.exp2(torch.round(torch.log2(wide / tall) / 2))
    up, down = up * power, down / power[:, None]
    new_up, new_down = up.to(dtype).contiguous(), down.to(dtype).contiguous()
    # up·down − new_up·new_down without the difference of two nearly equal products.
    off_up = torch.cat([up - new_up.double(), new_up.double()], dim=1)
    off_down = torch.cat([down, down - new_down.double()])
    size, most = _product_squared(up, down), float((tall * wide).sum()) ** 2
    return new_up, new_down, size if size > NEGLIGIBLE * most else 0.0, _product_squared(off_up, off_down)


def _product_squared(up: Tensor, down: Tensor) -> float:
    """‖up down‖² by Gram matrices: the product itself may be as large as the layer."""
    return max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0)


def _squared(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix)) ** 2
