"""Response factors of many files in one table, a byte a number (:mod:`.response`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .response_factors import RESPONSE_VERSION, ResponseFactors


@dataclass(frozen=True)
class SpaceRows:
    """One space's rows in all files that have it: ``rows`` (k, r, d) int8 times ``scale`` (k, r) float32, zero beyond
    a file's own; ``files`` (k,) are places in the table's ``hashes``."""

    files: np.ndarray
    rows: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class FactorTable:
    """Factors of many files: ``spaces[name, width]``. One family may have bases of several widths."""

    hashes: tuple[str, ...]
    spaces: Mapping[tuple[str, int], SpaceRows]

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows and scales."""
        return sum(own.rows.nbytes + own.scale.nbytes for own in self.spaces.values())

    @cached_property
    def id(self) -> str:
        """Says which files, read how (before the dash): two tables of one id give the same answers."""
        return f"{RESPONSE_VERSION}-{hashlib.sha256(' '.join(self.hashes).encode()).hexdigest()[:24]}"

    @classmethod
    def of(cls, files: Mapping[str, ResponseFactors]) -> FactorTable:
        """A table of unpacked factors (tests, benchmarks)."""
        return cls.packed(
            {digest: {name: quantised(rows) for name, rows in found.rows.items()} for digest, found in files.items()}
        )

    @classmethod
    def packed(cls, files: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> FactorTable:
        """A table of ``hash → space → (rows (r, d) int8, scale (r,))``."""
        own: dict[tuple[str, int], list[tuple[int, np.ndarray, np.ndarray]]] = {}
        for place, spaces in enumerate(files.values()):
            for name, (rows, scale) in spaces.items():
                own.setdefault((name, rows.shape[1]), []).append((place, rows, scale))
        return cls(tuple(files), {key: _stacked(parts) for key, parts in sorted(own.items())})

    def part(self, which: Sequence[int]) -> FactorTable:
        """The files ``which``, in rising order."""
        place = np.full(len(self.hashes), -1)
        place[list(which)] = np.arange(len(which))
        spaces = {}
        for key, own in self.spaces.items():
            keep = place[own.files] >= 0
            if keep.any():
                spaces[key] = SpaceRows(place[own.files[keep]], own.rows[keep], own.scale[keep])
        return FactorTable(tuple(self.hashes[i] for i in which), spaces)


def _stacked(parts: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> SpaceRows:
    deep = max(len(rows) for _, rows, _ in parts)
    rows = np.zeros((len(parts), deep, parts[0][1].shape[1]), np.int8)
    scale = np.zeros((len(parts), deep), np.float32)
    for i, (_, own, factor) in enumerate(parts):
        rows[i, : len(own)], scale[i, : len(own)] = own, factor
    return SpaceRows(np.array([place for place, _, _ in parts], int), rows, scale)


def quantised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(…, d) float → int8 rows and their scale (…), a 127th of each row's largest entry. The error is about 1 %."""
    scale = (np.abs(rows).max(axis=-1) / 127).astype(np.float32)
    return np.rint(rows / np.where(scale > 0, scale, 1)[..., None]).astype(np.int8), scale
