"""What a large library was made ready with, kept beside it: the first question of a process begins where an earlier one
ended.

It is a function of the library's state, of the text tower, of the encoder and of this program, all of which the file
names; for any other it is made again. Arrays are mapped, what was calibrated stands in the header.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..encode.encoder import WeightEncoder
from ..library.array_file import open_arrays, said_of, save_arrays
from ..library.table_state import processor
from ..portable import file_stem
from .view import LibraryView

log = logging.getLogger(__name__)
# A smaller library is made ready in a second or two; nothing of that is kept.
KEPT_FROM = 8192


@cache
def _program() -> str:
    """Changes with every line that may have a say in what is kept, and with what this processor scans quickly."""
    core = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256(f"{np.__version__} {torch.__version__} {processor()}".encode())
    for part in ("encode", "library", "retrieve"):
        for path in sorted((core / part).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Ready:
    """The arrays of a :class:`.score.Scorer` and ``groups``, and what :mod:`.tune` made of it."""

    arrays: Mapping[str, np.ndarray]
    calibration: Mapping[str, Any]

    @property
    def groups(self) -> np.ndarray:
        """(N,) see :func:`.tune.near_groups`."""
        return self.arrays["groups"]


@dataclass(frozen=True)
class Keeper:
    """Where the state that ``key`` names is kept."""

    path: Path
    key: str

    @classmethod
    def of(
        cls, view: LibraryView, name: str, handle: dict, family: str, tower: str, encoder: WeightEncoder | None
    ) -> Keeper | None:
        """``name`` of one family of a view; None where nothing is kept."""
        path = view.kept(f"{name}-{file_stem(family)}") if handle else None
        if path is None:
            return None
        made_by = encoder.id if encoder is not None else None
        state = json.dumps([handle, family, tower, made_by, _program()], sort_keys=True, default=str)
        return cls(path, hashlib.sha256(state.encode()).hexdigest())

    def load(self) -> Ready | None:
        """What was kept of this very state."""
        said = said_of(self.path)
        if not isinstance(said, dict) or said.get("key") != self.key:
            return None
        found = open_arrays(self.path)
        return None if found is None else Ready(found[1], found[0].get("calibration", {}))

    def save(self, arrays: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> bool:
        """Keep it; False where nothing can be written."""
        return save_arrays(self.path, {"key": self.key, "calibration": calibration}, arrays)
