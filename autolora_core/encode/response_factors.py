"""What of a LoRA file its response (:mod:`.response`) is reckoned from: a few rows of every space it changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from .canonical import factors, has_linear_part
from .sketch import leading_factors
from .spaces import CONTEXT, Space, space_of

if TYPE_CHECKING:
    from ..lora.adapters import Update

Part = TypeVar("Part")

# Part of every stored id: raise it when the numbers of `response_factors` change.
RESPONSE_VERSION = 5
# One byte a number: what one file may take. On the demo LoRAs four rows a space find what more of them find, and more
# spaces find more: where not all fit, twice as many of two rows find more than half as many of four. A text input that
# all cross-attention of a UNet shares is worth many rows, and at most a third of the bytes.
MAX_BYTES, ROWS, FEW_ROWS, SHARED_ROWS = 96_000, 4, 2, 48
# Matrices up to this size on the shorter side are decomposed exactly; of larger stacks the leading rows are found. When
# layers read along common directions, two steps with 16 to spare keep 0.99 of what the best 48 rows hold, and answers
# move by less than what eight bits cost; when not, no 48 rows say much.
EXACT_SIDE, POWER_STEPS, SPARE = 512, 2, 16
BLOCK_NUMBERS = 512 << 10  # of such a stack, converted at a time
# Squared singular values below this share of the largest are rounding noise of a float64 Gram matrix.
RANK_TOLERANCE = 1e-14


@dataclass(frozen=True)
class ResponseFactors:
    """``rows[space]`` (r, d) float32: the leading rows ``σ_k v_kᵀ`` of R there, in order of preference."""

    rows: Mapping[str, np.ndarray]


def kept(widths: Mapping[Space, int]) -> dict[Space, int]:
    """Which of a file's spaces, with inputs that wide, it keeps and how many rows of each: at most :data:`MAX_BYTES`.

    All of the demo base's 29 with four rows each; of FLUX two rows of the first fifteen.
    """
    ordered = sorted(widths, key=lambda space: space.order)
    shared = {space: min(SHARED_ROWS, MAX_BYTES // 3 // widths[space]) for space in ordered if space.name == CONTEXT}
    for most in (ROWS, FEW_ROWS):
        chosen, left = {}, MAX_BYTES
        for space in ordered:
            rows = shared.get(space, most)
            if rows * widths[space] <= left:
                chosen[space] = rows
                left -= rows * widths[space]
        if len(chosen) == len(ordered):
            break
    return chosen


def response_factors(updates: Iterable[Update], family: str) -> ResponseFactors | None:
    """What a file (``LoraFile.updates()``) is kept as, or None when no prompt reaches what it changes.

    Exactly invariant, to rounding, to another factorisation of the same ΔW, to its sign and to its scale.
    """
    stacks: dict[Space, list[Tensor]] = {}
    for update in updates:
        space = space_of(family, update.module.partition("[")[0])
        if space is not None and has_linear_part(update):
            rows = input_rows(update)
            if torch.isfinite(rows).all():
                stacks.setdefault(space, []).append(rows)
    alike = {space: _of_one_width(rows, lambda part: part.shape[1]) for space, rows in stacks.items()}
    found = {space: torch.cat(rows) for space, rows in alike.items() if any(part.any() for part in rows)}
    chosen = kept({space: rows.shape[1] for space, rows in found.items()})
    if not chosen:
        return None
    return ResponseFactors(
        {space.name: leading_rows(found[space], most).float().numpy() for space, most in chosen.items()}
    )


@dataclass(frozen=True)
class Layer:
    """One update as a response reads it: rows ``S · down`` with ``SᵀS = gram``. ``down`` (r, in) of any float type,
    ``gram`` (r, r) float64 (None: the identity), ``norm`` its ‖ΔW‖_F."""

    down: Tensor
    gram: Tensor | None
    norm: float

    @classmethod
    def of(cls, update: Update) -> Layer:
        rows = input_rows(update)
        return cls(rows, None, float(torch.linalg.matrix_norm(rows)))


def layer_factors(spaces: Mapping[Space, Sequence[Layer]]) -> ResponseFactors | None:
    """:func:`response_factors` of layers that are finite and not zero, of the spaces that :func:`kept` chooses."""
    spaces = {space: _of_one_width(some, lambda layer: layer.down.shape[1]) for space, some in spaces.items()}
    chosen = kept({space: layers[0].down.shape[1] for space, layers in spaces.items()})
    if not chosen:
        return None
    return ResponseFactors(
        {space.name: _leading(spaces[space], most).float().numpy() for space, most in chosen.items()}
    )


def _of_one_width(parts: Sequence[Part], width: Callable[[Part], int]) -> list[Part]:
    """Those that read as many inputs as most: layers that share an input have one width, unless a file is damaged."""
    usual, _ = Counter(map(width, parts)).most_common(1)[0]
    return [part for part in parts if width(part) == usual]


def _leading(layers: Sequence[Layer], count: int) -> Tensor:
    """:func:`leading_rows` of the stacked layers: through the smaller Gram matrix, or by the same iteration."""
    depth, width = sum(layer.down.shape[0] for layer in layers), layers[0].down.shape[1]
    norm = math.hypot(*(layer.norm for layer in layers))
    if min(depth, width) > EXACT_SIDE:
        squared, vectors = _iterated(layers, min(count + SPARE, depth, width))
    else:
        rows = torch.cat([_root(layer.gram) @ layer.down.double() if layer.gram is not None else layer.down.double()
                          for layer in layers])  # fmt: skip
        squared, vectors = torch.linalg.eigh(rows @ rows.T if depth <= width else rows.T @ rows)
        squared, vectors = squared[-count:].clamp_min(0), vectors.T[-count:]
        vectors = vectors @ rows if depth <= width else squared.sqrt()[:, None] * vectors
    keep = min(count, int((squared > RANK_TOLERANCE * squared[-1]).sum()))
    rows = vectors.flip(0)[:keep] / norm
    # Singular vectors come in either sign: the largest entry is made positive.
    return rows * torch.sign(rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)))


def _root(gram: Tensor) -> Tensor:
    """S with ``SᵀS = gram``."""
    root, failed = torch.linalg.cholesky_ex(gram, upper=True)
    if not failed:
        return root
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp_min(0).sqrt()[:, None] * vectors.T


def _iterated(layers: Sequence[Layer], width: int) -> tuple[Tensor, Tensor]:
    """``(σ² (width,) ascending, σ_k v_kᵀ (width, in))`` in the subspace of :func:`_reduced`, in float32 products."""
    scale = max(layer.norm for layer in layers) ** -2
    blocks = list(_blocks(layers, scale))
    room = torch.empty(max(len(block) * block[0].down.shape[0] for block, _ in blocks), layers[0].down.shape[1])

    def seen(basis: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Block by block the rows, what they see of ``basis``, and that times the block's squared up factors."""
        for block, grams in blocks:
            rank = block[0].down.shape[0]
            rows = room[: len(block) * rank]
            for own, layer in zip(rows.split(rank), block, strict=True):
                own.copy_(layer.down)
            found = rows @ basis
            weighted = found * scale if grams is None else torch.bmm(grams, found.view(len(block), -1, width))
            yield rows, found, weighted.view(-1, width)

    basis = _start(room.shape[1], width).float()
    for step in range(POWER_STEPS):
        stretched = torch.zeros(width, room.shape[1])
        for rows, _, weighted in seen(basis):
            stretched.addmm_(weighted.T, rows)
        stretched = stretched.T.contiguous()
        basis = torch.linalg.qr(stretched.double())[0] if step == POWER_STEPS - 1 else _near_orthonormal(stretched)
    small = torch.zeros(width, width, dtype=torch.float64)
    for _, found, weighted in seen(basis.float()):
        small += found.T @ weighted
    squared, vectors = torch.linalg.eigh((small + small.T) / (2 * scale))
    squared = squared.clamp_min(0)
    return squared, squared.sqrt()[:, None] * (basis @ vectors).T


