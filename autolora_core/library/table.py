"""Exact search through many rows without reading all of every row; measured against FAISS's indices in docs/scale.md.

A score is ``scale_i ⟨row_i, q⟩ + shift_i``. Rows are kept in eight bits, all coordinates (a fine scan, a quarter of the
bytes) or the first of their own principal axes (a coarse one, a twelfth); what is cut off and what rounding did is
bounded (Cauchy and Schwarz), so a scan gives *upper bounds* of all scores. Only rows whose bound reaches a level are
read and scored in float64: what is found is what a search through all rows finds, whatever the processor.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch

from ..encode.threads import halves, product

log = logging.getLogger(__name__)
# Axes of the coarse scan; on MiniLM's texts they hold nine tenths of a row's square. The rest of a row is one number,
# its length, which takes four more places because it may be longer than the largest coordinate. Rows longer than
# MOST_TURNED are hashed or sketched: no axis of theirs holds more than another, so they are scanned whole.
FRONT, LENGTH, MOST_TURNED = 124, 4, 512
BLOCK, SAMPLE, CHUNK = 16384, 20_000, 64
# Up to so many coordinates, and of so many queries, the product is made with the queries first.
NARROW, MANY = 256, 16
# So few rows are scored outright; of so few that a coarse scan leaves the rows themselves are read.
FEW, NEARLY = 4096, 512
# What a search takes as its level is the best of so many times what it wants.
BEGIN = 8
# Rows of one step of a scan: what it works on stays in the processor's cache.
STEP = 1 << 16
# Queries are of length one, to rounding; longer ones are scanned with their own length.
UNIT = 1.0001
# A scan of so many bytes is shared out to a second thread.
SHARED_FROM = 4 << 20
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


@dataclass(frozen=True)
class Bounds:
    """``values`` (n,) that no score of one query exceeds, and the ``tops`` of every :data:`CHUNK` of them."""

    values: np.ndarray
    tops: np.ndarray
    trusted = -np.inf  # down to which level all rows are known; an approximate search knows them down to some place

    def of(self, rows: np.ndarray) -> np.ndarray:
        """No score of ``rows`` is above these."""
        return self.values[rows]

    def reaching(self, level: float) -> np.ndarray:
        """The rows whose bound is at least ``level``, ascending."""
        chunks = np.flatnonzero(self.tops >= level)
        if 4 * len(chunks) > len(self.tops):
            return np.flatnonzero(self.values >= level)
        at = (chunks[:, None] * CHUNK + np.arange(CHUNK)).reshape(-1)
        at = at[: np.searchsorted(at, len(self.values))]
        return at[self.values[at] >= level]

    def likely(self, count: int) -> np.ndarray:
        """At least ``min(count, n / CHUNK)`` rows that may be among the best, ascending: the best of the chunks whose
        best is high. A start, not an answer."""
        whole = len(self.values) // CHUNK
        if whole <= count:
            return np.sort(np.argsort(-self.values, kind="stable")[:count])
        at = np.argpartition(-self.tops[:whole], count)[:count]
        chunks = self.values[: whole * CHUNK].reshape(-1, CHUNK)[at]
        return np.sort(at * CHUNK + chunks.argmax(axis=1))


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
        return Codes(self.rows, self.rows.shape[1], None, self.scale, self.shift)

    @cached_property
    def _coarse(self) -> Codes:
        dim = self.rows.shape[1]
        if not FRONT < dim <= MOST_TURNED:
            return self._fine
        sample = self.rows[:: max(1, len(self.rows) // SAMPLE)].astype(np.float64)
        axes = np.linalg.eigh(sample.T @ sample)[1][:, ::-1].astype(np.float32).copy()
        return Codes(self.rows, FRONT, axes, self.scale, self.shift)

    @property
    def nbytes(self) -> int:
        """What scans read, beside the rows themselves, as far as there were any."""
        made = {id(codes): codes for name in ("_fine", "_coarse") if (codes := self.__dict__.get(name))}
        return sum(codes.nbytes for codes in made.values())

    def scores(self, at: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """(q, len(at)) float64: the scores of the rows ``at`` for ``queries`` (q, d)."""
        found = product(queries.astype(np.float64), self.rows[at].astype(np.float64).T)
        return found * self.scale[at] + self.shift[at]

    def bounds(self, queries: np.ndarray) -> list[Bounds]:
        """No score of the ``queries`` (q, d) is above theirs."""
        return self._coarse.bounds(queries)

    def best(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` rows with the largest scores for ``query`` (d,), best first, ties by row, and the scores."""
        at = np.arange(len(self.rows))
        if len(at) > FEW and BEGIN * count < len(at) // CHUNK:
            (bounds,) = self.bounds(query[None])
            begin = self.scores(bounds.likely(BEGIN * count), query[None])[0]
            level = np.partition(begin, len(begin) - count)[len(begin) - count]
            # Products of other shapes differ in their last digit: the row whose score this is must not be lost to it.
            at = self.at_least(bounds, query, level - ROUNDING * (1 + abs(level)))
        scores = self.scores(at, query[None])[0]
        first = np.lexsort((at, -scores))[:count]
        return at[first], scores[first]

    def at_least(self, bounds: Bounds, query: np.ndarray, level: float) -> np.ndarray:
        """The rows, ascending, that score at least ``level`` for one ``query`` (d,); ``bounds`` are its own."""
        at = bounds.reaching(level)
        if len(at) > NEARLY and self._coarse is not self._fine:
            at = at[self._fine.of_some(query, at) >= level]
        rows = self.rows[at]
        near = product(rows, query.astype(np.float32))
        spare = ROUNDING * float(np.linalg.norm(query)) * self._coarse.longest(at)
        at = at[(near + spare) * self.scale[at] + self.shift[at] >= level]
        return at[self.scores(at, query[None])[0] >= level]


