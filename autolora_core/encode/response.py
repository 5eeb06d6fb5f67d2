"""What a LoRA does to a prompt's own text states: a score that needs no training, no caption and no creator.

Where a module reads text, its update ΔW can be applied to a text's real input states x of the base model, and how hard
it answers says whether the LoRA was trained on such words: the cross-attention form of this is SEQR (arXiv 2509.18093).
With x̃ = x − mean over the generic prompts' tokens,

    response(text) = mean over spaces of  log( Σ_t ‖R x̃_t‖² / Σ_t ‖x̃_t‖² ),    R = ΔW / ‖ΔW‖_F,

t running over the text's tokens; a space is an input that several modules share, their updates stacked
(:mod:`.text_fed`). Strong LoRAs and loud prompts cancel out; what a LoRA answers to everything is taken off by its
z-score over the generic prompts. ``‖R x‖`` needs only ``σ_k v_kᵀ``, so a file is kept as its first few of these rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .canonical import factors, has_linear_part
from .sketch import leading_factors
from .text_fed import Space, space_of

if TYPE_CHECKING:
    from ..lora.adapters import Update

# Part of every stored id: raise it when the numbers of `response_factors` change.
RESPONSE_VERSION = 1
# One byte a number: what one file may take. On the demo LoRAs three rows a space find what all of them find, and the
# first two blocks more than all four.
MAX_BYTES, MAX_SPACES, MAX_ROWS, MIN_ROWS = 40_000, 4, 48, 3
# Matrices up to this size on the shorter side are decomposed exactly; of larger stacks the leading rows are found.
EXACT_SIDE, POWER_STEPS = 512, 6
# Numbers of one intermediate product while scoring: 64 MB of float32.
BLOCK_NUMBERS = 1 << 24
ENERGY_FLOOR = 1e-12


@dataclass(frozen=True)
class ResponseFactors:
    """``rows`` (s, r, d) float32: of each of ``spaces`` the leading rows ``σ_k v_kᵀ`` of R, zero beyond its rank."""

    spaces: tuple[str, ...]
    rows: np.ndarray


def kept(width: int, spaces: int = MAX_SPACES) -> tuple[int, int]:
    """``(spaces, rows a space)`` that a file with inputs of ``width`` keeps: at most :data:`MAX_BYTES` bytes.

    Of the 48 rows that all spaces share some are given up first, then spaces: FLUX keeps four spaces of three rows,
    the demo base four of twelve, an SD1.5 file one of 48.
    """
    spaces = max(1, min(spaces, MAX_SPACES, MAX_BYTES // (MIN_ROWS * width)))
    return spaces, max(1, min(MAX_ROWS, MAX_BYTES // width) // spaces)


def response_factors(updates: Iterable[Update], family: str) -> ResponseFactors | None:
    """The text-fed part of a file (``LoraFile.updates()``), or None when it has none that is not zero.

    Exactly invariant, to rounding, to another factorisation of the same ΔW, to its sign and to its scale.
    """
    stacks: dict[Space, list[Tensor]] = {}
    for update in updates:
        space = space_of(family, update.module.partition("[")[0])
        if space is not None and has_linear_part(update):
            rows = input_rows(update)
            if torch.isfinite(rows).all():
                stacks.setdefault(space, []).append(rows)
    found = _by_width({space: torch.cat(rows) for space, rows in stacks.items() if any(part.any() for part in rows)})
    if not found:
        return None
    width = next(iter(found.values())).shape[1]
    count, most = kept(width, len(found))
    chosen = sorted(found, key=lambda space: space.order)[:count]
    packed = np.zeros((len(chosen), most, width), np.float32)
    for place, space in enumerate(chosen):
        leading = leading_rows(found[space], most)
        packed[place, : len(leading)] = leading.numpy()
    return ResponseFactors(tuple(space.name for space in chosen), packed)


def _by_width(found: dict[Space, Tensor]) -> dict[Space, Tensor]:
    """The spaces of the width that comes first in order: one array a file. (Krea 2's fusion is narrower.)"""
    first = min(found, key=lambda space: space.order, default=None)
    return {space: rows for space, rows in found.items() if rows.shape[1] == found[first].shape[1]}


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
        matrix = _reduced(matrix, min(2 * count + 8, min(matrix.shape)))
    _, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    keep = min(count, int((sigma > 1e-9 * sigma[0]).sum()))
    rows = sigma[:keep, None] * vt[:keep]
    # Singular vectors come in either sign: the largest entry is made positive.
    return rows * torch.sign(rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)))


