"""What an answer costs in a library of a hundred thousand LoRAs: a whole ``retrieve`` and the search alone.

Warm, the words of a prompt are remembered by the text tower or are new to it; cold is the first question of a process,
MiniLM loaded, everything else read from the library's files, as Encode left them (``warm`` of :mod:`prepare`, whose own
time is told) or, unready, without what was made ahead. All is exact.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from autolora_core.encode.towers import default_tower
from autolora_core.library.index import Library
from autolora_core.retrieve.prepare import prepare, warm
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.spans import decompose
from benchmarks.results_file import REPO
from benchmarks.scale.index_kinds import queries
from benchmarks.scale.made_up import Parts
from benchmarks.scale.made_up_library import FAMILY, build, prompts

THREADS, WARM, NEAREST, MADE_UP = 2, 20, 10, "made-up-1"
KINDS = ("a thing", "a thing in a manner", "two things and a place", "a row of words")


def kept_library(count: int) -> Path:
    """The made-up library, made once: it takes minutes."""
    cache = Path(os.environ.get("AUTOLORA_CACHE", REPO / ".cache")) / "benchmarks" / "libraries"
    folder = cache / f"{MADE_UP}-{count}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as making:
            build(Path(making) / "library", default_tower(), count)
            (Path(making) / "library").rename(folder)
    return folder


def first_query(folder: Path) -> dict[str, float]:
    """Seconds of the first question of this process, and its largest memory in MB."""
    tower = default_tower()
    tower.encode(["warm"])
    began = time.perf_counter()
    with Library.open(folder) as library:
        retrieve(library, prompts(1)[0], family=FAMILY, tower=tower)
    took = time.perf_counter() - began
    return {"seconds": took, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def make_ready(folder: Path) -> dict[str, float]:
    """Seconds of what Encode makes ahead, the words' vectors being there."""
    tower = default_tower()
    tower.encode(["warm"])
    began = time.perf_counter()
    with Library.open(folder) as library:
        warm(library, FAMILY, tower)
    return {"seconds": time.perf_counter() - began}


def in_process(what: str, folder: Path) -> dict[str, float]:
    """:func:`first_query` or :func:`make_ready` in a process of its own."""
    code = f"import json; from benchmarks.scale.query import *; print(json.dumps({what}(Path({str(folder)!r}))))"
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, encoding="utf-8", check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def timed(ask: Any, things: list) -> np.ndarray:
    """Milliseconds of each."""
    times = []
    for thing in things:
        began = time.perf_counter()
        ask(thing)
        times.append(1000 * (time.perf_counter() - began))
    return np.array(times)


def cold(folder: Path) -> dict[str, float]:
    """The first question of a process, without and with what Encode makes ahead."""
    _forget(folder)
    unready = in_process("first_query", folder)
    _forget(folder)
    made = in_process("make_ready", folder)
    first = min((in_process("first_query", folder) for _ in range(2)), key=lambda found: found["seconds"])
    return {
        "first_query_s_100k": first["seconds"], "query_memory_mb_100k": first["memory_mb"],
        "first_query_unready_s_100k": unready["seconds"], "make_ready_s_100k": made["seconds"],
    }  # fmt: skip


def _forget(folder: Path) -> None:
    """What was made ahead."""
    for kept in [*folder.glob("ready-*.arrays"), *folder.glob("near-*.arrays"), *folder.glob("usual-*.arrays")]:
        kept.unlink()


def measure(quick: bool = False) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A library of 100,000 (quick: 1,000), 400 prompts (quick: 12)."""
    count, asked = (1000, 12) if quick else (100_000, 400)
    folder, tower = kept_library(count), default_tower()
    figures = {"first_query_s_100k": in_process("first_query", folder)["seconds"]} if quick else cold(folder)
    rows = []
    with Library.open(folder) as library:
        scorer = prepare(library, FAMILY, tower).scorer

        def ask(prompt: str) -> None:
            retrieve(library, prompt, family=FAMILY, tower=tower)

        timed(ask, prompts(WARM, seed=1))
        said = prompts(asked)
        new = timed(ask, said[: asked // 4])
        for prompt in said:
            scorer.ask(decompose(prompt))  # the tower remembers the words
        whole = timed(ask, said)
        index = library.vectors(FAMILY, prepare(library, FAMILY, tower).encoder)
        parts = queries(Parts.of(tower), asked // 2)
        index.search(parts["texts"][0], NEAREST)
        search = timed(lambda query: index.search(query, NEAREST), [*parts["files"], *parts["texts"]])
        for name, times in (("retrieve", whole), ("retrieve, new words", new), ("search", search)):
            rows.append({"what": name, "library": count, **_spread(times)})
        for i, kind in enumerate(KINDS):
            rows.append({"what": f"retrieve, {kind}", "library": count, **_spread(whole[i::4])})
    figures |= {
        "query_p95_ms_100k": float(np.percentile(whole, 95)),
        "query_p50_ms_100k": float(np.median(whole)),
        "query_new_words_p95_ms_100k": float(np.percentile(new, 95)),
        "search_p95_ms_100k": float(np.percentile(search, 95)),
    }
    return figures, rows


def _spread(times: np.ndarray) -> dict[str, float]:
    return {"count": len(times), **{f"p{p}_ms": float(np.percentile(times, p)) for p in (20, 50, 80, 95)}}
