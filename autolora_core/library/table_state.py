"""What scans of a :class:`.table.Table` read, as arrays to be kept: working it out takes a second per hundred thousand
rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from .table import Codes, Table, _eight_bits

_TENSORS = ("_codes", "_steps", "_spare", "_owns", "_shift")
_ARRAYS, _NUMBERS = ("_own", "_axes"), ("_kept", "_length")
_KINDS = ("_fine", "_coarse")


def processor() -> str:
    """Changes where a processor keeps codes in another form."""
    return "eight bits" if _eight_bits() else "float32"


def codes_to_arrays(table: Table, name: str) -> dict[str, np.ndarray]:
    """Of all scans of ``table``, worked out now where they were not; under names that begin with ``name``."""
    if not len(table):
        return {}
    kinds = [kind for kind in _KINDS if kind == "_fine" or table._coarse is not table._fine]
    return {
        f"{name}{kind}{part}": np.asarray(value)
        for kind in kinds
        for part, value in vars(getattr(table, kind)).items()
        if value is not None
    }


def codes_of_arrays(table: Table, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Give ``table`` what :func:`codes_to_arrays` kept of an equal one. Raises ValueError or KeyError where it does not
    fit."""
    for kind in _KINDS:
        start = f"{name}{kind}"
        if f"{start}_codes" not in arrays:
            continue
        codes = Codes.__new__(Codes)
        codes._kept, codes._length = (int(arrays[start + part]) for part in _NUMBERS)
        codes._own, codes._axes = arrays[f"{start}_own"], arrays.get(f"{start}_axes")
        for part in _TENSORS:
            setattr(codes, part, torch.from_numpy(arrays[start + part]))
        rows = {len(codes._own), *(len(getattr(codes, part)) for part in _TENSORS)}
        dim = table.rows.shape[1]
        wide = codes._codes.shape[1] == codes._kept + codes._length <= dim + 8
        if rows != {len(table)} or not wide or (codes._axes is not None and codes._axes.shape != (dim, dim)):
            raise ValueError("codes of other rows")
        table.__dict__[kind] = codes
