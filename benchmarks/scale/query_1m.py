"""A million vectors: the search in use beside exact search and FAISS's indices, and whole answers of such a library.

The vectors are made up (:mod:`.made_up`); right is what a search through all of them finds. In use is what Retrieve
asks for: the best z-scores of weights, approximately where the library is large (``autolora_core/library/quick.py``).
The other kinds are compared by plain inner products, as are those two once more.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from autolora_core.encode.text_cache import CachedTower
from autolora_core.encode.threads import one_thread
from autolora_core.encode.towers import default_tower
from autolora_core.library import quick as switch
from autolora_core.library.approximate import Approximate
from autolora_core.library.table import Table
from benchmarks.scale import index_kinds
from benchmarks.scale.made_up import Parts, many_vectors
from benchmarks.scale.query_1m_answers import AS_ASKED, BY_WEIGHTS, compared, in_memory, ready

ASKED = 100
IN_USE, EXACT_SEARCH = "in use", "eight-bit bounds, exact"


@one_thread()
def search_row(name: str, search: Table | Approximate, asked: dict, right: dict, seconds: float) -> dict[str, Any]:
    """One of the library's own searches, as :func:`.index_kinds.measure_kind` tells of an index; on the threads that
    Retrieve gives it."""
    row: dict[str, Any] = {"index": name, "vectors": len(right["table"]), "effort": 0, "build_s": seconds,
                           "size_mb": search.nbytes / 2**20}  # fmt: skip
    if isinstance(search, Approximate):
        row |= {"effort": search.measured.candidates, "bytes_a_vector": search.nbytes / len(search.table)}
        row |= {"tried_recall_at_10": search.measured.recall, "tried_recall_at_50": search.measured.deep}
    for kind, those in asked.items():
        hits, times = [], []
        for query, best in zip(those, right[kind].tolist(), strict=True):
            began = time.perf_counter()
            found, _ = search.best(query, index_kinds.NEAREST)
            times.append(1000 * (time.perf_counter() - began))
            hits.append(len(set(found.tolist()) & set(best)) / index_kinds.NEAREST)
        row |= {f"{kind}_recall_at_10": float(np.mean(hits)), f"{kind}_p50_ms": float(np.median(times)),
                f"{kind}_p95_ms": float(np.percentile(times, 95))}  # fmt: skip
    return row


def own_rows(label: str, table: Table, search: Approximate, asked: dict, seconds: float) -> list[dict[str, Any]]:
    """Approximate and exact search of one table."""
    right = {kind: index_kinds.truth(table.rows, those, table.scale, table.shift) for kind, those in asked.items()}
    right["table"] = table.rows
    found = search_row(f"{IN_USE}: FAISS PQ of axes, {label}", search, asked, right, seconds)
    began, anew = time.perf_counter(), Table(table.rows, table.scale, table.shift)
    anew.best(asked["texts"][0], index_kinds.NEAREST)
    return [found, search_row(f"{EXACT_SEARCH}, {label}", anew, asked, right, time.perf_counter() - began)]


def plain(rows: np.ndarray, asked: dict) -> list[dict[str, Any]]:
    """The library's own two searches by inner products, tried with texts that are not asked afterwards."""
    table = Table(rows)
    tried = switch.Quick(table, [str(i) for i in range(len(rows))], lambda: asked["texts"][1::2])
    began = time.perf_counter()
    tried.make()
    those = {"files": asked["files"], "texts": asked["texts"][::2]}
    return own_rows("inner products", table, tried.found, those, time.perf_counter() - began)


def measure(quick: bool = False) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A million vectors (quick: 12,000)."""
    torch.set_num_threads(index_kinds.THREADS)
    if quick:
        switch.FROM = 3_000
    parts = Parts.of()
    rows = many_vectors(parts, 12_000 if quick else index_kinds.VECTORS, 0)
    asked = index_kinds.queries(parts, 8 if quick else ASKED)
    tower = CachedTower(default_tower())
    view, _ = in_memory(rows, tower, parts)
    prepared, ready_s, build_s = ready(view, tower)
    search = prepared.scorer.quick.found
    own, exact = own_rows("z-scores", prepared.scorer.weight_table, search, asked, build_s)
    quarter = Table(rows[: len(rows) // 4])  # where it is switched
    right = {kind: index_kinds.truth(quarter.rows, those) for kind, those in asked.items()} | {"table": quarter.rows}
    small = search_row(f"{EXACT_SEARCH}, inner products", quarter, asked, right, 0.0)
    whole = compared(view, tower, prepared, 8 if quick else ASKED)
    of = {row["what"]: row for row in whole}
    right = {kind: index_kinds.truth(rows, those) for kind, those in asked.items()}
    table = [own, exact, *plain(rows, asked), small, *index_kinds.measure(rows, asked, right), *whole]
    figures = {
        "query_p95_ms_1m": max(own["files_p95_ms"], own["texts_p95_ms"]),
        "recall_at_10_1m": min(own["files_recall_at_10"], own["texts_recall_at_10"]),
        "query_exact_p95_ms_1m": max(exact["files_p95_ms"], exact["texts_p95_ms"]),
        "search_memory_mb_1m": own["size_mb"],
        "search_bytes_a_vector": own["bytes_a_vector"],
        "search_build_s_1m": build_s,
        "search_exact_memory_mb_1m": exact["size_mb"],
        "retrieve_p95_ms_1m": of[AS_ASKED]["p95_ms"],
        "retrieve_exact_p95_ms_1m": of[AS_ASKED]["exact_p95_ms"],
        "retrieve_by_weights_p95_ms_1m": of[BY_WEIGHTS]["p95_ms"],
        "retrieve_by_weights_exact_p95_ms_1m": of[BY_WEIGHTS]["exact_p95_ms"],
        "retrieve_same_picks_1m": min(row["same_picks"] / row["count"] for row in whole),
        "retrieve_same_none_1m": min(row["same_none"] / row["count"] for row in whole),
        "retrieve_ready_s_1m": ready_s,
    }
    return figures, table
