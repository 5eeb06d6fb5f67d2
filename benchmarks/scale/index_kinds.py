"""Which index finds the nearest of a million vectors: time, recall against exact search, time to build, memory.

Asked are vectors of files that are not in the index and real text vectors, as the retriever asks: those lie off the
files' own distribution, and cells that are good for the one may be bad for the other. Each kind's effort (``nprobe``)
is raised until recall at 10 is 0.98 for both. A graph (HNSW) is built of a tenth of the vectors only: one of all of
them is more than ten times the work.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from autolora_core.encode.towers import default_tower
from benchmarks.scale.made_up import Parts, manners, many_vectors, subjects, unit

NEAREST, WANTED, ASKED, THREADS = 10, 0.98, 100, 2
EFFORTS = (8, 16, 32, 64, 128, 256, 512)
VECTORS, GRAPH_SHARE = 1_000_000, 10
RESCORED = 30 * NEAREST  # candidates of a lossy index that are scored again with the true vectors


def queries(parts: Parts, count: int, seed: int = 7) -> dict[str, np.ndarray]:
    """``files``: vectors of files that the index does not hold; ``texts``: phrases of prompts, about the centre."""
    rng = np.random.default_rng(seed)
    things, ways = subjects(), manners()
    said = [
        f"{things[rng.integers(len(things))]} in {ways[rng.integers(len(ways))]} style" if i % 2 else
        things[rng.integers(len(things))]
        for i in range(count)
    ]  # fmt: skip
    texts = default_tower().encode(said)
    return {"files": many_vectors(parts, count, 10**6 + seed), "texts": unit(texts - parts.centre)}


def truth(
    rows: np.ndarray, asked: np.ndarray, scale: np.ndarray | None = None, shift: np.ndarray | None = None
) -> np.ndarray:
    """(q, NEAREST) the best rows by exact search, in blocks; scores are ``scale ⟨row, q⟩ + shift``."""
    best, at = np.full((len(asked), 0), 0.0, np.float32), np.zeros((len(asked), 0), np.int64)
    for start in range(0, len(rows), 50_000):
        block = slice(start, start + 50_000)
        scores = asked @ rows[block].T
        if scale is not None:
            scores = scores * scale[block] + shift[block]
        best = np.concatenate([best, scores], axis=1)
        at = np.concatenate([at, np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)], axis=1)
        keep = np.argpartition(-best, NEAREST - 1, axis=1)[:, :NEAREST]
        best, at = np.take_along_axis(best, keep, axis=1), np.take_along_axis(at, keep, axis=1)
    return at


def builders(rows: np.ndarray) -> dict[str, Callable[[], tuple[Any, str]]]:
    """Name → what makes the index, and the name of its effort. The cells are learnt once for all that have any."""
    import faiss

    dim, cells = rows.shape[1], int(min(4096, 4 * len(rows) ** 0.5))
    coarse: list[Any] = []

    def quantiser() -> Any:
        if not coarse:
            kmeans = faiss.Kmeans(dim, cells, niter=8, seed=0, spherical=True, max_points_per_centroid=40)
            kmeans.train(rows)
            coarse.append(faiss.IndexFlatIP(dim))
            coarse[0].add(kmeans.centroids)
        return coarse[0]

    def filled(index: Any) -> Any:
        index.own_fields = False
        index.train(rows[:: max(1, len(rows) // 100_000)])
        for start in range(0, len(rows), 50_000):
            index.add(rows[start : start + 50_000])
        return index

    ip = faiss.METRIC_INNER_PRODUCT

    def fast_scan() -> Any:
        index = faiss.IndexIVFPQFastScan(quantiser(), dim, cells, dim // 2, 4, ip)
        index.by_residual = False
        return index

    sq8 = faiss.ScalarQuantizer.QT_8bit
    return {
        "Flat": lambda: (_flat(faiss, rows), ""),
        "IVF-SQ8": lambda: (filled(faiss.IndexIVFScalarQuantizer(quantiser(), dim, cells, sq8, ip)), "nprobe"),
        "IVF-PQ4": lambda: (filled(fast_scan()), "nprobe"),
    }


def _flat(faiss: Any, rows: np.ndarray) -> Any:
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return index


def ask(index: Any, rows: np.ndarray, asked: np.ndarray, lossy: bool) -> tuple[np.ndarray, np.ndarray]:
    """(q, NEAREST) rows found one question at a time, best first by their true products, and milliseconds each."""
    found, times = [], []
    for query in asked:
        began = time.perf_counter()
        ids = index.search(query[None], RESCORED if lossy else 2 * NEAREST)[1][0]
        ids = ids[ids >= 0]
        order = np.argsort(-(rows[ids].astype(np.float64) @ query.astype(np.float64)), kind="stable")[:NEAREST]
        times.append(1000 * (time.perf_counter() - began))
        found.append(np.pad(ids[order], (0, NEAREST - len(order)), constant_values=-1))
    return np.array(found), np.array(times)


def stored_mb(index: Any) -> float:
    """Size on disk, which is what it takes in memory, too."""
    import faiss

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.faiss"
        faiss.write_index(index, str(path))
        return path.stat().st_size / 2**20


def measure_kind(name: str, make: Callable, rows: np.ndarray, asked: dict, right: dict) -> list[dict[str, Any]]:
    """A row for every effort up to the one that is good enough for all kinds of question."""
    began = time.perf_counter()
    index, effort = make()
    seconds = time.perf_counter() - began
    size = stored_mb(index)
    out = []
    for value in EFFORTS if effort else (0,):
        if effort == "nprobe":
            index.nprobe = value
        elif effort == "efSearch":
            index.hnsw.efSearch = value
        row = {"index": name, "vectors": len(rows), "effort": value, "build_s": seconds, "size_mb": size}
        for kind, queries_ in asked.items():
            found, times = ask(index, rows, queries_, lossy=name.startswith("IVF"))
            hits = [len(set(a) & set(b)) / NEAREST for a, b in zip(found.tolist(), right[kind].tolist(), strict=True)]
            row |= {f"{kind}_recall_at_10": float(np.mean(hits)), f"{kind}_p50_ms": float(np.median(times)),
                    f"{kind}_p95_ms": float(np.percentile(times, 95))}  # fmt: skip
        out.append(row)
        if min(row[f"{kind}_recall_at_10"] for kind in asked) >= WANTED:
            break
    del index
    gc.collect()
    return out


def measure(rows: np.ndarray, asked: dict, right: dict) -> list[dict[str, Any]]:
    """Every kind, one after the other."""
    import faiss

    faiss.omp_set_num_threads(THREADS)
    table = []
    for name, make in builders(rows).items():
        table += measure_kind(name, make, rows, asked, right)
    some = rows[: len(rows) // GRAPH_SHARE]
    right = {kind: truth(some, those) for kind, those in asked.items()}
    return table + measure_kind("HNSW32", lambda: (_graph(faiss, some), "efSearch"), some, asked, right)


def _graph(faiss: Any, rows: np.ndarray) -> Any:
    index = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 40
    for start in range(0, len(rows), 50_000):
        index.add(rows[start : start + 50_000])
    return index
