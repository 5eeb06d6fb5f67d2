"""Vectors of one encoder, searched exactly (:mod:`.table`), in a file that is opened without being read.

SQLite holds the truth. ``vectors-<encoder id>.faiss`` is a cache of it: a plain FAISS file, so that other programs can
read it, followed by checksums of its blocks and by a footer that says which rows it holds. Opening it reads the footer;
the rows are mapped, and checked block by block, when they are first used. A damaged or outdated file is made again.
"""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType

import numpy as np

from ..errors import EncoderMismatchError
from ..portable import write_whole
from .store import Store
from .table import Table

log = logging.getLogger(__name__)
_MAGIC = b"AUTOLORA-VECS-2\n"
# Bytes of the FAISS part, rows, numbers a row; then the SHA-256 of the rows' order and of all that is not rows.
_SIZES = struct.Struct("<qqq")
_HASH = hashlib.sha256().digest_size
_FOOTER = len(_MAGIC) + _SIZES.size + 2 * _HASH
_BLOCK = 1 << 22
# Smaller files are read whole: a map saves little, and a file that is cut off while it is mapped ends the program.
MAPPED_FROM = 32 << 20


def _faiss() -> ModuleType | None:
    """FAISS, or None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


class VectorIndex:
    """Row i of ``matrix`` (n, d) float32, unit rows, belongs to the content ``hashes[i]`` (sorted); ``load`` reads it
    when it is first asked for. ``folder`` is the library's."""

    def __init__(self, folder: Path, encoder_id: str, hashes: tuple[str, ...], load: Callable[[], np.ndarray]):
        self.folder, self.encoder_id, self.hashes, self._load = folder, encoder_id, hashes, load

    @cached_property
    def matrix(self) -> np.ndarray:
        """(n, d) float32, not to be changed."""
        return self._load()

    @cached_property
    def _table(self) -> Table:
        return Table(self.matrix)

    def search(self, query: np.ndarray, k: int) -> list[tuple[str, float]]:
        """The ``k`` contents with the largest inner product with ``query`` (d,), best first, ties by hash.

        Scores are float64 products of the float32 values.
        """
        query = np.ascontiguousarray(query, np.float32)
        if not self.hashes:
            return []
        if query.shape != (self.matrix.shape[1],):
            raise EncoderMismatchError(
                f"a query of shape {query.shape} met vectors of {self.matrix.shape[1]} numbers",
                key=self.encoder_id,
                fix="encode the library again with the tower now in use",
            )
        rows, scores = self._table.best(query, k)
        return [(self.hashes[row], float(score)) for row, score in zip(rows, scores, strict=True)]


def open_vectors(store: Store, encoder_id: str) -> VectorIndex:
    """All vectors of ``encoder_id`` in this library; the file is made again when it does not match SQLite."""
    rows = store.db.execute("SELECT hash FROM vectors WHERE encoder_id = ? ORDER BY hash", (encoder_id,))
    hashes = tuple(row[0] for row in rows)
    faiss, path = _faiss(), vectors_path(store.folder, encoder_id)

    def made() -> np.ndarray:
        matrix = _from_database(store, encoder_id, hashes)
        if faiss is not None and hashes:
            _to_file(faiss, path, matrix, hashes)
        return matrix

    if faiss is None or not hashes:
        return VectorIndex(store.folder, encoder_id, hashes, made)
    found = _footer(path, hashes)
    if found is None:
        matrix = made()
        return VectorIndex(store.folder, encoder_id, hashes, lambda: matrix)

    def load() -> np.ndarray:
        matrix = _rows(path, *found)
        return made() if matrix is None else matrix

    return VectorIndex(store.folder, encoder_id, hashes, load)


def vectors_path(folder: Path, encoder_id: str) -> Path:
    """Where the FAISS file of an encoder lies."""
    return folder / f"vectors-{encoder_id}.faiss"


