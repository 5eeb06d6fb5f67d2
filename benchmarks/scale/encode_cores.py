"""How reading grows with processors: the same files by one thread, by two, and by two processes of their own.

The processes are those of :mod:`autolora_core.library.readers`, which a scan uses from three processors on; their start
is told apart (``readers_start_s``), since it is the same for ten files and for ten thousand. All in the page cache,
medians of the turns. ``readers_memory_mb`` is what one of them holds at most.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autolora_core.encode.threads import only_one
from autolora_core.library.readers import Readers
from autolora_core.library.reading import read_file
from autolora_core.library.walk import Found, walk
from benchmarks.scale.lora_files import write

CASES = (("sdxl", 16, 8), ("flux", 32, 4))  # family, rank, files
TURNS, CORES = 3, 2
QUICK_LAYERS = 60


def measure(folder: Path, quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures and rows; the folder is for the files."""
    rows, started, memory = [], [], []
    for family, rank, count in CASES[:1] if quick else CASES:
        place = folder / f"{family}_{rank}"
        for number in range(count):
            dtype = (torch.float16, torch.bfloat16)[number % 2]
            write(place / f"{number}.safetensors", family, rank, dtype, number, QUICK_LAYERS if quick else None)
        begun = time.perf_counter()
        with Readers(CORES) as readers, ThreadPoolExecutor(CORES, initializer=only_one) as pool:
            processes = readers.wait_ready()
            started.append(time.perf_counter() - begun)
            rows.append(_case(list(walk(str(place), lambda name: True, print)), readers, pool, family, rank))
            memory += [_most_held(process) for process in processes]
        print(rows[-1], flush=True)
    figures = {
        f"{name}_over_one_{row['family']}_{row['rank']}": row["one_s"] / row[f"{name}_s"]
        for row in rows
        for name in ("two_threads", "two_processes")
    }
    return figures | {"readers_start_s": max(started), "readers_memory_mb": max(memory) / 1e6}, rows


def _case(files: list[Found], readers: Readers, pool: ThreadPoolExecutor, family: str, rank: int) -> dict[str, Any]:
    own = partial(read_file, tick=lambda size: None)
    ways: dict[str, Callable[[], object]] = {
        "one": lambda: list(map(own, files)),
        "two_threads": lambda: list(pool.map(own, files)),
        "two_processes": lambda: list(pool.map(lambda item: _apart(readers, item), files)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, work in ways.items():
            begun = time.perf_counter()
            work()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - begun)
    seconds = {f"{name}_s": statistics.median(some) for name, some in times.items()}
    return {"family": family, "rank": rank, "files": len(files), "bytes": sum(item.size for item in files), **seconds}


def _apart(readers: Readers, item: Found) -> None:
    if readers.read(item, True, None) is None:
        raise RuntimeError(f"no process read {item.name}")


def _most_held(pid: int) -> int:
    """``VmHWM`` of a process, in bytes; 0 where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
