"""Proves that search is exact, the same with and without FAISS, that a damaged cache never matters, and that a good one
is not read before it is used."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from autolora_core.errors import EncoderMismatchError
from autolora_core.library import vectors
from autolora_core.library.store import Store, now
from autolora_core.library.vectors import open_vectors, store_vectors, vectors_path

ENCODER = "ridge-0123456789ab"


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def filled(tmp_path):
    """A library with 300 vectors, the last hundred copies of the first, under hashes in scrambled order."""
    rows = unit_rows(200, 16)
    rows = np.concatenate([rows, rows[:100]])
    hashes = [f"{(i * 7919) % 100_003:064x}" for i in range(len(rows))]
    with Store(tmp_path) as store:
        with store.transaction():
            store_vectors(store, ENCODER, "schema", "tower", list(zip(hashes, rows, strict=True)), now())
        yield store, dict(zip(hashes, rows, strict=True))


def brute_force(vectors: dict[str, np.ndarray], query: np.ndarray, k: int) -> list[tuple[str, float]]:
    scores = [(h, sum(float(a) * float(b) for a, b in zip(v, query, strict=True))) for h, v in vectors.items()]
    return sorted(scores, key=lambda item: (-round(item[1], 9), item[0]))[:k]


@pytest.mark.parametrize("with_faiss", [True, False])
@pytest.mark.parametrize("k", [1, 7, 299, 300, 500])
def test_search_equals_brute_force(filled, monkeypatch, with_faiss, k):
    store, vectors = filled
    if not with_faiss:
        monkeypatch.setitem(sys.modules, "faiss", None)
    index = open_vectors(store, ENCODER)
    assert vectors_path(store.folder, ENCODER).exists() == with_faiss
    for query in unit_rows(5, 16, seed=1):
        found, expected = index.search(query, k), brute_force(vectors, query, k)
        assert [h for h, _ in found] == [h for h, _ in expected]
        np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-12)


def test_file_is_made_once_and_reused(filled):
    store, _ = filled
    open_vectors(store, ENCODER)
    path = vectors_path(store.folder, ENCODER)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    open_vectors(store, ENCODER)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_file_is_plain_faiss(filled):
    import faiss

    store, vectors = filled
    index = open_vectors(store, ENCODER)
    read = faiss.read_index(str(vectors_path(store.folder, ENCODER)))
    np.testing.assert_array_equal(read.reconstruct_n(0, read.ntotal), index.matrix)
    np.testing.assert_array_equal(index.matrix, np.stack([vectors[h] for h in sorted(vectors)]))


DAMAGES = ["flip", "flip a head", "flip a checksum", "longer", "cut", "empty", "garbage", "other rows"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_made_again(filled, damage):
    store, vectors = filled
    query = unit_rows(1, 16, seed=2)[0]
    expected = open_vectors(store, ENCODER).search(query, 10)
    path = vectors_path(store.folder, ENCODER)
    good = path.read_bytes()
    if damage == "flip":
        path.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    elif damage.startswith("flip a"):
        at = 10 if damage == "flip a head" else len(good) - 200
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    elif damage == "longer":
        path.write_bytes(good + b"more")
    elif damage == "cut":
        path.write_bytes(good[: len(good) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"\x80\x04pickle" * 500)
    else:
        extra = f"{2**200:064x}"
        with store.transaction():
            store_vectors(store, ENCODER, "schema", "tower", [(extra, -query)], now())
    assert open_vectors(store, ENCODER).search(query, 10) == expected
    if damage != "other rows":
        assert path.read_bytes() == good


def test_encoders_do_not_mix(filled):
    store, vectors = filled
    digest = min(vectors)
    with store.transaction():
        store_vectors(store, "other", "schema", "tower2", [(digest, np.ones(8, np.float32))], now())
    assert len(open_vectors(store, ENCODER).hashes) == 300
    other = open_vectors(store, "other")
    assert other.hashes == (digest,) and other.matrix.shape == (1, 8)
    with pytest.raises(EncoderMismatchError, match="shape"):
        other.search(np.ones(16, np.float32), 1)
    row = store.db.execute("SELECT schema_id, tower_id FROM vectors WHERE encoder_id = 'other'").fetchone()
    assert row == ("schema", "tower2")


def test_no_vectors_at_all(tmp_path):
    with Store(tmp_path) as store:
        assert open_vectors(store, ENCODER).hashes == ()
        assert not vectors_path(tmp_path, ENCODER).exists()


@pytest.mark.parametrize("mapped", [True, False])
def test_rows_are_read_and_checked_when_they_are_used(filled, monkeypatch, mapped):
    """Opened, the file may be damaged without anybody noticing; the first search notices, and makes it again."""
    store, found = filled
    monkeypatch.setattr(vectors, "MAPPED_FROM", 0 if mapped else 2**40)
    expected = open_vectors(store, ENCODER).search(unit_rows(1, 16, seed=2)[0], 10)
    path = vectors_path(store.folder, ENCODER)
    good = path.read_bytes()
    assert isinstance(open_vectors(store, ENCODER).matrix, np.memmap) == mapped
    reads = []
    monkeypatch.setattr(vectors, "_checksums", lambda matrix, real=vectors._checksums: reads.append(1) or real(matrix))
    index = open_vectors(store, ENCODER)
    assert not reads
    path.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    assert index.search(unit_rows(1, 16, seed=2)[0], 10) == expected and reads
    assert path.read_bytes() == good
