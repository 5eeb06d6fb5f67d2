"""The products along the inputs and outputs of many modules: two passes over factors that are converted on the way.

A factor of a LoRA is long and thin. The first pass gives its Gram matrix and what the signs see of it, the second, when
the small matrices are decomposed, the hashed diagonal of its soft projector. Each converts some hundred thousand
numbers at a time, in buffers that stay in a processor's cache and are used again: nothing long is ever kept.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor

from .signs import all_signs
from .sketch import SketchSize

# Numbers of one chunk: as float32, together with what comes of it, within a processor's second-level cache.
CHUNK_NUMBERS, FEWEST_ROWS = 192 << 10, 64


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

    def first(self) -> tuple[Tensor, Tensor]:
        """``(factors, r, r)`` Gram matrices and ``(names, s, r)`` what R sees, float64."""
        gram = torch.zeros(len(self._factors), self.rank, self.rank, dtype=self.dtype)
        seen = torch.zeros(len(self._signs), self.size.product, self.rank, dtype=self.dtype)
        for low, high, start, stop in self._chunks():
            held = self._held(low, high, start, stop)
            wide = held.mT if self.tall else held
            gram[low:high].baddbmm_(wide, wide.mT)
            drawn, names = self._drawn(0, low, high, start, stop)
            seen[names].view(high - low, -1, self.rank).baddbmm_(drawn.view(high - low, -1, stop - start), wide.mT)
        return _back(gram, self._order).double(), _back(seen, self._given).double()

    def second(self, bases: Tensor) -> Tensor:
        """``(names, d)`` float64: the hashed diagonals of factor · basis · basisᵀ · factorᵀ for ``bases``
        (names, r, r)."""
        spread = torch.zeros(len(self._signs), self.size.diag + 1, self.rank, dtype=self.dtype)
        bases = bases[self._given].to(self.dtype)
        bases = bases if self.tall else bases.mT.contiguous()
        for low, high, start, stop in self._chunks():
            held = self._held(low, high, start, stop)
            drawn, names = self._drawn(1, low, high, start, stop)
            if self.tall:
                made = torch.bmm(held, bases[names], out=_room.made(held.numel(), self.dtype).view(held.shape))
            else:
                own = bases[names].view(high - low, -1, self.rank)
                room = _room.made(own.shape[0] * own.shape[1] * held.shape[2], self.dtype)
                made = torch.bmm(own, held, out=room.view(*own.shape[:2], -1)).view(-1, self.rank, held.shape[2])
            torch.mul(made, made, out=made)
            spread[names].baddbmm_(drawn, made if self.tall else made.mT)
        spread = spread.sum(dim=2, dtype=torch.float64)
        lengths = [length for length, parts in zip(self._lengths, self._parts, strict=True) for _ in range(parts)]
        length = torch.tensor(lengths, dtype=torch.float64)[:, None]
        total = torch.stack([drawn.total for drawn in self._signs])
        # The diagonal's mean, off it: what the row of ones saw.
        return _back((spread[:, :-1] - total * (spread[:, -1:] / length)) * length.sqrt(), self._given)

    def _chunks(self) -> Iterator[tuple[int, int, int, int]]:
        """``(low, high, start, stop)``: numbers ``start`` to ``stop`` of the factors ``low`` to ``high``, all of one
        length."""
        at = 0
        for (parts, length), alike in groupby(zip(self._parts, self._lengths, strict=True)):
            end = at + len(list(alike))
            each = parts * length * self.rank
            if each <= CHUNK_NUMBERS:
                some = CHUNK_NUMBERS // max(1, each)
                yield from ((low, min(low + some, end), 0, length) for low in range(at, end, some))
            else:
                pieces = -(-each // CHUNK_NUMBERS)
                step = max(FEWEST_ROWS, -(-length // pieces + 15) // 16 * 16)
                for low in range(at, end):
                    yield from ((low, low + 1, start, min(start + step, length)) for start in range(0, length, step))
            at = end

    def _held(self, low: int, high: int, start: int, stop: int) -> Tensor:
        """A chunk in the type that is reckoned in, (factors, n, r) or (factors, r, n)."""
        shape = (stop - start, self.rank) if self.tall else (self.rank, stop - start)
        held = _room.held((high - low) * shape[0] * shape[1], self.dtype).view(high - low, *shape)
        for own, factor in zip(held.unbind(0), self._factors[low:high], strict=True):
            part = factor if stop - start == self._lengths[low] else factor.narrow(1 - self.tall, start, stop - start)
            own.copy_(part)
        return held

    def _drawn(self, which: int, low: int, high: int, start: int, stop: int) -> tuple[Tensor, slice]:
        """(names, s or d + 1, n): R or S of a chunk, and which names these are."""
        names = slice(self._starts[low], self._starts[high])
        own = [drawn[which] for drawn in self._signs[names]]
        shape = (len(own), own[0].shape[0], stop - start)
        made = _room.signs(math.prod(shape), self.dtype).view(shape)
        if stop - start == own[0].shape[1]:
            return made.copy_(torch.stack(own)), names
        for part, drawn in zip(made.unbind(0), own, strict=True):
            part.copy_(drawn.narrow(1, start, stop - start))
        return made, names


def _back(rows: Tensor, places: Tensor) -> Tensor:
    """``rows`` put where ``places`` says."""
    return torch.empty_like(rows).index_copy_(0, places, rows)


class _Room(threading.local):
    """Buffers of one thread: fresh memory costs more than what is done in it."""

    def __init__(self):
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def _of(self, use: str, numbers: int, dtype: torch.dtype) -> Tensor:
        flat = self._flat.get((use, dtype))
        if flat is None or flat.numel() < numbers:
            flat = self._flat[use, dtype] = torch.empty(max(numbers, CHUNK_NUMBERS), dtype=dtype)
        return flat[:numbers]

    def held(self, numbers: int, dtype: torch.dtype) -> Tensor:
        return self._of("held", numbers, dtype)

    def made(self, numbers: int, dtype: torch.dtype) -> Tensor:
        return self._of("made", numbers, dtype)

    def signs(self, numbers: int, dtype: torch.dtype) -> Tensor:
        return self._of("signs", numbers, dtype)


_room = _Room()
