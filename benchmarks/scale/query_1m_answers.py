"""Whole answers of a library of a million LoRAs, with approximate and with exact search of the weights.

The library is held in memory, and one LoRA in ten has words: those of a million would not fit beside the vectors. What
the words say is what the vectors were made from. Asked three ways: as Retrieve asks; so that the best is picked however
unlikely it is; and so again with weights believed far more than such a library's calibration believes them (there, a
thousand files show what is asked for), since otherwise words decide and weights are hardly looked at.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

import numpy as np

from autolora_core.encode.calibrate import Logistic
from autolora_core.encode.encoder import RidgeEncoder
from autolora_core.encode.text_cache import CachedTower
from autolora_core.library.quick import EXACT
from autolora_core.retrieve.finalists import Finalists
from autolora_core.retrieve.prepare import Prepared, prepare
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.spans import decompose
from autolora_core.retrieve.view import MemoryView, ViewEntry, ViewText, ViewVectors
from benchmarks.scale.made_up import Parts, shown, unit
from benchmarks.scale.made_up_library import FAMILY, Facts, encoder_of, prompts

WORDED = 10
# What weights may claim, and the z-score at which they claim half, where they are believed.
BELIEVED, HALF = 0.9, 4.5
AS_ASKED, ANY_PICK, BY_WEIGHTS = "retrieve", "retrieve, any pick", "retrieve, weights believed"


def in_memory(rows: np.ndarray, tower: CachedTower, parts: Parts) -> tuple[MemoryView, RidgeEncoder]:
    """A library of all ``rows``; the words of one LoRA in ten get made-up vectors in the tower's memory."""
    encoder, facts = encoder_of(tower), Facts(*shown(parts, len(rows), 0), 0)
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


def ready(view: MemoryView, tower: CachedTower) -> tuple[Prepared, float, float]:
    """Everything ready; seconds for that, and for making the approximate search."""
    began = time.perf_counter()
    prepared = prepare(view, FAMILY, tower)
    middle = time.perf_counter()
    prepared.scorer.quick.make()
    return prepared, middle - began, time.perf_counter() - middle


def compared(view: MemoryView, tower: CachedTower, prepared: Prepared, asked: int) -> list[dict[str, Any]]:
    """A row for each way of asking: milliseconds both ways, and how many answers are the same."""
    scorer, said = prepared.scorer, prompts(asked)
    for prompt in said:
        scorer.ask(decompose(prompt))  # the tower remembers the words
    out = []
    for what, threshold in ((AS_ASKED, 0.5), (ANY_PICK, 0.0), (BY_WEIGHTS, 0.0)):
        if what == BY_WEIGHTS:
            scorer.weight_claim, scorer.weight_model = BELIEVED, Logistic(-2 * HALF, np.array([2.0]))
        _answers(view, tower, said, threshold, exact=True)  # what is remembered of LoRAs is there for both
        exact, exact_ms, _ = _answers(view, tower, said, threshold, exact=True)
        scorer.quick.found.exactly = 0
        found, ms, scans = _answers(view, tower, said, threshold, exact=False)
        row = {"what": what, "library": len(scorer.entries), "count": asked, "scanned_weights": scans,
               "exact_after_all": scorer.quick.found.exactly}  # fmt: skip
        for name, times in (("", ms), ("exact_", exact_ms)):
            row |= {f"{name}p50_ms": float(np.median(times)), f"{name}p95_ms": float(np.percentile(times, 95))}
        both = list(zip(found, exact, strict=True))
        names = [[[pick["name"] for pick in answer["picks"]] for answer in pair] for pair in both]
        row["with_picks"] = sum(bool(one) for one, _ in names)
        row["same_picks"] = sum(one == other for one, other in names)
        row["same_none"] = sum(bool(one) == bool(other) for one, other in names)
        row["same_answer"] = sum(one == other for one, other in both)
        out.append(row)
    return out


def _answers(
    view: MemoryView, tower: CachedTower, said: list[str], threshold: float, exact: bool
) -> tuple[list[dict], np.ndarray, int]:
    """Answers without their notes, milliseconds of each, and for how many the weights were scanned."""
    answers, times, scans, scan = [], [], [], Finalists._scan_weights
    os.environ[EXACT] = str(int(exact))
    Finalists._scan_weights = lambda self: scans.append(1) or scan(self)
    try:
        for prompt in said:
            began = time.perf_counter()
            found = retrieve(view, prompt, family=FAMILY, tower=tower, threshold=threshold)
            times.append(1000 * (time.perf_counter() - began))
            answers.append({**found.to_json(), "notes": None})
    finally:
        Finalists._scan_weights = scan
        del os.environ[EXACT]
    return answers, np.array(times), len(scans)
