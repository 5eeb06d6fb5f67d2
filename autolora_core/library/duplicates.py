"""The same LoRA twice: exact copies by hash, and re-saved, re-scaled or re-factorised ones by their weights.

For low-rank updates ΔW = U D the inner product needs r×r products only, never a dense matrix:
``⟨ΔW_a, ΔW_b⟩ = tr((U_bᵀ U_a)(D_a D_bᵀ))``. Two files are compared over the rows of the modules that both change, so
a LoRA on a fused qkv and one on its three parts are the same LoRA. Files whose sketches differ are never opened.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..encode.canonical import factors, has_linear_part
from ..encode.features import SKETCH_VERSION, ModuleFeatures
from ..encode.sketch import SketchSize
from ..lora.adapters import Update
from .entries import Entry

NEAR_COSINE = 0.98  # two files count as one LoRA above this
# Sketches of unrelated files lie within 0.2 of zero; of a file and its two thirds, at 0.8. Below this, none is opened.
SKETCH_COSINE = 0.6
NEIGHBOURS = 16
_SLICE = re.compile(r"^(?P<base>.*)\[(?P<start>\d+):(?P<stop>\d+)\]$")


@dataclass(frozen=True)
class Pair:
    """Two contents that are nearly one LoRA.

    ``cosine`` of their weights over the ``common`` modules; ``ratio`` is the strength of ``b`` that gives ``a``
    (least squares); ``only_a`` and ``only_b`` count modules that just one of them changes.
    """

    hash_a: str
    hash_b: str
    cosine: float
    ratio: float
    common: int
    only_a: int
    only_b: int


@dataclass(frozen=True)
class Piece:
    """Rows ``start:stop`` of one module's ΔW: ``up @ down``, or ``up`` alone where it is dense (``down`` is None)."""

    start: int
    stop: int
    up: Tensor
    down: Tensor | None


def pieces(updates: Iterable[Update]) -> dict[str, list[Piece]]:
    """Base module → what a file adds to its rows, float64; updates that are not added as a matrix are left out."""
    found: dict[str, list[Piece]] = {}
    for update in updates:
        if not has_linear_part(update):
            continue
        match = _SLICE.match(update.module)
        base, start = (match["base"], int(match["start"])) if match else (update.module, 0)
        if update.dense is not None:
            up, down = update.dense.double().flatten(1), None
        else:
            up, down = factors(update)
        found.setdefault(base, []).append(Piece(start, start + up.shape[0], up, down))
    return found


def _dot(a: Piece, b: Piece) -> float:
    """⟨ΔW_a, ΔW_b⟩ over the rows that both pieces cover."""
    start, stop = max(a.start, b.start), min(a.stop, b.stop)
    width_a, width_b = (p.up.shape[1] if p.down is None else p.down.shape[1] for p in (a, b))
    if start >= stop or width_a != width_b:
        return 0.0
    up_a, up_b = a.up[start - a.start : stop - a.start], b.up[start - b.start : stop - b.start]
    if a.down is not None and b.down is not None:
        return float(((up_a.T @ up_b) * (a.down @ b.down.T)).sum())
    if a.down is None and b.down is None:
        return float((up_a * up_b).sum())
    dense, low, down = (up_a, up_b, b.down) if a.down is None else (up_b, up_a, a.down)
    return float(((low.T @ dense) * down).sum())


def inner(a: list[Piece], b: list[Piece]) -> float:
    """⟨ΔW_a, ΔW_b⟩ of one module's pieces."""
    return sum(_dot(x, y) for x in a for y in b)


def compare(hash_a: str, a: dict[str, list[Piece]], hash_b: str, b: dict[str, list[Piece]]) -> Pair:
    """Cosine and strength ratio of two files over the modules both have; cosine 0 when they share none."""
    common = sorted(a.keys() & b.keys())
    cross = sum(inner(a[name], b[name]) for name in common)
    square_a, square_b = (sum(inner(side[name], side[name]) for name in common) for side in (a, b))
    norm = (square_a * square_b) ** 0.5
    cosine, ratio = (cross / norm, cross / square_b) if norm > 0 else (0.0, 0.0)
    return Pair(hash_a, hash_b, cosine, ratio, len(common), len(a) - len(common), len(b) - len(common))


