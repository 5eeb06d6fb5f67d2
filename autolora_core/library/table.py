"""Exact search through many rows without reading all of every row; measured against FAISS's indices in docs/scale.md.

A score is ``scale_i ⟨row_i, q⟩ + shift_i``. Rows are turned onto their own principal axes and the first of these kept
in eight bits, a twelfth of the bytes; what is cut off and what rounding did is bounded (Cauchy and Schwarz), so a scan
gives *upper bounds* of all scores. Only rows whose bound reaches a level are read and scored in float64: what is found
is what a search through all rows finds, whatever the processor.
"""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import torch

log = logging.getLogger(__name__)
# Axes kept in eight bits: the fewer that hold so much of the rows' square, else the more (nine tenths of MiniLM's
# texts). The rest of a row is one number, its length, which takes four more places because it may be longer than the
# largest coordinate. Rows longer than MOST_TURNED are hashed or sketched: no axis of theirs holds more than another, so
# all are kept as they are.
FRONTS, ENOUGH, LENGTH, MOST_TURNED = (60, 124), 0.85, 4, 512
BLOCK, SAMPLE, CHUNK = 16384, 20_000, 64
# So few rows are scored outright.
FEW = 4096
ROUNDING = 1e-5  # of float32 products of rows of length one


@cache
def _eight_bits() -> bool:
    """Whether this processor multiplies eight-bit numbers quickly; otherwise the same numbers are kept as float32."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        one = torch.ones(8, 8, dtype=torch.int8)
        return bool((torch._int_mm(one, one.T) == 8).all())
    except (AttributeError, RuntimeError) as error:
        log.info("eight-bit products are not to be had (%s)", error)
        return False


class Table:
    """``rows`` (n, d) float32, ``scale`` (n,) above zero and ``shift`` (n,), float64: one and zero by default."""

    def __init__(self, rows: np.ndarray, scale: np.ndarray | None = None, shift: np.ndarray | None = None):
        self.rows = rows
        self.scale = np.ones(len(rows)) if scale is None else np.asarray(scale, np.float64)
        self.shift = np.zeros(len(rows)) if shift is None else np.asarray(shift, np.float64)
        self._codes: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def scores(self, at: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """(q, len(at)) float64: the scores of the rows ``at`` for ``queries`` (q, d)."""
        found = queries.astype(np.float64) @ self.rows[at].astype(np.float64).T
        return found * self.scale[at] + self.shift[at]

    def bounds(self, queries: np.ndarray) -> np.ndarray:
        """(q, n) float32: no score is above these."""
        if self._codes is None:
            self._encode()
        turned = self._turned(queries.astype(np.float32))
        front = turned[:, : self._kept]
        rest = np.linalg.norm(turned[:, self._kept :], axis=1) + ROUNDING
        step = np.maximum(np.abs(front).max(axis=1, initial=0) / 127, rest / 126) + 1e-12
        codes = np.rint(front / step[:, None])
        wrong = np.linalg.norm(front - codes * step[:, None], axis=1) + ROUNDING
        length = np.repeat(np.ceil(rest / step)[:, None], LENGTH, axis=1)
        products = self._products(np.concatenate([codes, length], axis=1))
        longest = np.linalg.norm(queries, axis=1).max(initial=0)
        loss = self._loss * float(longest) + self._own * float(wrong.max(initial=0))
        spare = torch.from_numpy((self.shift + self.scale * loss).astype(np.float32)).nextafter(torch.tensor(torch.inf))
        out = torch.empty(len(queries), len(self.rows))
        for row, product, unit in zip(out, products, step, strict=True):
            torch.addcmul(spare, product.to(torch.float32), self._step, value=float(unit), out=row)
        return out.numpy()

    def best(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` rows with the largest scores for ``query`` (d,), best first, ties by row, and the scores."""
        at = np.arange(len(self.rows))
        if len(at) > FEW and count < len(at) // CHUNK:
            bounds = self.bounds(query[None])[0]
            begin = self.scores(self.likely(bounds, count), query[None])[0]
            at = self.at_least(bounds, query, np.partition(begin, len(begin) - count)[len(begin) - count])
        scores = self.scores(at, query[None])[0]
        first = np.lexsort((at, -scores))[:count]
        return at[first], scores[first]

    def at_least(self, bounds: np.ndarray, query: np.ndarray, level: float) -> np.ndarray:
        """The rows, ascending, that score at least ``level`` for one ``query`` (d,); ``bounds`` (n,) are its own."""
        at = np.flatnonzero(bounds >= level - ROUNDING)
        if len(at) > len(self.rows) // 8:  # reading in order is quicker than picking out
            near = (self.rows @ query.astype(np.float32))[at]
        else:
            near = self.rows[at] @ query.astype(np.float32)
        at = at[near * self.scale[at] + self.shift[at] >= level - 2 * ROUNDING * self.scale[at]]
        return at[self.scores(at, query[None])[0] >= level]

    @staticmethod
    def likely(bounds: np.ndarray, count: int) -> np.ndarray:
        """At least ``min(count, n / CHUNK)`` rows that may be among the best of one query, ascending: the best of the
        chunks whose best is high. A start, not an answer."""
        whole = len(bounds) // CHUNK * CHUNK
        if whole <= count * CHUNK:
            return np.sort(np.argsort(-bounds, kind="stable")[:count])
        chunks = bounds[:whole].reshape(-1, CHUNK)
        best = torch.from_numpy(chunks).amax(dim=1).numpy()
        at = np.argpartition(-best, count)[:count]
        return np.sort(at * CHUNK + chunks[at].argmax(axis=1))

    def _encode(self) -> None:
        """Turn the rows, keep the front in eight bits and the length of the rest, and bound what was lost."""
        dim = self.rows.shape[1]
        self._kept, self._axes = dim, None
        if dim <= MOST_TURNED:
            sample = self.rows[:: max(1, len(self.rows) // SAMPLE)].astype(np.float64)
            squares, axes = np.linalg.eigh(sample.T @ sample)
            self._axes = axes[:, ::-1].astype(np.float32).copy()
            few = squares[::-1][: FRONTS[0]].sum() >= ENOUGH * squares.sum()
            self._kept = min(FRONTS[0] if few else FRONTS[1], dim)
        codes = torch.empty(len(self.rows), self._kept + LENGTH, dtype=torch.int8 if _eight_bits() else torch.float32)
        step, self._loss, self._own = np.zeros((3, len(self.rows)))
        for start in range(0, len(self.rows), BLOCK):
            block = slice(start, start + BLOCK)
            turned = self._turned(self.rows[block])
            front = turned[:, : self._kept]
            rest = np.linalg.norm(turned[:, self._kept :], axis=1)
            size = np.linalg.norm(turned, axis=1)
            rest = rest + ROUNDING * size
            unit = np.maximum(np.abs(front).max(axis=1, initial=0) / 127, rest / (LENGTH * 126)) + 1e-12
            rounded = np.rint(front / unit[:, None])
            length = np.repeat(np.ceil(rest / LENGTH / unit)[:, None], LENGTH, axis=1)
            codes[block] = torch.from_numpy(np.concatenate([rounded, length], axis=1)).to(codes.dtype)
            wrong = np.linalg.norm(front - rounded * unit[:, None], axis=1) + ROUNDING * size
            step[block], self._loss[block], self._own[block] = unit, wrong, np.linalg.norm(front, axis=1) + wrong
        self._step = torch.from_numpy((step * self.scale).astype(np.float32))
        self._codes = codes

    def _turned(self, rows: np.ndarray) -> np.ndarray:
        return rows if self._axes is None else rows @ self._axes

    def _products(self, codes: np.ndarray) -> torch.Tensor:
        """(q, n) whole numbers."""
        if self._codes.dtype == torch.int8:
            return torch._int_mm(torch.from_numpy(codes).to(torch.int8), self._codes.T)
        return torch.from_numpy(codes).to(torch.float32) @ self._codes.T
