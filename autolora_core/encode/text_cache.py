"""A text tower that remembers, bit for bit."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import numpy as np

from .towers import TextTower


class CachedTower:
    """Wraps a tower; every text is encoded once. Same ``id``, same numbers, because towers encode text by text.

    ``store`` maps ``"<tower id>\\n<text>"`` to the float32 bytes of its vector: a dict (default), or any mapping kept
    on disk.
    """

    def __init__(self, tower: TextTower, store: MutableMapping[str, bytes] | None = None):
        self.tower = tower
        self.store = {} if store is None else store

    @property
    def id(self) -> str:
        """The wrapped tower's."""
        return self.tower.id

    @property
    def dim(self) -> int:
        """The wrapped tower's."""
        return self.tower.dim

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, dim), as the wrapped tower gives."""
        keys = [f"{self.id}\n{text}" for text in texts]
        found = {key: raw for key in set(keys) if (raw := self.store.get(key)) is not None}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if missing:
            rows = self.tower.encode(list(missing.values()))
            new = {key: np.ascontiguousarray(row, np.float32).tobytes() for key, row in zip(missing, rows, strict=True)}
            self.store.update(new)
            found |= new
        rows = [np.frombuffer(found[key], np.float32) for key in keys]
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)


def cached(tower: TextTower) -> CachedTower:
    """``tower`` itself when it already remembers, else wrapped."""
    return tower if isinstance(tower, CachedTower) else CachedTower(tower)
