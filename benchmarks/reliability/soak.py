"""Five hundred prompts through one real server, the picks changing each time: what is left behind?

    python -m benchmarks.reliability --part soak        (quick: 25 prompts)

Memory of the server process after each prompt, as a slope in MB per 100 prompts over all but the first fifth, with
stock ComfyUI's slope for the same prompts and LoRAs through its own loaders beside it; ComfyUI's record of what it ran
is emptied after every prompt, in both. Live objects of the pack, patchers and
tensors every 25 prompts. The first prompt once more at the end, and a picture of the bare base before and after, with
a hash of every weight. The server keeps ComfyUI's classic cache, which knows the last graph only, so that nothing that
is compared comes out of a cache; that it did not is checked.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.reliability import soak_graphs as graphs
from benchmarks.results_file import REPO
from benchmarks.slopes import Slope, block_medians, theil_sen
from scripts._lib.client import Graph, RunResult
from scripts._lib.png import same_picture
from scripts._lib.server import PACK_NAME, ComfyServer

PROMPTS, STOCK, QUICK, EVERY, BLOCK, WARM = 500, 250, 25, 25, 20, 0.2
Memory = list[float]  # MB after each prompt


@dataclass
class Soak:
    """What was seen. ``picks``: names by prompt; ``objects``: counts in the order they were taken."""

    memory: Memory = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    picks: list[list[str]] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    first_last: bool = False
    base_equal: bool = False
    weights_equal: bool = False
    fused_left: int = 0


@contextmanager
def server(folder: Path, models: Mapping[str, Sequence[Path]] | None = None) -> Iterator[ComfyServer]:
    """A server with this pack and the tests' looking nodes; the demo's models unless others are given."""
    packs = {PACK_NAME: REPO, "e2e_pack": REPO / "tests" / "e2e_pack"}
    env = {"OMP_NUM_THREADS": "1"}
    with ComfyServer(folder, models=models, packs=packs, args=["--cache-classic"], env=env) as started:
        yield started


def memory_mb(pid: int) -> float:
    """Resident memory of a process, in MB."""
    import psutil

    return psutil.Process(pid).memory_info().rss / 2**20


def soak(started: ComfyServer, asks: Sequence[graphs.Ask], every: int = EVERY) -> Soak:
    """The soak itself: all asks, and the first once more. Raises AssertionError where what is compared came out of the
    server's cache."""
    seen, count = Soak(), len(asks) + 1
    before = _base(started)
    first = _picture(started, graphs.picture(asks[0]), seen)
    for number, ask in enumerate(asks[1:], 2):
        _picture(started, graphs.picture(ask), seen)
        if number % every == 0:
            seen.objects.append(_objects(started, number))
    last = _picture(started, graphs.picture(asks[0]), seen)
    after = _base(started)
    seen.objects.append(_objects(started, count))
    seen.first_last = same_picture(first, last) and seen.picks[0] == seen.picks[-1]
    seen.base_equal = same_picture(before[0], after[0])
    seen.weights_equal, seen.fused_left = before[1]["weights"] == after[1]["weights"], after[1]["fused"]
    return seen


def stock(started: ComfyServer, asks: Sequence[graphs.Ask], picks: Sequence[Sequence[str]]) -> Memory:
    """The same prompts and LoRAs through ComfyUI's own loaders: memory after each."""
    memory = []
    for ask, names in zip(asks, picks, strict=False):
        _run(started, graphs.stock_picture(ask, list(names)))
        memory.append(memory_mb(started.pid))
    return memory


