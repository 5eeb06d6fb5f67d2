"""Which files hang together: near-duplicates of near-duplicates are one group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def linked_groups(hashes: Sequence[str], pairs: Iterable[tuple[str, str]]) -> np.ndarray:
    """(n,) int: the same number for contents that hang together by ``pairs``; pairs of others are passed over."""
    parent = {digest: digest for digest in hashes}

    def root(digest: str) -> str:
        while parent[digest] != digest:
            parent[digest] = parent[parent[digest]]
            digest = parent[digest]
        return digest

    for a, b in pairs:
        if a in parent and b in parent:
            first, second = sorted((root(a), root(b)))
            parent[second] = first
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(root(digest), len(numbers)) for digest in hashes], np.int64)
