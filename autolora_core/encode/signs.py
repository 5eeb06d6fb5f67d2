"""The random signs of modules, kept for the next file: all files of a family ask for the same ones."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .sketch import SketchSize

MAX_SIGN_BYTES = 160 << 20  # twice what FLUX's modules take


class Signs(NamedTuple):
    """Of one side of a module with n rows: R (s, n) of :mod:`.sketch`, S with a row of ones below (d + 1, n), both
    int8, and ``total`` (d,) float64, the sums of S's rows."""

    product: Tensor
    spread: Tensor
    total: Tensor


class SignCache:
    """Signs by name, one byte each; may be asked from several threads."""

    def __init__(self, most: int = MAX_SIGN_BYTES):
        self._most, self._bytes = most, 0
        self._kept: OrderedDict[tuple[str, int, SketchSize], Signs] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, name: str, rows: int, size: SketchSize) -> Signs:
        """Those of the side ``name`` with ``rows`` rows."""
        key = (name, rows, size)
        with self._lock:  # held while they are drawn: threads that read files of one family ask for the same
            made = self._kept.get(key)
            if made is not None:
                self._kept.move_to_end(key)
                return made
            made = self._kept[key] = _drawn(name, rows, size)
            self._bytes += (size.product + size.diag + 1) * rows
            while self._bytes > self._most and len(self._kept) > 1:
                (_, gone, of), _ = self._kept.popitem(last=False)
                self._bytes -= (of.product + of.diag + 1) * gone
        return made

    def clear(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0


def _drawn(name: str, rows: int, size: SketchSize) -> Signs:
    """The bits of :func:`.sketch._signs` as int8, a row a column there."""
    columns, stride = size.product + size.diag, -(-rows // 8)
    bits = np.frombuffer(hashlib.shake_128(name.encode()).digest(stride * columns), np.uint8)
    signs = np.ones((columns + 1, rows), np.int8)
    signs[:-1] = np.unpackbits(bits.reshape(columns, stride), axis=1, count=rows)
    signs <<= 1
    signs -= 1
    product, spread = torch.from_numpy(signs).split([size.product, size.diag + 1])
    return Signs(product, spread, spread[:-1].sum(dim=1, dtype=torch.float64))


all_signs = SignCache()


def forget_signs() -> None:
    """Give back the memory that is held for the next file, at the end of many files."""
    all_signs.clear()
