"""One short row a file whose inner products estimate ⟨ΔW_a, ΔW_b⟩: thousands of files in one matrix product.

A row is the file's product sketches (:mod:`..encode.sketch`), each with its norm put back, under random signs of the
module's own, summed over modules. It is linear in ΔW, so the row of a weighted sum is the weighted sum of the rows:
what a LoRA leaves of another can be searched for too (orthogonal matching pursuit, Pati et al. 1993).

Rows depend on one file alone. They are kept in ``grid-<sketch id>.safetensors`` beside the library: a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import portable
from ..encode.features import ModuleFeatures, size_for
from ..errors import FileFormatError
from ..lora.header import read_header
from ..portable import load_whole
from .array_file import MAPPED_FROM, mapped, sha256_of
from .sketches import read_sketches, sketch_id
from .store import write_atomically

if TYPE_CHECKING:
    from .index import Library

log = logging.getLogger(__name__)
WIDTH = 1024
VERSION = "1"
_BLOCK = 256
# 40 MB of ten thousand files: one for all who ask.
MAX_HELD = 2
_held: OrderedDict[tuple[str, tuple[str, ...]], Grid] = OrderedDict()
_held_lock = threading.Lock()


@dataclass(frozen=True)
class Grid:
    """``rows`` (n, WIDTH) float32 in units of ΔW; row i belongs to ``hashes[i]`` (sorted)."""

    family: str
    hashes: tuple[str, ...]
    rows: np.ndarray

    @cached_property
    def places(self) -> dict[str, int]:
        """Content → its row."""
        return {digest: at for at, digest in enumerate(self.hashes)}

    def cosines(self, row: np.ndarray) -> np.ndarray:
        """(n,) estimated cosines of all files with ``row`` (WIDTH,)."""
        norms = np.linalg.norm(self.rows, axis=1) * np.linalg.norm(row)
        return self.rows @ row.astype(np.float32) / np.maximum(norms, 1e-20)

    def residual(self, whole: np.ndarray, part: np.ndarray) -> np.ndarray:
        """``whole`` without its component along ``part``."""
        square = float(part @ part)
        return whole - part * (float(whole @ part) / square if square else 0.0)


def row_of(file: ModuleFeatures, family: str) -> np.ndarray:
    """(WIDTH,) float32: the row of one file."""
    return _rows_of({"": file}, family)[""]


def _signs(name: str, count: int) -> np.ndarray:
    """(count, WIDTH) float32 of ±1, a function of the module's name alone, the same for ever."""
    digest = hashlib.shake_128(f"grid {VERSION} {name}".encode()).digest(count * WIDTH // 8)
    bits = np.unpackbits(np.frombuffer(digest, np.uint8)).reshape(count, WIDTH)
    return bits.astype(np.float32) * 2 - 1


def open_grid(library: Library, family: str, tick: Callable[[int, int], None] = lambda done, total: None) -> Grid:
    """The rows of a family's encodable files that are present; only those not in the cache are computed."""
    hashes = tuple(sorted({entry.hash for entry in library.entries(family) if entry.hash}))
    path = library.folder / f"grid-{sketch_id(family)}.safetensors"
    known, matrix = _read(path)
    if known == hashes:
        return Grid(family, known, matrix)  # nothing is copied: of a large library it is mapped
    rows = dict(zip(known, matrix, strict=True))
    missing = [digest for digest in hashes if digest not in rows]
    fresh: dict[str, np.ndarray] = {}
    for start in range(0, len(missing), _BLOCK):
        tick(start, len(missing))
        found = read_sketches(library.store.db, missing[start : start + _BLOCK], family)
        fresh |= _rows_of(found, family)
    rows |= fresh
    if fresh:
        write_rows(path, sorted(rows), np.stack([rows[digest] for digest in sorted(rows)]))
    held = tuple(digest for digest in hashes if digest in rows)
    return Grid(family, held, np.stack([rows[digest] for digest in held]) if held else np.zeros((0, WIDTH), np.float32))


def held_grid(library: Library, family: str, tick: Callable[[int, int], None] = lambda done, total: None) -> Grid:
    """:func:`open_grid`, kept in memory for the families asked for last; it must not be changed."""
    key = sketch_id(family), tuple(sorted({entry.hash for entry in library.entries(family) if entry.hash}))
    with _held_lock:
        if key in _held:
            _held.move_to_end(key)
            return _held[key]
    found = open_grid(library, family, tick)
    with _held_lock:
        _held[key] = found
        while len(_held) > MAX_HELD:
            _held.popitem(last=False)
    return found


def _rows_of(files: Mapping[str, ModuleFeatures], family: str) -> dict[str, np.ndarray]:
    """Files of one trainer have one module list: their rows are made together, a module at a time."""
    product = size_for(family).slices[0]
    groups: dict[tuple[str, ...], list[str]] = {}
    for digest, file in files.items():
        groups.setdefault(file.modules, []).append(digest)
    out: dict[str, np.ndarray] = {}
    for modules, members in groups.items():
        total = np.zeros((len(members), WIDTH))
        for at, name in enumerate(modules):
            values = np.stack([files[digest].rows[at, product] for digest in members]).astype(np.float32)
            norms = np.exp([float(files[digest].log_norms[at]) for digest in members])
            total += norms[:, None] * (values @ _signs(name, values.shape[1]))
        rows = (total / WIDTH**0.5).astype(np.float32)
        out |= dict(zip(members, rows, strict=True))
    return out


def _read(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """The cached contents and their rows; none when there is no cache, or it is damaged or of another version."""
    from safetensors import SafetensorError

    nothing = (), np.zeros((0, WIDTH), np.float32)
    if not path.is_file():
        return nothing
    try:
        rows, said, digest = _rows_in(path)
        hashes = tuple(json.loads(said.get("hashes", "[]")))
        if said.get("version") == VERSION and said.get("sha256") == digest and rows.shape == (len(hashes), WIDTH):
            return hashes, rows
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        log.warning("%s cannot be used (%s); making it again", path, error)
        return nothing
    log.warning("%s is damaged or of another version; making it again", path)
    return nothing


def _rows_in(path: Path) -> tuple[np.ndarray, dict[str, str], str]:
    """Rows, metadata and the rows' checksum of a file; the rows are mapped where they are many."""
    if path.stat().st_size >= MAPPED_FROM and not portable.WINDOWS:
        with contextlib.suppress(FileFormatError), open(path, "rb") as file:
            header = read_header(path)  # names of a million files are more than it takes
            rows = header.tensors["rows"]
            if rows.dtype == "F32":
                digest = sha256_of(file, rows.start, rows.stop - rows.start)
                return mapped(file, "<f4", rows.start, tuple(rows.shape)), dict(header.metadata), digest
    tensors, said = load_whole(path)
    return tensors["rows"].numpy(), said, _checksum(tensors["rows"].numpy())


def write_rows(path: Path, hashes: Sequence[str], rows: np.ndarray) -> None:
    """Write the cache: ``rows`` (n, WIDTH) float32 of ``hashes`` (sorted)."""
    from safetensors.numpy import save

    matrix = np.ascontiguousarray(rows, "<f4")
    said = {"version": VERSION, "hashes": json.dumps(list(hashes)), "sha256": _checksum(matrix)}
    try:
        write_atomically(path, save({"rows": matrix}, said))
    except OSError as error:
        log.warning("%s could not be written (%s); it is made again next time", path, error)


def _checksum(rows: np.ndarray) -> str:
    return hashlib.sha256(memoryview(np.ascontiguousarray(rows, "<f4")).cast("B") if rows.size else b"").hexdigest()