def _reduced(matrix: Tensor, width: int) -> Tensor:
    """(width, in): ``matrix`` seen in the subspace of inputs that it stretches most."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(matrix.shape[1], width, generator=generator, dtype=torch.float64)
    for _ in range(POWER_STEPS):
        basis, _ = torch.linalg.qr(matrix.T @ (matrix @ basis))
    return torch.linalg.qr(matrix @ basis, mode="r").R @ basis.T


@dataclass(frozen=True)
class TextStates:
    """Inputs of text-fed modules for several texts: ``tokens[space]`` (T, d), the texts' tokens one after another.

    ``counts`` (n,) is how many tokens each text has; the same in every space.
    """

    counts: np.ndarray
    tokens: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.counts)

    def mean(self) -> dict[str, np.ndarray]:
        """Space → (d,) float32, the mean over all tokens of all texts."""
        return {name: rows.astype(np.float32).mean(axis=0) for name, rows in self.tokens.items()}

    def part(self, which: Sequence[int]) -> TextStates:
        """The texts ``which``, in that order."""
        starts = np.concatenate([[0], np.cumsum(self.counts)])
        at = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in which]) if len(which) else np.zeros(0, int)
        return TextStates(self.counts[list(which)], {name: rows[at] for name, rows in self.tokens.items()})

    @classmethod
    def join(cls, parts: Sequence[TextStates]) -> TextStates:
        """Several sets of texts after one another; all must have the same spaces."""
        tokens = {name: np.concatenate([part.tokens[name] for part in parts]) for name in parts[0].tokens}
        return cls(np.concatenate([part.counts for part in parts]), tokens)


@dataclass(frozen=True)
class FactorTable:
    """Factors of many files: ``rows`` (n, s, r, d) int8 times ``scale`` (n, s, r) float32.

    ``place`` (n, s) int16 is the index into ``spaces`` of each of a file's spaces, −1 where it has fewer.
    """

    hashes: tuple[str, ...]
    spaces: tuple[str, ...]
    place: np.ndarray
    rows: np.ndarray
    scale: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, files: Mapping[str, ResponseFactors]) -> FactorTable:
        """A table of unpacked factors, all of one width (tests, benchmarks)."""
        return cls.packed({digest: (found.spaces, *quantised(found.rows)) for digest, found in files.items()})

    @classmethod
    def packed(cls, files: Mapping[str, tuple[tuple[str, ...], np.ndarray, np.ndarray]]) -> FactorTable:
        """A table of ``hash → (spaces, rows (s, r, d) int8, scale (s, r))``, all of one width."""
        names = tuple(sorted({name for spaces, _, _ in files.values() for name in spaces}))
        index = {name: i for i, name in enumerate(names)}
        shapes = [rows.shape for _, rows, _ in files.values()]
        most, deep = max((s[0] for s in shapes), default=0), max((s[1] for s in shapes), default=0)
        rows = np.zeros((len(files), most, deep, shapes[0][2] if shapes else 0), np.int8)
        scale, place = np.zeros(rows.shape[:3], np.float32), np.full(rows.shape[:2], -1, np.int16)
        for i, (spaces, own, factor) in enumerate(files.values()):
            count, depth = own.shape[:2]
            rows[i, :count, :depth], scale[i, :count, :depth] = own, factor
            place[i, :count] = [index[name] for name in spaces]
        return cls(tuple(files), names, place, rows, scale)


def quantised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(…, d) float → int8 rows and their scale (…), a 127th of each row's largest entry. The error is about 1 %."""
    scale = (np.abs(rows).max(axis=-1) / 127).astype(np.float32)
    return np.rint(rows / np.where(scale > 0, scale, 1)[..., None]).astype(np.int8), scale


def response(table: FactorTable, states: TextStates, mean: Mapping[str, np.ndarray]) -> np.ndarray:
    """Responses (n files, texts) float32; NaN for a file none of whose spaces is in ``states``.

    ``mean``: space → (d,), see :meth:`TextStates.mean` of the generic prompts. Memory is bounded whatever the sizes.
    """
    total, count = np.zeros((len(table), len(states)), np.float32), np.zeros(len(table), np.int32)
    owner = torch.from_numpy(np.repeat(np.arange(len(states)), states.counts))
    for number, name in enumerate(table.spaces):
        if name not in states.tokens or not len(states) or states.tokens[name].shape[1] != table.rows.shape[3]:
            continue
        centred = torch.from_numpy(states.tokens[name].astype(np.float32) - mean[name])
        loudness = _sums(centred.square().sum(dim=1)[None], owner, len(states))[0]
        files, slots = np.nonzero(table.place == number)
        for part in _blocks(len(files), table.rows.shape[2] * len(owner)):
            energy = _energy(table, files[part], slots[part], centred)
            share = _sums(energy, owner, len(states)) / loudness.clamp_min(ENERGY_FLOOR)
            total[files[part]] += share.clamp_min(ENERGY_FLOOR).log().numpy()
            count[files[part]] += 1
    return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], np.nan).astype(np.float32)


def _energy(table: FactorTable, files: np.ndarray, slots: np.ndarray, centred: Tensor) -> Tensor:
    """``‖R x̃‖²`` of every token, (files, T)."""
    scale = torch.from_numpy(table.scale[files, slots])
    rows = torch.from_numpy(table.rows[files, slots]).float().mul_(scale[..., None])
    answers = rows.flatten(0, 1) @ centred.T
    return answers.square_().view(*rows.shape[:2], -1).sum(dim=1)


def _sums(values: Tensor, owner: Tensor, texts: int) -> Tensor:
    """(k, T) → (k, texts), summed over each text's tokens."""
    return torch.zeros(len(values), texts).index_add_(1, owner, values)


def _blocks(files: int, numbers: int) -> Iterator[slice]:
    step = max(1, BLOCK_NUMBERS // max(numbers, 1))
    return (slice(start, start + step) for start in range(0, files, step))
