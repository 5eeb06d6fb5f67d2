"""Vectors of one encoder, searched exactly: FAISS ``IndexFlatIP`` in a file, or NumPy where FAISS is absent.

SQLite holds the truth. ``vectors-<encoder id>.faiss`` is a cache of it that loads fast: a plain FAISS file followed by
a trailer with the order of its rows and a checksum, so that a damaged or outdated file is noticed and made again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from ..errors import EncoderMismatchError
from .store import Store, write_atomically

log = logging.getLogger(__name__)
_MAGIC = b"AUTOLORA-VECS-1\n"
_TRAILER = len(_MAGIC) + 2 * hashlib.sha256().digest_size
# FAISS sums in float32: this many more than asked for are scored again in float64, so that both paths agree.
_MARGIN = 32


def _faiss() -> ModuleType | None:
    """FAISS, or None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


@dataclass(frozen=True)
class VectorIndex:
    """``matrix`` (n, d) float32, unit rows; row i belongs to the content ``hashes[i]`` (sorted). ``flat`` is FAISS's
    index over the same rows, or None."""

    encoder_id: str
    hashes: tuple[str, ...]
    matrix: np.ndarray
    flat: object | None = None

    def search(self, query: np.ndarray, k: int) -> list[tuple[str, float]]:
        """The ``k`` contents with the largest inner product with ``query`` (d,), best first, ties by hash.

        Scores are float64 products of the float32 values; the same with and without FAISS.
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
        rows = np.arange(len(self.hashes))
        if self.flat is not None and k + _MARGIN < len(rows):
            rows = np.sort(self.flat.search(query[None], k + _MARGIN)[1][0])
        scores = self.matrix[rows].astype(np.float64) @ query.astype(np.float64)
        best = np.lexsort((rows, -scores))[:k]
        return [(self.hashes[rows[i]], float(scores[i])) for i in best]


def open_vectors(store: Store, encoder_id: str) -> VectorIndex:
    """All vectors of ``encoder_id`` in this library; the FAISS file is made again when it does not match SQLite."""
    hashes = tuple(
        row[0] for row in store.db.execute("SELECT hash FROM vectors WHERE encoder_id = ? ORDER BY hash", (encoder_id,))
    )
    faiss = _faiss()
    if faiss is None or not hashes:
        return VectorIndex(encoder_id, hashes, _from_database(store, encoder_id, hashes))
    path = vectors_path(store.folder, encoder_id)
    flat = _from_file(faiss, path, hashes)
    if flat is None:
        matrix = _from_database(store, encoder_id, hashes)
        flat = faiss.IndexFlatIP(matrix.shape[1])
        flat.add(matrix)
        _to_file(faiss, path, flat, hashes)
    return VectorIndex(encoder_id, hashes, flat.reconstruct_n(0, flat.ntotal), flat)


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


def _to_file(faiss: ModuleType, path: Path, flat: object, hashes: tuple[str, ...]) -> None:
    body = faiss.serialize_index(flat).tobytes() + _MAGIC + _order(hashes)
    try:
        write_atomically(path, body + hashlib.sha256(body).digest())
    except OSError as error:
        log.warning("%s could not be written (%s); it is made again next time", path, error)


def _from_file(faiss: ModuleType, path: Path, hashes: tuple[str, ...]) -> object | None:
    """The FAISS index in ``path``, or None when it is absent, damaged or of other rows."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read (%s); using the database", path, error)
        return None
    body, checksum = data[:-32], data[-32:]
    if len(data) < _TRAILER or hashlib.sha256(body).digest() != checksum:
        log.warning("%s is damaged; making it again from the database", path)
        return None
    if body[len(data) - _TRAILER :] != _MAGIC + _order(hashes):
        return None  # files came or went since it was written
    return faiss.deserialize_index(np.frombuffer(body[: len(data) - _TRAILER], np.uint8))
