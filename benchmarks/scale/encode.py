"""How fast files are encoded, beside the same files read with safetensors alone; and the memory that it takes.

Reading alone: ``safetensors.torch.load_file`` of every file, one after the other, and a copy of every tensor, because
``load_file`` maps a file and reads nothing before its values are asked for. Encoding: ``Library.scan`` into a new
library, hash, header, words, sketches and response factors included, with two threads. Both on the same two
processors, the files in the page cache, in turns; medians of the turns.

Hashing: the same two threads only read the files and take their SHA-256, by which a library knows copies and moved
files. No scan that does so is faster: ``hash_over_read`` is the floor of ``encode_over_read``.

From disk: the same reading and encoding when the page cache has none of the files (Linux), and how fast the disk gave
them to two threads that did nothing else.

Growth with processors (:mod:`.encode_cores`): how much sooner two threads, and two processes as larger machines use
them, have read some files than one thread has.

Memory: the most that a fresh process held while it encoded, above what it held once all was imported, in shares of
1.5 times the largest file and 500 MB.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from autolora_core.library.index import Library
from autolora_core.library.one_pass import BLOCK
from benchmarks.results_file import REPO
from benchmarks.scale import encode_cores
from benchmarks.scale.lora_files import FAMILIES, write

RANKS, TURNS, CORES = (16, 32, 64), 3, 2
DTYPES = (torch.float16, torch.bfloat16)  # one file of each
QUICK_LAYERS = 60


def measure(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    two_processors()
    rows = []
    for family in FAMILIES:
        for rank in RANKS[:1] if quick else RANKS:
            with tempfile.TemporaryDirectory(dir=scratch()) as folder:
                rows.append(_case(Path(folder), family, rank, quick))
                print(rows[-1], flush=True)
    figures = {f"encode_over_read_{row['family']}_{row['rank']}": row["ratio"] for row in rows}
    figures["encode_over_read"] = max(row["ratio"] for row in rows)
    figures["hash_over_read"] = max(row["hash_ratio"] for row in rows)
    from_disk = [row for row in rows if "disk_ratio" in row]
    if from_disk:
        figures["encode_over_disk_read"] = max(row["disk_ratio"] for row in from_disk)
        figures["disk_mb_a_second"] = statistics.median(row["bytes"] / row["disk_s"] / 1e6 for row in from_disk)
    figures["encode_peak_over_bound"] = max(row["peak_over_bound"] for row in rows)
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        grown, more = encode_cores.measure(Path(folder), quick)
    return figures | grown, rows + more


def two_processors() -> None:
    """Keep this process, and those it starts, on two processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(CORES)


def scratch() -> Path:
    """Where the big files of a benchmark lie while it runs."""
    place = Path(os.environ.get("AUTOLORA_SCRATCH", REPO / ".cache" / "scratch"))
    place.mkdir(parents=True, exist_ok=True)
    return place


def _case(folder: Path, family: str, rank: int, quick: bool) -> dict[str, Any]:
    layers = QUICK_LAYERS if quick else None
    files = [write(folder / "loras" / f"{family}_{rank}_{number}.safetensors", family, rank, dtype, number, layers)
             for number, dtype in enumerate(DTYPES)]  # fmt: skip
    times: dict[str, list[float]] = {"read": [], "map": [], "hash": [], "encode": []}
    cpu: dict[str, list[float]] = {name: [] for name in times}
    for turn in range(TURNS + 1):
        for name, work in (("read", lambda: _read(files)), ("map", lambda: _map(files)),
                           ("hash", lambda: _hash(files)), ("encode", lambda: _encode(folder, files))):  # fmt: skip
            wall, busy = _timed(work)
            if turn:  # the first one warms up: page cache, signs, thread pools
                times[name].append(wall)
                cpu[name].append(busy)
    disk = _from_disk(folder, files)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    peak, bound = _peak(folder), 1.5 * max(path.stat().st_size for path in files) + 500e6
    return {
        "family": family, "rank": rank, "files": len(files), "bytes": sum(path.stat().st_size for path in files),
        "read_s": seconds["read"], "map_s": seconds["map"], "hash_s": seconds["hash"], "encode_s": seconds["encode"],
        "ratio": seconds["encode"] / seconds["read"], "hash_ratio": seconds["hash"] / seconds["read"],
        "processor_time_ratio": statistics.median(cpu["encode"]) / statistics.median(cpu["read"]),
        "peak_bytes": peak, "peak_over_bound": peak / bound, **disk,
    }  # fmt: skip


def _from_disk(folder: Path, files: list[Path]) -> dict[str, float]:
    """Seconds of reading and encoding files that the page cache has not, and their ratio; nothing where the system
    cannot be told to forget files."""
    if not hasattr(os, "posix_fadvise"):
        return {}
    times: dict[str, list[float]] = {"disk": [], "disk_read": [], "disk_encode": []}
    for _ in range(TURNS):
        for name, work in (("disk", lambda: _only(files)), ("disk_read", lambda: _read(files)),
                           ("disk_encode", lambda: _encode(folder, files))):  # fmt: skip
            _forget(files)
            times[name].append(_timed(work)[0])
    seconds = {f"{name}_s": statistics.median(values) for name, values in times.items()}
    return {**seconds, "disk_ratio": seconds["disk_encode_s"] / seconds["disk_read_s"]}


def _forget(files: list[Path]) -> None:
    for path in files:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and processor seconds of all threads."""
    wall, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - busy


def _read(files: list[Path]) -> None:
    for path in files:
        held = {key: tensor.clone() for key, tensor in load_file(path).items()}
        del held


def _map(files: list[Path]) -> None:
    for path in files:
        load_file(path)


def _hash(files: list[Path]) -> None:
    _through(files, lambda: hashlib.sha256().update)


def _only(files: list[Path]) -> None:
    _through(files, lambda: lambda block: None)


def _through(files: list[Path], what: Callable[[], Callable[[memoryview], None]]) -> None:
    """Every block of every file, with two threads; ``what`` makes for each file what takes them."""

    def one(path: Path) -> None:
        take, block = what(), memoryview(bytearray(BLOCK))
        with open(path, "rb", buffering=0) as stream:
            while count := stream.readinto(block):
                take(block[:count])

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(one, files))


def _encode(folder: Path, files: list[Path]) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place, Library.open(place) as library:
        report = library.scan([folder / "loras"], workers=CORES)
    if report.encoded != len(files):
        raise RuntimeError(f"{report.encoded} of {len(files)} files were encoded: {report.problems}")


def _peak(folder: Path) -> float:
    """Bytes above the imported process, in a process of its own; 0 where the system does not tell."""
    command = [sys.executable, "-m", "benchmarks.scale.encode", str(folder)]
    done = subprocess.run(command, cwd=REPO, check=True, capture_output=True, encoding="utf-8")
    return float(json.loads(done.stdout)["peak"])


def _held(name: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def _encode_once(folder: Path) -> None:
    two_processors()
    with Library.open(folder / "warm") as library:
        library.scan([])
    before = _held("VmRSS")
    with Library.open(folder / "measured") as library:
        library.scan([folder / "loras"], workers=CORES)
    print(json.dumps({"peak": max(0, _held("VmHWM") - before)}))
    shutil.rmtree(folder / "measured")


if __name__ == "__main__":
    _encode_once(Path(sys.argv[1]))
