"""Approximate search through very many rows: FAISS's product quantiser, four bits a coordinate, all rows looked at.

Rows are turned to their 96 principal axes, then about at random (rounding spread evenly over the axes does a third of
the harm to an inner product), and every axis is rounded to sixteen values learnt from the rows: 48 bytes a row, scanned
in the processor's registers (``IndexPQFastScan``). The few hundred best by these codes are scored with the true rows.

Chosen by measurement at a million vectors (docs/scale.md): it finds more than cells (IVF) do in the same time, because
text vectors lie off the files' own distribution and need an eighth of all cells; and is learnt in a tenth of the time.
Nothing is searched this way before it has shown, on questions it was not learnt from, that it finds what exact search
finds (:func:`measured`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..encode.threads import halves, product
from .table import ROUNDING, Bounds, Table

AXES, BITS = 96, 4
SAMPLE, BLOCK, SEED = 20_000, 16_384, 0
# What is promised of the best so many, and down to which place all rows are taken to be known.
NEAREST, DEPTH = 10, 50
# Recall wanted of the best, and of all down to DEPTH, on test questions: a little more than is promised (0.98).
WANTED = 0.985
# Rows scored again; the first number that reaches what is wanted is taken.
CANDIDATES = (300, 450, 600, 900, 1200, 1800, 2400)
Tick = Callable[[int, int], None]


def faiss_or_none() -> ModuleType | None:
    """FAISS with the index that is used here; None where it is not installed, or too old."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss if hasattr(faiss, "IndexPQFastScan") else None


@contextmanager
def _one_thread(faiss: ModuleType) -> Iterator[None]:
    """FAISS's threads, which spin beside other work, set to one for the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@dataclass(frozen=True)
class Coded:
    """``codes`` (n, a/2) uint8 of rows on ``a`` turned axes: ``turn`` (d + 1, a), ``centroids`` (a, 16), float32.

    A score is ⟨[scale · row, stretch · shift], [query, 1 / stretch]⟩; ``stretch`` makes the shifts as large as the rows
    are along their first axis, so that they are not rounded away.
    """

    turn: np.ndarray
    stretch: float
    centroids: np.ndarray
    codes: np.ndarray

    def fits(self, dim: int) -> bool:
        """Whether the arrays, of a file say, are of rows of ``dim`` numbers and of each other."""
        axes = min(AXES, dim + 1)
        shapes = self.turn.shape, self.centroids.shape, self.codes.shape[1:]
        kinds = self.turn.dtype, self.centroids.dtype, self.codes.dtype
        sound = bool(np.isfinite(self.turn).all() and np.isfinite(self.centroids).all() and np.isfinite(self.stretch))
        right = (dim + 1, axes), (axes, 1 << BITS), (-(-axes * BITS // 8),)
        return sound and shapes == right and kinds == (np.float32, np.float32, np.uint8) and self.stretch >= 0

    def rows(self, table: Table, at: slice | np.ndarray) -> np.ndarray:
        """(b, a) float32: rows of the table on the axes."""
        return product(_stretched(table, at, self.stretch), self.turn)

    def queries(self, queries: np.ndarray) -> np.ndarray:
        """(q, a) float32."""
        end = np.full((len(queries), 1), 1 / self.stretch if self.stretch else 0.0)
        return product(np.concatenate([queries, end], axis=1).astype(np.float32), self.turn)

    def encoded(self, faiss: ModuleType, table: Table, at: slice | np.ndarray) -> np.ndarray:
        """(b, a/2) uint8: codes of rows of the table."""
        with _one_thread(faiss):
            return _quantiser(faiss, self.centroids).compute_codes(self.rows(table, at))

    def index(self, faiss: ModuleType) -> Any:
        """What searches the codes: made of plain arrays, so that nothing of a file is parsed by FAISS."""
        axes = len(self.centroids)
        plain = faiss.IndexPQ(axes, axes, BITS, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(np.ascontiguousarray(self.centroids).ravel(), plain.pq.centroids)
        faiss.copy_array_to_vector(np.ascontiguousarray(self.codes).ravel(), plain.codes)
        plain.is_trained, plain.ntotal = True, len(self.codes)
        return faiss.IndexPQFastScan(plain)


def _stretched(table: Table, at: slice | np.ndarray, stretch: float) -> np.ndarray:
    rows = table.rows[at] * table.scale[at, None]
    return np.concatenate([rows, stretch * table.shift[at, None]], axis=1).astype(np.float32)


def _quantiser(faiss: ModuleType, centroids: np.ndarray | int) -> Any:
    axes = centroids if isinstance(centroids, int) else len(centroids)
    made = faiss.ProductQuantizer(axes, axes, BITS)
    if not isinstance(centroids, int):
        faiss.copy_array_to_vector(np.ascontiguousarray(centroids).ravel(), made.centroids)
    return made


def learnt(faiss: ModuleType, table: Table, tick: Tick = lambda done, total: None) -> Coded:
    """Axes, values and codes of all rows, a function of the ``table`` alone; ``tick(done, total)`` may raise."""
    sample, dim = _sampled(len(table)), table.rows.shape[1] + 1
    spread = float(np.sqrt(np.mean(table.shift**2)))
    stretch = _axes(_stretched(table, sample, 0.0))[0][0].item() ** 0.5 / spread if spread > 1e-9 else 0.0
    whole, count = _stretched(table, sample, stretch), min(AXES, dim)
    about = np.linalg.qr(np.random.default_rng(SEED).standard_normal((count, count)))[0]
    turn = (_axes(whole)[1][:, :count] @ torch.from_numpy(about)).float().numpy()
    with _one_thread(faiss):
        quantiser = _quantiser(faiss, count)
        quantiser.train(product(whole, turn))
    centroids = faiss.vector_to_array(quantiser.centroids).reshape(count, -1).copy()
    found = Coded(turn, stretch, centroids, np.zeros((len(table), quantiser.code_size), np.uint8))
    for start in range(0, len(table), BLOCK):
        tick(start, len(table))
        found.codes[start : start + BLOCK] = found.encoded(faiss, table, slice(start, start + BLOCK))
    return found


def _axes(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squares of rows (n, d) along their principal axes, largest first, and the axes (d, d) as columns, float64.
    By PyTorch, whose threads, and with them the last digits, the caller has set."""
    doubles = torch.from_numpy(rows).double()
    values, axes = torch.linalg.eigh(doubles.T @ doubles / len(rows))
    return values.flip(0), axes.flip(1)


