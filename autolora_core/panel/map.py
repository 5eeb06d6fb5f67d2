"""The map of one base family: a place, a group and a content for every LoRA whose weights have a vector.

Made once for each state of the library, in seconds, and kept beside it in ``map-<id>.safetensors``: a cache, taken only
when it is of this state and whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..encode.threads import one_thread
from ..library.entries import Entry
from ..library.index import Library
from ..library.store import write_atomically
from ..portable import load_whole
from .answers import Stop, Stopped, ticking
from .asked import Asked
from .catalogue import catalogue_of
from .clusters import cluster, name_clusters
from .layout import lay_out, principal

log = logging.getLogger(__name__)
VERSION = "1"
MAGIC = b"ALM1"
_HASH = 32  # bytes of a SHA-256
_making: dict[str, threading.Lock] = {}


@dataclass(frozen=True)
class Map:
    """``places`` (n, 2) float32 in [−1, 1], ``home`` (n,) uint16, ``hashes`` (n, 32) uint8; ``labels`` of the groups,
    and what the vectors were (``by``)."""

    family: str
    places: np.ndarray
    home: np.ndarray
    hashes: np.ndarray
    labels: list[list[str]]
    by: str


def draw_map(library: Library, asked: Asked, stop: Stop) -> bytes:
    """The map of ``asked.family`` (the largest when empty) as the page takes it, little-endian: ``ALM1``, uint32 length
    of a JSON text and the text (filled with spaces to a multiple of four bytes), x and y float32 one after the other,
    uint16 groups, 32 bytes of SHA-256 each. Raises :class:`Stopped` when nobody waits any more."""
    catalogue = catalogue_of(library)
    family = asked.family or next((name for name in catalogue.families if name != "unknown"), "unknown")
    if family not in catalogue.families:
        family = "unknown"
    found = map_of(library, family, stop)
    said = {"generation": str(catalogue.generation), "family": family, "count": len(found.home), "labels": found.labels,
            "sizes": np.bincount(found.home, minlength=len(found.labels)).tolist(), "by": found.by,
            "families": catalogue.select("").families}  # fmt: skip
    text = json.dumps(said).encode()
    text += b" " * (-len(text) % 4)
    parts = (found.places.astype("<f4"), found.home.astype("<u2"), found.hashes)
    return MAGIC + struct.pack("<I", len(text)) + text + b"".join(part.tobytes() for part in parts)


@one_thread()
def map_of(library: Library, family: str, stop: Stop = lambda: False) -> Map:
    """The map of a family, from the cache where it is of this state of the library."""
    generation = library.generation  # before the entries: what is read in between makes the map anew next time
    entries: dict[str, Entry] = {entry.hash: entry for entry in library.entries(family) if entry.hash}
    state, path = f"{VERSION} {generation} {len(entries)}", map_path(library.folder, family)
    with _making.setdefault(str(path), threading.Lock()):
        if stop():
            raise Stopped
        held = _read(path, family, state)
        if held is None:
            held = _made(library, family, entries, stop)
            _write(path, held, state)
        return held


def map_path(folder: Path, family: str) -> Path:
    """Where the map of a family is kept. Names of families come out of the index: they do not become names of files."""
    return folder / f"map-{hashlib.sha256(family.encode('utf-8', 'replace')).hexdigest()[:12]}.safetensors"


def _made(library: Library, family: str, entries: dict[str, Entry], stop: Stop) -> Map:
    hashes, vectors, by = _vectors(library, family, stop)
    rows = [at for at, digest in enumerate(hashes) if digest in entries]
    vectors, held = vectors[rows], [entries[hashes[at]] for at in rows]
    if not held:
        return Map(family, np.zeros((0, 2), np.float32), np.zeros(0, np.uint16), np.zeros((0, _HASH), np.uint8), [], by)
    home = cluster(vectors, ticking(stop))
    packed = np.frombuffer(b"".join(bytes.fromhex(entry.hash) for entry in held), np.uint8).reshape(-1, _HASH)
    return Map(family, lay_out(vectors, ticking(stop)), home, packed, name_clusters(held, home), by)


def _vectors(library: Library, family: str, stop: Stop) -> tuple[Sequence[str], np.ndarray, str]:
    """Hashes, unit rows (n, d) and what they are: what the weights mean, or the weights themselves where no encoder of
    this library is of use."""
    encoder = library.encoder(family)
    if encoder is not None and encoder.usable:
        found = library.vectors(family, encoder.id)
        if len(found.hashes):
            return found.hashes, np.asarray(found.matrix, np.float32), "what the weights mean"
    grid = library.grid(family, ticking(stop))
    rows = principal(grid.rows, 64) if len(grid.hashes) > 64 else grid.rows
    norms = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-20)
    return grid.hashes, (rows / norms).astype(np.float32), "the weights themselves"


def _checksum(tensors: dict[str, np.ndarray], said: str) -> str:
    parts = hashlib.sha256(said.encode())
    for name in sorted(tensors):
        parts.update(np.ascontiguousarray(tensors[name]).tobytes())
    return parts.hexdigest()


def _write(path: Path, found: Map, state: str) -> None:
    from safetensors.numpy import save

    tensors = {"places": found.places, "home": found.home, "hashes": found.hashes}
    said = {"family": found.family, "state": state, "labels": json.dumps(found.labels), "by": found.by}
    said["sha256"] = _checksum(tensors, json.dumps(said, sort_keys=True))
    try:
        write_atomically(path, save({name: np.ascontiguousarray(part) for name, part in tensors.items()}, said))
    except OSError as error:
        log.warning("%s could not be written (%s); the map is made again next time", path, error)


def _read(path: Path, family: str, state: str) -> Map | None:
    """The map that is kept; None for none, one of another state, or a damaged one."""
    from safetensors import SafetensorError

    if not path.is_file():
        return None
    try:
        loaded, said = load_whole(path)
        tensors = {name: loaded[name].numpy() for name in ("places", "home", "hashes")}
        whole = said.pop("sha256", "") == _checksum(tensors, json.dumps(said, sort_keys=True))
        if not whole or said.get("state") != state or said.get("family") != family:
            return None
        count = len(tensors["home"])
        shapes = {"places": (count, 2), "home": (count,), "hashes": (count, _HASH)}
        if any(tensors[name].shape != shape for name, shape in shapes.items()):
            return None
        return Map(family, *tensors.values(), json.loads(said["labels"]), said["by"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        log.warning("%s cannot be used (%s); making it again", path, error)
        return None