def growth(memory: Memory, block: int = BLOCK) -> Slope:
    """MB per 100 prompts, once the first fifth has warmed up."""
    settled = memory[int(len(memory) * WARM) :]
    found = theil_sen(*block_medians(settled, min(block, max(1, len(settled) // 4))))
    return Slope(*(100 * part for part in (found.value, found.low, found.high)))


def measure(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures and rows for ``benchmarks.reliability``."""
    count = QUICK if quick else PROMPTS
    with tempfile.TemporaryDirectory() as folder:
        # Reading the library for the first time needs much memory for a moment. What a process gave back inside itself
        # would swallow a leak unseen, so the soak has a server that never read it.
        with server(Path(folder) / "ours") as started:
            started.run(graphs.picture(graphs.asks(1)[0]))
        with server(Path(folder) / "ours") as started:
            seen = soak(started, graphs.asks(count - 1))
        with server(Path(folder) / "stock") as started:
            plain = stock(started, graphs.asks(min(count - 1, STOCK)), seen.picks)
    return figures(seen, plain), rows(seen, plain)


def figures(seen: Soak, plain: Memory) -> dict[str, float]:
    """Flat numbers. ``objects_growth`` is the most any of pack objects, patchers or networks grew by."""
    ours, theirs = growth(seen.memory), growth(plain)
    start, end = seen.objects[0], seen.objects[-1]
    return {
        "soak_prompts": len(seen.memory),
        "soak_pick_sets": len({tuple(names) for names in seen.picks}),
        "soak_seconds": sum(seen.seconds),
        "soak_rss_mb_per_100": ours.value,
        "soak_rss_mb_per_100_low": ours.low,
        "soak_rss_mb_per_100_high": ours.high,
        "soak_rss_mb_end": seen.memory[-1],
        "soak_stock_prompts": len(plain),
        "soak_stock_rss_mb_per_100": theirs.value,
        "soak_stock_rss_mb_per_100_low": theirs.low,
        "soak_stock_rss_mb_per_100_high": theirs.high,
        "soak_first_last_equal": float(seen.first_last),
        "soak_base_equal": float(seen.base_equal and seen.weights_equal),
        "soak_layers_left_fused": seen.fused_left,
        "soak_objects_growth": max(end[kind] - start[kind] for kind in ("pack", "patchers", "networks")),
        "soak_blocks_growth_per_100": 100 * (end["blocks"] - start["blocks"]) / (end["prompts"] - start["prompts"]),
        "soak_tensors_growth": end["tensors"] - start["tensors"],
        "soak_tensor_mb_growth": (end["tensor_bytes"] - start["tensor_bytes"]) / 2**20,
    }


def rows(seen: Soak, plain: Memory) -> list[dict[str, Any]]:
    """Memory by blocks of 25 prompts, ours and stock, and the counts."""
    out: list[dict[str, Any]] = []
    for start in range(0, len(seen.memory), EVERY):
        part = slice(start, start + EVERY)
        row: dict[str, Any] = {"prompts": start + len(seen.memory[part]), "rss_mb": round(seen.memory[part][-1], 1)}
        row |= {"stock_rss_mb": round(plain[part][-1], 1)} if plain[part] else {}
        row |= {"seconds_a_prompt": round(sum(seen.seconds[part]) / len(seen.seconds[part]), 2)}
        out.append(row)
    kinds = [Counter(count["kinds"]) for count in (seen.objects[0], seen.objects[-1])]
    counted = [{"objects": {k: v for k, v in count.items() if k != "kinds"}} for count in seen.objects]
    return [*out, *counted, {"more_of": dict(kinds[1] - kinds[0])}]


def _run(started: ComfyServer, graph: Graph) -> RunResult:
    """Run a graph and have the server forget it: ComfyUI keeps a record of its last 10,000 runs, which would grow."""
    result = started.run(graph)
    started.client.post("/history", {"delete": [result.prompt_id]})
    return result


def _picture(started: ComfyServer, graph: Graph, seen: Soak) -> bytes:
    result = _run(started, graph)
    _was_made(result)
    chosen: Mapping[str, Any] = json.loads(result.text("picks"))
    seen.picks.append([pick["name"] for pick in chosen["picks"]])
    seen.memory.append(memory_mb(started.pid))
    seen.seconds.append(result.seconds)
    return started.client.fetch(result.images(graphs.SAVE)[0])


def _base(started: ComfyServer) -> tuple[bytes, dict[str, Any]]:
    result = _run(started, graphs.base_picture())
    _was_made(result)
    return started.client.fetch(result.images(graphs.SAVE)[0]), json.loads(result.text("print"))


def _was_made(result: RunResult) -> None:
    if graphs.SAMPLER in result.cached:
        raise AssertionError("the server took a picture out of its cache: the soak compares pictures that are made")


def _objects(started: ComfyServer, number: int) -> dict[str, Any]:
    graph = graphs.picture(graphs.asks(1)[0])
    return {"prompts": number} | json.loads(_run(started, graphs.counts(graph, str(number))).text("objects"))