def _sampled(count: int) -> np.ndarray:
    """Rows to learn from, evenly (by hash)."""
    return np.arange(0, count, max(1, count // SAMPLE))


def held_out(count: int, asked: int) -> np.ndarray:
    """About ``asked`` rows that nothing is learnt from, evenly; any rows of a table so small that there are none."""
    step = max(1, count // SAMPLE)
    rows = np.arange(step // 2, count, step)
    return rows[:: max(1, len(rows) // asked)][:asked]


@dataclass(frozen=True)
class Found:
    """Of one query: the candidate ``rows``, ascending, and their scores ``near`` (float32 products); no other row is
    taken to score ``trusted`` or more."""

    rows: np.ndarray
    near: np.ndarray
    trusted: float

    def likely(self, count: int) -> np.ndarray:
        """As :meth:`.table.Bounds.likely`."""
        return np.sort(self.rows[np.argsort(-self.near, kind="stable")[:count]])

    def of(self, rows: np.ndarray) -> np.ndarray:
        """As :meth:`.table.Bounds.of`."""
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        spare = ROUNDING * (1 + np.abs(self.near[at]))
        return np.where(self.rows[at] == rows, self.near[at] + spare, self.trusted)


@dataclass(frozen=True)
class Measured:
    """``recall`` of the best ten and ``deep`` of the best fifty, the lowest of all kinds of question, with so many
    ``candidates``; ``kinds`` says which were asked and how many. ``good``: enough to be searched by."""

    candidates: int
    recall: float
    deep: float
    kinds: Mapping[str, int]

    @classmethod
    def of_json(cls, said: Mapping[str, Any]) -> Measured:
        """Of what ``asdict`` gives. Raises KeyError, TypeError or ValueError for anything else."""
        kinds = {str(kind): int(count) for kind, count in said["kinds"].items()}
        return cls(max(int(said["candidates"]), 1), float(said["recall"]), float(said["deep"]), kinds)

    @property
    def good(self) -> bool:
        return min(self.recall, self.deep) >= WANTED


class Approximate:
    """Search of ``table`` by ``coded``; as a :class:`Table` for those who ask for the best. Where they ask for more
    than it knows the table is searched exactly, ``exactly`` counts how often. ``nbytes`` are those of the codes."""

    def __init__(self, faiss: ModuleType, table: Table, coded: Coded, measured: Measured):
        self.table, self.measured, self.exactly = table, measured, 0
        self._faiss, self._index, self.nbytes = faiss, coded.index(faiss), coded.codes.nbytes
        self._coded = replace(coded, codes=coded.codes[:0])  # FAISS has its own copy

    def bounds(self, queries: np.ndarray) -> list[Found]:
        """What is found for each of ``queries`` (q, d)."""
        count = min(self.measured.candidates, len(self.table))
        turned, found = self._coded.queries(queries), [None] * len(queries)

        def ask(start: int, stop: int) -> None:
            with _one_thread(self._faiss):
                ids = self._index.search(turned[start:stop], count)[1]
            for at in range(start, stop):
                found[at] = self._scored(queries[at], np.sort(ids[at - start][ids[at - start] >= 0]))

        halves(ask, len(queries), len(queries) > 1)
        return found

    def _scored(self, query: np.ndarray, rows: np.ndarray) -> Found:
        table = self.table
        near = product(table.rows[rows], query.astype(np.float32)) * table.scale[rows] + table.shift[rows]
        whole = len(rows) >= len(table) or len(rows) < DEPTH
        trusted = -np.inf if whole else float(np.partition(near, len(near) - DEPTH)[len(near) - DEPTH])
        return Found(rows, near, trusted)

    def exact(self, queries: np.ndarray) -> list[Bounds]:
        """For levels of ``queries`` (q, d) below what is found."""
        self.exactly += len(queries)
        return self.table.bounds(queries)

    def scores(self, at: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """As :meth:`Table.scores`."""
        return self.table.scores(at, queries)

    def best(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`Table.best`; exact for more rows than were promised."""
        if count > DEPTH:
            self.exactly += 1
            return self.table.best(query, count)
        at = self.bounds(query[None])[0].likely(count)
        scores = self.table.scores(at, query[None])[0]
        first = np.lexsort((at, -scores))
        return at[first], scores[first]

    def at_least(self, found: Found | Bounds, query: np.ndarray, level: float) -> np.ndarray:
        """As :meth:`Table.at_least`, for what :meth:`bounds` found, down to where it is trusted, or :meth:`exact`."""
        if isinstance(found, Bounds):
            return self.table.at_least(found, query, level)
        if level < found.trusted:
            raise ValueError(f"rows are known down to {found.trusted}, not to {level}")
        at = found.rows[found.near >= level - ROUNDING * (1 + abs(level))]
        return at[self.table.scores(at, query[None])[0] >= level]


def measured(
    approximate: Approximate, texts: np.ndarray, files: np.ndarray, tick: Tick = lambda done, total: None
) -> Measured:
    """How much of what exact search finds ``approximate`` finds, with as few candidates as are enough (else the most);
    it goes on with as many.

    Asked are ``texts`` (q, d) and the rows ``files``, each as if it were not in the table.
    """
    table = approximate.table
    asked = np.concatenate([texts, table.rows[files]]).astype(np.float32)
    own = np.concatenate([np.full(len(texts), -1), files])
    kinds, right = {"texts": len(texts), "files": len(files)}, _truth(table, asked, own, tick)
    for candidates in CANDIDATES:
        approximate.measured = Measured(candidates, 0.0, 0.0, kinds)
        shares = np.array([
            [np.isin(best[:depth], found.rows).mean() for depth in (NEAREST, DEPTH)]
            for found, best in zip(approximate.bounds(asked), right, strict=True)
        ])  # fmt: skip
        parts = [part.mean(axis=0) for part in (shares[: len(texts)], shares[len(texts) :]) if len(part)]
        recall, deep = np.min(parts, axis=0).tolist()
        approximate.measured = replace(approximate.measured, recall=recall, deep=deep)
        if approximate.measured.good:
            break
    return approximate.measured


def _truth(table: Table, asked: np.ndarray, own: np.ndarray, tick: Tick) -> np.ndarray:
    """(q, DEPTH) the best rows of ``asked`` (q, d), best first, but for each one's ``own`` (q,)."""
    keep = min(DEPTH, len(table) - 1)
    best, at = np.zeros((len(asked), 0), np.float32), np.zeros((len(asked), 0), np.int64)
    for start in range(0, len(table), BLOCK):
        tick(start, len(table))
        rows = np.arange(start, min(start + BLOCK, len(table)))
        scores = product(asked, table.rows[rows].T.copy()) * table.scale[rows] + table.shift[rows]
        scores[own[:, None] == rows] = -np.inf
        best, at = np.concatenate([best, scores], axis=1), np.concatenate([at, np.tile(rows, (len(asked), 1))], axis=1)
        first = np.argpartition(-best, keep - 1, axis=1)[:, :keep] if best.shape[1] > keep else np.arange(best.shape[1])
        first = np.broadcast_to(first, (len(asked), first.shape[-1]))
        best, at = np.take_along_axis(best, first, axis=1), np.take_along_axis(at, first, axis=1)
    return np.take_along_axis(at, np.argsort(-best, axis=1, kind="stable"), axis=1)
