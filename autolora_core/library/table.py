"""Exact search through many rows without reading all of every row; measured against FAISS's indices in docs/scale.md.

A score is ``scale_i ⟨row_i, q⟩ + shift_i``. Rows are kept in eight bits, all coordinates (a fine scan, a quarter of the
bytes) or the first of their own principal axes (a coarse one, a twelfth); what is cut off and what rounding did is
bounded (Cauchy and Schwarz), so a scan gives *upper bounds* of all scores. Only rows whose bound reaches a level are
read and scored in float64: what is found is what a search through all rows finds, whatever the processor.
"""

from __future__ import annotations

import logging
from functools import cache, cached_property

import numpy as np
import torch

log = logging.getLogger(__name__)
# Axes of the coarse scan; on MiniLM's texts they hold nine tenths of a row's square. The rest of a row is one number,
# its length, which takes four more places because it may be longer than the largest coordinate. Rows longer than
# MOST_TURNED are hashed or sketched: no axis of theirs holds more than another, so they are scanned whole.
FRONT, LENGTH, MOST_TURNED = 124, 4, 512
# Where the coarse scan leaves more than one row in so many, a fine one of all coordinates looks first.
TOO_MANY = 32
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

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _fine(self) -> Codes:
        return Codes(self.rows, self.rows.shape[1], None)

    @cached_property
    def _coarse(self) -> Codes:
        dim = self.rows.shape[1]
        if not FRONT < dim <= MOST_TURNED:
            return self._fine
        sample = self.rows[:: max(1, len(self.rows) // SAMPLE)].astype(np.float64)
        axes = np.linalg.eigh(sample.T @ sample)[1][:, ::-1].astype(np.float32).copy()
        return Codes(self.rows, FRONT, axes)

    @property
    def nbytes(self) -> int:
        """What scans read, beside the rows themselves, as far as there were any."""
        made = {id(codes): codes for name in ("_fine", "_coarse") if (codes := self.__dict__.get(name))}
        return sum(codes.nbytes for codes in made.values())

    def scores(self, at: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """(q, len(at)) float64: the scores of the rows ``at`` for ``queries`` (q, d)."""
        found = queries.astype(np.float64) @ self.rows[at].astype(np.float64).T
        return found * self.scale[at] + self.shift[at]

    def bounds(self, queries: np.ndarray) -> np.ndarray:
        """(q, n) float32: no score of ``queries`` (q, d) is above these."""
        return self._coarse.bounds(queries, self.scale, self.shift)

    def best(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` rows with the largest scores for ``query`` (d,), best first, ties by row, and the scores."""
        at = np.arange(len(self.rows))
        if len(at) > FEW and count < len(at) // CHUNK:
            bounds = self._fine.bounds(query[None], self.scale, self.shift)[0]
            begin = self.scores(self.likely(bounds, count), query[None])[0]
            at = self.at_least(bounds, query, np.partition(begin, len(begin) - count)[len(begin) - count])
        scores = self.scores(at, query[None])[0]
        first = np.lexsort((at, -scores))[:count]
        return at[first], scores[first]

    def at_least(self, bounds: np.ndarray, query: np.ndarray, level: float) -> np.ndarray:
        """The rows, ascending, that score at least ``level`` for one ``query`` (d,); ``bounds`` (n,) are its own."""
        at = np.flatnonzero(bounds >= level)
        if len(at) > max(len(self.rows) // TOO_MANY, FEW) and self._coarse is not self._fine:
            at = np.flatnonzero(self._fine.bounds(query[None], self.scale, self.shift)[0] >= level)
        rows = self.rows[at]
        near = rows @ query.astype(np.float32)
        spare = ROUNDING * float(np.linalg.norm(query)) * np.linalg.norm(rows, axis=1)
        at = at[(near + spare) * self.scale[at] + self.shift[at] >= level]
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


class Codes:
    """The first ``kept`` coordinates of rows (n, d) turned by ``axes`` (d, d; None: as they are) in eight bits, the
    length of the others, and bounds of what was lost."""

    def __init__(self, rows: np.ndarray, kept: int, axes: np.ndarray | None):
        self._kept, self._axes, count = kept, axes, len(rows)
        self._codes = torch.empty(count, kept + LENGTH, dtype=torch.int8 if _eight_bits() else torch.float32)
        self._step, self._loss, self._own = np.zeros((3, count), np.float32)
        for start in range(0, count, BLOCK):
            block = slice(start, start + BLOCK)
            turned = self._turned(rows[block])
            front, size = turned[:, :kept], np.linalg.norm(turned, axis=1)
            rest = np.linalg.norm(turned[:, kept:], axis=1) + ROUNDING * size
            unit = np.maximum(np.abs(front).max(axis=1, initial=0) / 127, rest / (LENGTH * 126)) + 1e-12
            rounded = np.rint(front / unit[:, None])
            length = np.repeat(np.ceil(rest / LENGTH / unit)[:, None], LENGTH, axis=1)
            self._codes[block] = torch.from_numpy(np.concatenate([rounded, length], axis=1)).to(self._codes.dtype)
            wrong = np.linalg.norm(front - rounded * unit[:, None], axis=1) + ROUNDING * size
            self._step[block], self._loss[block], self._own[block] = unit, wrong, size + wrong

    @property
    def nbytes(self) -> int:
        """Of all of it."""
        return self._codes.nbytes + 3 * self._step.nbytes

    def bounds(self, queries: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """See :meth:`Table.bounds`."""
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
        spare = torch.from_numpy((shift + scale * loss + ROUNDING * np.abs(shift)).astype(np.float32))
        steps = torch.from_numpy((self._step * scale).astype(np.float32))
        out = torch.empty(len(queries), len(self._step))
        for row, product, unit in zip(out, products, step, strict=True):
            torch.addcmul(spare, product.to(torch.float32), steps, value=float(unit), out=row)
        return out.numpy()

    def _turned(self, rows: np.ndarray) -> np.ndarray:
        return rows if self._axes is None else rows @ self._axes

    def _products(self, codes: np.ndarray) -> torch.Tensor:
        """(q, n) whole numbers."""
        if self._codes.dtype == torch.int8:
            return torch._int_mm(torch.from_numpy(codes).to(torch.int8), self._codes.T)
        return torch.from_numpy(codes).to(torch.float32) @ self._codes.T
