"""A million vectors: the library's own search beside FAISS's indices, and a whole answer of a library of that size.

The vectors are made up (:mod:`.made_up`); right is what a search through all of them in float32 finds. A whole answer
is asked of a library held in memory in which one LoRA in ten has words: those of a million would not fit beside the
vectors.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np
import torch

from autolora_core.encode.encoder import RidgeEncoder
from autolora_core.encode.text_cache import CachedTower
from autolora_core.encode.towers import default_tower
from autolora_core.library.table import Table
from autolora_core.retrieve.prepare import prepare
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.spans import decompose
from autolora_core.retrieve.view import MemoryView, ViewEntry, ViewText, ViewVectors
from benchmarks.scale import index_kinds
from benchmarks.scale.made_up import Parts, many_vectors, unit
from benchmarks.scale.made_up_library import FAMILY, Facts, encoder_of, prompts

ASKED, WORDED = 100, 10


def search_row(rows: np.ndarray, asked: dict, right: dict) -> dict[str, Any]:
    """The library's own search, as :func:`.index_kinds.measure_kind` tells of an index."""
    began = time.perf_counter()
    table = Table(rows)
    table.bounds(rows[:1])
    row: dict[str, Any] = {"index": "eight-bit bounds, exact", "vectors": len(rows), "effort": 0,
                           "build_s": time.perf_counter() - began, "size_mb": table.nbytes / 2**20}  # fmt: skip
    for kind, those in asked.items():
        hits, times = [], []
        for query, best in zip(those, right[kind].tolist(), strict=True):
            began = time.perf_counter()
            found, _ = table.best(query, index_kinds.NEAREST)
            times.append(1000 * (time.perf_counter() - began))
            hits.append(len(set(found.tolist()) & set(best)) / index_kinds.NEAREST)
        row |= {f"{kind}_recall_at_10": float(np.mean(hits)), f"{kind}_p50_ms": float(np.median(times)),
                f"{kind}_p95_ms": float(np.percentile(times, 95))}  # fmt: skip
    return row


def in_memory(rows: np.ndarray, tower: CachedTower, parts: Parts) -> tuple[MemoryView, RidgeEncoder]:
    """A library of all ``rows``; the words of one LoRA in ten get made-up vectors in the tower's memory."""
    encoder, facts = encoder_of(tower), Facts.drawn(len(rows))
    hashes = sorted(hashlib.sha256(b"%d" % i).hexdigest() for i in range(len(rows)))
    entries, rng = [], np.random.default_rng(6)
    for i, digest in enumerate(hashes):
        said = facts.words(i) if i % WORDED == 0 else None
        text = ViewText(said.title) if said else ViewText()
        entries.append(ViewEntry(f"{digest[:12]}.safetensors", digest, FAMILY, text=text))
        key = f"{tower.id}\n{text.title}"
        if text.title and key not in tower.store:
            about = parts.things[facts.thing[i]] + parts.manners[facts.manner[i]]
            tower.store[key] = unit(unit(about) + 0.55 * parts.noise(rng, 1)[0]).tobytes()
    view = MemoryView(entries, {FAMILY: encoder}, {encoder.id: ViewVectors(tuple(hashes), rows)}, handle={"made": "up"})
    return view, encoder


def whole_answers(rows: np.ndarray, asked: int, parts: Parts) -> dict[str, Any]:
    """Milliseconds of whole answers, and the seconds to make such a library ready."""
    tower = CachedTower(default_tower())
    view, _ = in_memory(rows, tower, parts)
    began = time.perf_counter()
    scorer = prepare(view, FAMILY, tower).scorer
    ready, times = time.perf_counter() - began, []
    for prompt in prompts(asked):
        scorer.ask(decompose(prompt))
        began = time.perf_counter()
        retrieve(view, prompt, family=FAMILY, tower=tower)
        times.append(1000 * (time.perf_counter() - began))
    return {"what": "retrieve", "library": len(rows), "count": asked, "ready_s": ready,
            "p50_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95))}  # fmt: skip


def measure(quick: bool = False) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A million vectors (quick: 50,000)."""
    torch.set_num_threads(index_kinds.THREADS)
    parts = Parts.of()
    rows = many_vectors(parts, 50_000 if quick else index_kinds.VECTORS, 0)
    asked = index_kinds.queries(parts, 20 if quick else ASKED)
    right = {kind: index_kinds.truth(rows, those) for kind, those in asked.items()}
    own = search_row(rows, asked, right)
    whole = whole_answers(rows, 20 if quick else ASKED, parts)
    table = [own, *index_kinds.measure(rows, asked, right), whole]
    figures = {
        "query_p95_ms_1m": max(own["files_p95_ms"], own["texts_p95_ms"]),
        "recall_at_10_1m": min(own["files_recall_at_10"], own["texts_recall_at_10"]),
        "search_memory_mb_1m": own["size_mb"],
        "retrieve_p95_ms_1m": whole["p95_ms"],
        "retrieve_ready_s_1m": whole["ready_s"],
    }
    return figures, table
