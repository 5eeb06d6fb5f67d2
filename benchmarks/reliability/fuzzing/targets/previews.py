"""Records of rendered previews: what is not whole counts as not rendered, and directions are finite."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from autolora_core.previews.shelf import FOLDER, PreviewShelf, Record, preview_vectors

from .. import document
from ..memory import MIB
from ..oracle import Wrong

CASES = 500
WHOLE, BROKEN = "0" * 64, "1" * 64


def bound(size: int) -> int:
    return 16 * MIB + 40 * size


def seeds(folder: Path) -> list[bytes]:
    shelf = PreviewShelf(folder / "base")
    found = []
    for spaces in (("latents",), ("latents", "clip")):
        vectors = {space: np.arange(8, dtype=np.float32).reshape(2, 4) + 1 for space in spaces}
        shelf.put(WHOLE, Record("settings", vectors, {space: f"{space}-tower" for space in spaces}, "otter"), [])
        found.append((shelf.folder / f"{WHOLE}.safetensors").read_bytes())
    return found


def make(rng: random.Random, parent: bytes) -> bytes:
    metadata = ("format", "settings", "name", "tower.latents", "tower.clip")
    return document.lie(rng, parent, ("latents", "clip", "other"), metadata)


def run(data: bytes, folder: Path) -> None:
    shelf = PreviewShelf(folder / "base")
    (folder / "base" / FOLDER / f"{BROKEN}.safetensors").write_bytes(data)
    record, found = shelf.record(BROKEN), preview_vectors(shelf)
    if record is not None and not all(rows.ndim == 2 and np.isfinite(rows).all() for rows in record.vectors.values()):
        raise Wrong("a record has vectors that are no rows of finite numbers")
    if not np.isfinite(found.matrix).all() or len(found.hashes) != len(found.matrix):
        raise Wrong("directions that are not finite")