def candidates(sketches: Mapping[str, ModuleFeatures], size: SketchSize) -> Iterator[tuple[str, str]]:
    """Pairs of one family (of sketch ``size``) whose product sketches have a cosine of at least ``SKETCH_COSINE``.

    Files are compared on one fixed layout (every module of the family), in blocks, so thousands are a few matrix
    products. Each pair comes once, smaller hash first, in sorted order.
    """
    hashes = sorted(sketches)
    grid = _grid([sketches[digest] for digest in hashes], size.slices[0])
    for start in range(0, len(hashes), 256):
        block = grid[start : start + 256] @ grid.T
        for row, scores in enumerate(block, start):
            scores[: row + 1] = -1
            alike = np.flatnonzero(scores >= SKETCH_COSINE)
            for other in sorted(alike[np.argsort(-scores[alike], kind="stable")][:NEIGHBOURS]):
                yield hashes[row], hashes[other]


def _grid(files: list[ModuleFeatures], product: slice, width: int = 512) -> np.ndarray:
    """(n, width) unit rows: every module's product sketch under random signs of its own, summed over modules.

    Products of ΔW alone: their inner products estimate ⟨ΔW_a, ΔW_b⟩, near zero for unrelated files, where the
    projector parts of a sketch are alike in all files. The signs fit any number of modules into a fixed width.
    """
    grid = np.zeros((len(files), width), np.float32)
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, file in enumerate(files):
        groups.setdefault(file.modules, []).append(row)
    signs: dict[str, np.ndarray] = {}
    # Files of one trainer have one module list: they are projected together, a module at a time.
    for modules, members in groups.items():
        for at, name in enumerate(modules):
            values = np.stack([files[row].rows[at, product] for row in members])
            if name not in signs:
                generator = np.random.default_rng(list(name.encode()))
                signs[name] = generator.choice(np.float32([-1, 1]), (values.shape[1], width))
            grid[members] += values @ signs[name]
    return grid / np.maximum(np.linalg.norm(grid, axis=1, keepdims=True), 1e-12)


def exact_copies(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Groups of entries with the same content, largest first, then by name."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.hash:
            groups.setdefault(entry.hash, []).append(entry)
    copies = [sorted(group, key=lambda e: e.name) for group in groups.values() if len(group) > 1]
    return sorted(copies, key=lambda group: (-len(group), group[0].name))


def near_pairs(
    sketches: Mapping[str, ModuleFeatures],
    size: SketchSize,
    load: Callable[[str], Iterable[Update] | None],
    known: Mapping[tuple[str, str], Pair],
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Pair]:
    """Every candidate pair compared by its weights (also those that turn out different: cache them all).

    ``load(hash)`` gives a file's updates, or None when it cannot be read now; ``known`` pairs are not computed again.
    """
    wanted = list(candidates(sketches, size))
    held: dict[str, dict[str, list[Piece]] | None] = {}
    for index, (a, b) in enumerate(wanted):
        tick(index, len(wanted))
        if (a, b) in known:
            yield known[a, b]
            continue
        for digest in (a, b):
            if digest not in held:
                updates = load(digest)
                held[digest] = pieces(updates) if updates is not None else None
        if held[a] is not None and held[b] is not None:
            yield compare(a, held[a], b, held[b])
        # Pairs are sorted by their first file: only that one and its neighbours need staying in memory.
        held = {digest: value for digest, value in held.items() if digest in (a, b) or len(held) <= NEIGHBOURS}


def describe(pair: Pair) -> str:
    """What a user should know about a pair, in a few words."""
    kind = "the same weights" if pair.cosine > 0.99999 else "nearly the same weights"
    scale = "" if abs(pair.ratio - 1) < 0.01 else f", {pair.ratio:.2f} times as strong"
    extra = f", {pair.only_a + pair.only_b} modules in only one of them" if pair.only_a + pair.only_b else ""
    return f"{kind} (cosine {pair.cosine:.4f} over {pair.common} modules{scale}{extra})"


def is_near(pair: Pair) -> bool:
    """Do the two count as one LoRA? Most of the modules must be common, so a shared half is not enough."""
    return pair.cosine >= NEAR_COSINE and pair.common * 2 > pair.common + max(pair.only_a, pair.only_b)


def order(pair: Pair) -> tuple:
    """Sort key: surest first."""
    return (-pair.cosine, pair.hash_a, pair.hash_b)


def fingerprint(family: str, hashes: Iterable[str]) -> str:
    """Changes whenever comparing the files ``hashes`` might find other pairs than it did."""
    said = repr((family, SKETCH_COSINE, NEIGHBOURS, SKETCH_VERSION, sorted(hashes)))
    return hashlib.sha256(said.encode()).hexdigest()
