"""The products along the inputs and outputs of many modules: two passes over factors that are converted on the way.

A factor of a LoRA is long and thin. The first pass gives its Gram matrix and what the signs see of it, the second, when
the small matrices are decomposed, the hashed diagonal of its soft projector. Each converts some hundred thousand
numbers at a time, in buffers that stay in a processor's cache and are used again: nothing long is ever kept.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from .signs import all_signs
from .sketch import SketchSize

# Numbers of one chunk: as float32, together with what comes of it, within a processor's second-level cache.
CHUNK_NUMBERS, FEWEST_ROWS = 192 << 10, 64
MOST_ROOMS = 256


class Side:
    """One side of many modules of one rank r: ``factors``, each (n, r) where ``tall``, else (r, n).

    ``names[i]``: the sides that read factor i, one or, where a fused layer's parts share it, some. Results have a row a
    name, in order; everything is reckoned in ``dtype`` and summed up in float64.
    """

    def __init__(
        self, factors: Sequence[Tensor], names: Sequence[Sequence[str]], tall: bool, size: SketchSize,
        dtype: torch.dtype,
    ):  # fmt: skip
        self.tall, self.size, self.dtype = tall, size, dtype
        self.rank = factors[0].shape[1 if tall else 0]
        lengths = [factor.shape[0 if tall else 1] for factor in factors]
        order = sorted(range(len(factors)), key=lambda i: (len(names[i]), lengths[i]))  # alike ones side by side
        self._factors = [factors[i] for i in order]
        self._parts, self._lengths = [len(names[i]) for i in order], [lengths[i] for i in order]
        self._signs = [all_signs.of(name, lengths[i], size) for i in order for name in names[i]]
        self._starts = [0, *accumulate(self._parts)]  # of each factor's names
        ends = [0, *accumulate(len(some) for some in names)]
        given = [name for i in order for name in range(ends[i], ends[i + 1])]
        self._given = torch.tensor(given)  # place here → place of the name in the order that was given
        self._order = torch.tensor(order)
        self._chunks = list(self._cut())

    def first(self) -> tuple[Tensor, Tensor]:
        """``(factors, r, r)`` Gram matrices and ``(names, s, r)`` what R sees, float64."""
        gram = torch.zeros(len(self._factors), self.rank, self.rank, dtype=self.dtype)
        seen = torch.zeros(len(self._signs), self.size.product, self.rank, dtype=self.dtype)
        for chunk in self._chunks:
            room = self._held(chunk)
            gram[chunk.low : chunk.high].baddbmm_(room.wide, room.wide.mT)
            self._drawn(chunk, 0, room.product)
            own = seen[chunk.names].view(chunk.high - chunk.low, -1, self.rank)
            own.baddbmm_(room.product.view(len(own), -1, chunk.stop - chunk.start), room.wide.mT)
        return _back(gram, self._order).double(), _back(seen, self._given).double()

    def second(self, bases: Tensor) -> Tensor:
        """``(names, d)`` float64: the hashed diagonals of factor · basis · basisᵀ · factorᵀ for ``bases``
        (names, r, r)."""
        spread = torch.zeros(len(self._signs), self.size.diag + 1, self.rank, dtype=self.dtype)
        bases = bases[self._given].to(self.dtype)
        bases = bases if self.tall else bases.mT.contiguous()
        for chunk in self._chunks:
            room = self._held(chunk)
            if self.tall:
                torch.bmm(room.held, bases[chunk.names], out=room.made)
            else:
                torch.bmm(bases[chunk.names].view(chunk.high - chunk.low, -1, self.rank), room.held, out=room.made)
            torch.mul(room.made, room.made, out=room.made)
            self._drawn(chunk, 1, room.spread)
            spread[chunk.names].baddbmm_(room.spread, room.made_tall)
        spread = spread.sum(dim=2, dtype=torch.float64)
        lengths = [length for length, parts in zip(self._lengths, self._parts, strict=True) for _ in range(parts)]
        length = torch.tensor(lengths, dtype=torch.float64)[:, None]
        total = torch.stack([drawn.total for drawn in self._signs])
        # The diagonal's mean, off it: what the row of ones saw.
        return _back((spread[:, :-1] - total * (spread[:, -1:] / length)) * length.sqrt(), self._given)

    def _cut(self) -> Iterator[_Chunk]:
        at = 0
        for (parts, length), alike in groupby(zip(self._parts, self._lengths, strict=True)):
            end = at + len(list(alike))
            each = parts * length * self.rank
            if each <= CHUNK_NUMBERS:
                some = CHUNK_NUMBERS // max(1, each)
                yield from (self._chunk(low, min(low + some, end), 0, length) for low in range(at, end, some))
            else:
                pieces = -(-each // CHUNK_NUMBERS)
                step = max(FEWEST_ROWS, -(-length // pieces + 15) // 16 * 16)
                for low in range(at, end):
                    for start in range(0, length, step):
                        yield self._chunk(low, low + 1, start, min(start + step, length))
            at = end

    def _chunk(self, low: int, high: int, start: int, stop: int) -> _Chunk:
        names = slice(self._starts[low], self._starts[high])
        return _Chunk(low, high, start, stop, stop - start == self._lengths[low], names)

    def _held(self, chunk: _Chunk) -> _Room:
        """Where a chunk lies in the type that is reckoned in."""
        shape = (self.tall, chunk.high - chunk.low, chunk.stop - chunk.start, self.rank, self._parts[chunk.low])
        room = _rooms.of(*shape, self.size, self.dtype)
        for own, factor in zip(room.each, self._factors[chunk.low : chunk.high], strict=True):
            length = chunk.stop - chunk.start
            own.copy_(factor if chunk.whole else factor.narrow(1 - self.tall, chunk.start, length))
        return room

    def _drawn(self, chunk: _Chunk, which: int, into: Tensor) -> None:
        """R or S of a chunk, put ``into`` (names, s or d + 1, n)."""
        own = [drawn[which] for drawn in self._signs[chunk.names]]
        if chunk.whole:
            into.copy_(torch.stack(own))
            return
        for part, drawn in zip(into.unbind(0), own, strict=True):
            part.copy_(drawn.narrow(1, chunk.start, chunk.stop - chunk.start))


def grams(factors: Sequence[Tensor], tall: bool) -> Tensor:
    """(n, r, r) float64: the Gram matrices of factors of one rank, (n, r) where ``tall``, else (r, n); products in
    float32."""
    rank = factors[0].shape[1 if tall else 0]
    made = torch.zeros(len(factors), rank, rank)
    for gram, factor in zip(made.unbind(0), factors, strict=True):
        for chunk in factor.split(max(FEWEST_ROWS, CHUNK_NUMBERS // max(1, rank)), dim=1 - tall):
            held = _rooms.plain(chunk.shape).copy_(chunk)
            torch.addmm(gram, held.mT, held, out=gram) if tall else torch.addmm(gram, held, held.mT, out=gram)
    return made.double()


class _Chunk(NamedTuple):
    """Numbers ``start`` to ``stop`` of the factors ``low`` to ``high``, all of one length; ``whole``: all numbers."""

    low: int
    high: int
    start: int
    stop: int
    whole: bool
    names: slice


def _back(rows: Tensor, places: Tensor) -> Tensor:
    """``rows`` put where ``places`` says."""
    return torch.empty_like(rows).index_copy_(0, places, rows)


@dataclass(frozen=True)
class _Room:
    """Views of one thread's buffers, for chunks of one shape: m factors with p names each, n numbers, rank r.

    ``held`` (m, n, r) or (m, r, n), ``each`` of its factors, ``wide`` (m, r, n) the same; ``made`` (m, n, r) or
    (m, p·r, n), ``made_tall`` (m·p, n, r) the same; ``product`` and ``spread`` (m·p, s or d + 1, n).
    """

    held: Tensor
    each: tuple[Tensor, ...]
    wide: Tensor
    made: Tensor
    made_tall: Tensor
    product: Tensor
    spread: Tensor


class _Rooms(threading.local):
    """Buffers of one thread, used again and again: fresh memory costs more than what is done in it."""

    def __init__(self):
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}
        self._rooms: dict[tuple, _Room] = {}

    def of(
        self, tall: bool, factors: int, length: int, rank: int, parts: int, size: SketchSize, dtype: torch.dtype
    ) -> _Room:
        key = (tall, factors, length, rank, parts, size, dtype)
        if key not in self._rooms:
            if len(self._rooms) >= MOST_ROOMS:
                self._rooms.clear()
            names = factors * parts
            held = self._part("held", (factors, length, rank) if tall else (factors, rank, length), dtype)
            made = self._part("made", held.shape if tall else (factors, parts * rank, length), dtype)
            made_tall = made if tall else made.view(names, rank, length).mT
            product = self._part("signs", (names, size.product, length), dtype)
            spread = self._part("signs", (names, size.diag + 1, length), dtype)
            wide = held.mT if tall else held
            self._rooms[key] = _Room(held, held.unbind(0), wide, made, made_tall, product, spread)
        return self._rooms[key]

    def plain(self, shape: Sequence[int]) -> Tensor:
        """A float32 buffer of that shape."""
        return self._part("held", shape, torch.float32)

    def _part(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        numbers = math.prod(shape)
        flat = self._flat.get((use, dtype))
        if flat is None or flat.numel() < numbers:
            flat = self._flat[use, dtype] = torch.empty(max(numbers, CHUNK_NUMBERS), dtype=dtype)
            self._rooms.clear()  # views of the smaller buffer
        return flat[:numbers].view(*shape)


_rooms = _Rooms()