@dataclass(frozen=True)
class _Asked:
    """``codes`` (q, k) of queries, the ``steps`` they are in, what rounding did (``wrongs``), and how many ``times``
    the queries are longer than what was coded."""

    codes: torch.Tensor
    steps: list[float]
    wrongs: list[float]
    times: list[float]


class Codes:
    """The first ``kept`` coordinates of rows (n, d) turned by ``axes`` (d, d; None: as they are) in eight bits, the
    length of the others, and bounds of what was lost; ``scale`` and ``shift`` (n,) as :class:`Table` has them."""

    def __init__(
        self, rows: np.ndarray, kept: int, axes: np.ndarray | None, scale: np.ndarray, shift: np.ndarray
    ):  # fmt: skip
        self._kept, self._axes, count = kept, axes, len(rows)
        whole = kept == rows.shape[1]  # then nothing is left out, and an even width is scanned twice as fast
        self._length = 0 if whole else LENGTH
        self._codes = torch.empty(count, kept + self._length, dtype=torch.int8 if _eight_bits() else torch.float32)
        step, loss, self._own = np.zeros((3, count), np.float32)
        for start in range(0, count, BLOCK):
            block = slice(start, start + BLOCK)
            turned = self._turned(rows[block])
            front, size = turned[:, :kept], np.linalg.norm(turned, axis=1)
            rest = np.linalg.norm(turned[:, kept:], axis=1) + ROUNDING * size * (not whole)
            unit = np.maximum(np.abs(front).max(axis=1, initial=0) / 127, rest / (LENGTH * 126)) + 1e-12
            rounded = np.rint(front / unit[:, None])
            length = np.repeat(np.ceil(rest / LENGTH / unit)[:, None], self._length, axis=1)
            self._codes[block] = torch.from_numpy(np.concatenate([rounded, length], axis=1)).to(self._codes.dtype)
            wrong = np.linalg.norm(front - rounded * unit[:, None], axis=1) + ROUNDING * size
            step[block], loss[block], self._own[block] = unit, wrong, size + wrong
        # A bound is steps · (product of codes) + spare + owns · (what rounding q did), q at most UNIT long.
        parts = (step * scale, shift + ROUNDING * np.abs(shift) + UNIT * loss * scale, self._own * scale, shift)
        self._steps, self._spare, self._owns, self._shift = (torch.from_numpy(np.float32(part)) for part in parts)

    @property
    def nbytes(self) -> int:
        """Of all of it."""
        return self._codes.nbytes + 5 * self._own.nbytes

    def longest(self, at: np.ndarray) -> np.ndarray:
        """No row of ``at`` is longer."""
        return self._own[at]

    def bounds(self, queries: np.ndarray) -> list[Bounds]:
        """See :meth:`Table.bounds`."""
        asked, count = self._asked(queries), len(self._own)
        padded = torch.empty(len(queries), -(-count // CHUNK), CHUNK)
        out = padded.view(len(queries), -1)
        out[:, count:] = -torch.inf
        tops = torch.empty(padded.shape[:2])

        def scan(start: int, stop: int) -> None:
            """Of some chunks."""
            for first in range(start, stop, STEP // CHUNK):
                last = min(first + STEP // CHUNK, stop)
                rows = slice(first * CHUNK, min(last * CHUNK, count))
                self._bound(self._codes[rows], rows, asked, out[:, rows])
                torch.amax(padded[:, first:last], dim=2, out=tops[:, first:last])

        halves(scan, padded.shape[1], self._codes.nbytes >= SHARED_FROM)
        values = out.numpy()
        return [Bounds(value[:count], top) for value, top in zip(values, tops.numpy(), strict=True)]

    def of_some(self, query: np.ndarray, at: np.ndarray) -> np.ndarray:
        """(len(at),) bounds of the scores of the rows ``at`` for one ``query`` (d,)."""
        out = torch.empty(1, len(at))
        codes = torch.from_numpy(np.take(self._codes.numpy(), at, axis=0))
        self._bound(codes, torch.from_numpy(at), self._asked(query[None]), out)
        return out[0].numpy()

    def _asked(self, queries: np.ndarray) -> _Asked:
        length = np.linalg.norm(queries, axis=1, keepdims=True)
        times = np.maximum(length / UNIT, 1)
        turned = (queries / times).astype(np.float32)
        turned = turned if self._axes is None else product(turned, self._axes)
        front = turned[:, : self._kept]
        rest = np.linalg.norm(turned[:, self._kept :], axis=1) + ROUNDING
        step = np.maximum(np.abs(front).max(axis=1, initial=0) / 127, rest / 126) + 1e-12
        codes = np.rint(front / step[:, None])
        wrong = np.linalg.norm(front - codes * step[:, None], axis=1) + ROUNDING
        ends = np.repeat(np.ceil(rest / step)[:, None], self._length, axis=1)
        codes = torch.from_numpy(np.concatenate([codes, ends], axis=1)).to(self._codes.dtype)
        return _Asked(codes, step.tolist(), wrong.tolist(), times[:, 0].tolist())

    def _bound(self, codes: torch.Tensor, rows: slice | torch.Tensor, asked: _Asked, out: torch.Tensor) -> None:
        out.copy_(self._products(codes, asked.codes))
        steps, spare, owns, shift = (part[rows] for part in (self._steps, self._spare, self._owns, self._shift))
        for row, step, wrong, times in zip(out, asked.steps, asked.wrongs, asked.times, strict=True):
            torch.addcmul(torch.add(spare, owns, alpha=wrong), row, steps, value=step, out=row)
            if times > 1:
                torch.add(shift, row.sub_(shift), alpha=times, out=row)

    def _turned(self, rows: np.ndarray) -> np.ndarray:
        return rows if self._axes is None else rows @ self._axes

    @staticmethod
    def _products(codes: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """(q, n) whole numbers of (n, k) and (q, k), the way round that is quicker."""
        if codes.dtype != torch.int8:
            return asked @ codes.T
        many = len(asked) > 1 and codes.shape[1] <= NARROW or len(asked) >= MANY
        return torch._int_mm(asked, codes.T) if many else torch._int_mm(codes, asked.T).T