def _blocks(layers: Sequence[Layer], scale: float) -> Iterator[tuple[list[Layer], Tensor | None]]:
    """Some layers after one another of one rank, and their squared up factors times ``scale`` (n, r, r) float32."""
    for (rank, plain), alike in groupby(layers, key=lambda layer: (layer.down.shape[0], layer.gram is None)):
        alike = list(alike)
        some = max(1, BLOCK_NUMBERS // max(1, rank * alike[0].down.shape[1]))
        for start in range(0, len(alike), some):
            block = alike[start : start + some]
            yield block, None if plain else torch.stack([layer.gram for layer in block]).mul_(scale).float()


def _near_orthonormal(basis: Tensor) -> Tensor:
    """The same span, well conditioned: orthonormal to float32, by a tenth of a QR's work."""
    root, failed = torch.linalg.cholesky_ex((basis.T @ basis).double(), upper=True)
    if failed:
        return torch.linalg.qr(basis.double())[0].float()
    inverse = torch.linalg.solve_triangular(root, torch.eye(root.shape[0], dtype=torch.float64), upper=True)
    return basis @ inverse.float()


def input_rows(update: Update) -> Tensor:
    """(r, in) float64 with ``rowsᵀ rows = ΔWᵀ ΔW``: what ‖ΔW x‖ needs, without the outputs.

    A dense update of more than 32 rows and columns is read through its leading directions.
    """
    up, down = leading_factors(update.dense) if update.dense is not None else factors(update)
    return torch.linalg.qr(up, mode="r").R @ down


def leading_rows(matrix: Tensor, count: int) -> Tensor:
    """The leading ``count`` rows ``σ_k v_kᵀ`` of ``matrix / ‖matrix‖_F``, (≤ count, in) float64, largest first.

    Exact SVD, or for a large stack subspace iteration from fixed signs (Halko, Martinsson and Tropp, arXiv 0909.4061,
    algorithm 4.4): both are functions of ``matrixᵀ matrix`` alone.
    """
    matrix = matrix / torch.linalg.matrix_norm(matrix)
    if min(matrix.shape) > EXACT_SIDE:
        matrix = _reduced(matrix, min(count + SPARE, min(matrix.shape)))
    _, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    keep = min(count, int((sigma > 1e-9 * sigma[0]).sum()))
    rows = sigma[:keep, None] * vt[:keep]
    # Singular vectors come in either sign: the largest entry is made positive.
    return rows * torch.sign(rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)))


def _reduced(matrix: Tensor, width: int) -> Tensor:
    """(width, in): ``matrix`` seen in the subspace of inputs that it stretches most."""
    basis = _start(matrix.shape[1], width)
    for _ in range(POWER_STEPS):
        basis, _ = torch.linalg.qr(matrix.T @ (matrix @ basis))
    return torch.linalg.qr(matrix @ basis, mode="r").R @ basis.T


@lru_cache(8)
def _start(inputs: int, width: int) -> Tensor:
    """(in, width) float64: where every iteration begins; not to be changed."""
    return torch.randn(inputs, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