def store_vectors(
    store: Store, encoder_id: str, schema_id: str, tower_id: str, rows: Sequence[tuple[str, np.ndarray]], date: str
) -> None:
    """Add ``(hash, unit vector (d,))`` rows inside the caller's transaction, with where they came from."""
    packed = [
        (digest, encoder_id, schema_id, tower_id, np.ascontiguousarray(vector, "<f4").tobytes(), date)
        for digest, vector in rows
    ]
    store.db.executemany("INSERT OR REPLACE INTO vectors VALUES (?,?,?,?,?,?)", packed)


def _from_database(store: Store, encoder_id: str, hashes: tuple[str, ...]) -> np.ndarray:
    cursor = store.db.execute("SELECT vector FROM vectors WHERE encoder_id = ? ORDER BY hash", (encoder_id,))
    rows = [np.frombuffer(row[0], "<f4") for row in cursor]
    if len(rows) != len(hashes) or len({len(row) for row in rows}) > 1:
        raise EncoderMismatchError(
            "vectors of different lengths under one encoder",
            path=store.path,
            key=encoder_id,
            fix="delete the library folder and encode again",
        )
    return np.stack(rows).astype(np.float32) if rows else np.zeros((0, 0), np.float32)


def _order(hashes: tuple[str, ...]) -> bytes:
    return hashlib.sha256("\n".join(hashes).encode()).digest()


def _checksums(matrix: np.ndarray) -> bytes:
    """Of every block of the rows."""
    flat = matrix.reshape(-1).view(np.uint8)
    return b"".join(hashlib.sha256(flat[at : at + _BLOCK]).digest() for at in range(0, len(flat), _BLOCK))


def _to_file(faiss: ModuleType, path: Path, matrix: np.ndarray, hashes: tuple[str, ...]) -> None:
    flat = faiss.IndexFlatIP(matrix.shape[1])
    flat.add(matrix)

    def write(temporary: str) -> None:
        faiss.write_index(flat, temporary)
        with open(temporary, "r+b") as file:
            length = file.seek(0, 2)
            file.seek(0)
            head = file.read(length - matrix.nbytes)
            file.seek(0, 2)
            said = _checksums(matrix) + _MAGIC + _SIZES.pack(length, *matrix.shape) + _order(hashes)
            file.write(said + hashlib.sha256(head + said).digest())

    try:
        write_whole(path, write)
    except (OSError, RuntimeError) as error:  # FAISS has errors of its own
        log.warning("%s could not be written (%s); it is made again next time", path, error)


def _footer(path: Path, hashes: tuple[str, ...]) -> tuple[int, tuple[int, int], bytes] | None:
    """Where the rows begin in ``path``, their shape and the checksums of their blocks; None when the file is absent,
    damaged or of other rows. Of the rows nothing is read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - _FOOTER, 0))
            footer = file.read()
            length, count, width = _SIZES.unpack_from(footer, len(_MAGIC)) if len(footer) == _FOOTER else (0, 0, 0)
            bytes_ = 4 * count * width
            sums = -(-bytes_ // _BLOCK) * _HASH
            if footer[: len(_MAGIC)] != _MAGIC or length + sums + _FOOTER != size or not 0 < bytes_ < length:
                log.warning("%s is damaged or of another version; making it again from the database", path)
                return None
            file.seek(0)
            head = file.read(length - bytes_)
            file.seek(length)
            checksums = file.read(sums)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read (%s); using the database", path, error)
        return None
    if hashlib.sha256(head + checksums + footer[:-_HASH]).digest() != footer[-_HASH:]:
        log.warning("%s is damaged; making it again from the database", path)
        return None
    if count != len(hashes) or footer[-2 * _HASH : -_HASH] != _order(hashes):
        return None  # files came or went since it was written
    return length - bytes_, (count, width), checksums


def _rows(path: Path, start: int, shape: tuple[int, int], checksums: bytes) -> np.ndarray | None:
    """The rows, mapped or read, every block checked; None when they are damaged."""
    try:
        if 4 * shape[0] * shape[1] >= MAPPED_FROM:
            matrix = np.memmap(path, "<f4", "r", start, shape)
        else:
            matrix = np.fromfile(path, "<f4", shape[0] * shape[1], offset=start).reshape(shape)
        if _checksums(matrix) == checksums:
            return matrix
        log.warning("%s is damaged; making it again from the database", path)
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s); using the database", path, error)
    return None
