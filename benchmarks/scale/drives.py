"""A library on several drives: how long its first scan takes beside the slowest drive by itself; and on a hard disk
whose head must move whenever another file is read.

Drives are imitated: each root gives its bytes no faster than ``MB_A_SECOND`` says, one block after the other whoever
asks, and takes ``SEEK_MS`` before a block of another file than the last one's. The system's own reading ahead, which
softens that on real disks, is not imitated.

``drives_over_slowest``: seconds of the scan of all roots over those of the scan of that root alone that takes longest;
1 where the others cost nothing. ``drives_one_queue_over_slowest``: the same when files are read in one order whatever
drive they lie on, as with an order that somebody asked for. ``hard_disk_share``: of what the hard disk would give to
one reader that never computes, how much a scan with several threads gets; ``hard_disk_share_side_by_side``: how much
when its files are always read side by side.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from autolora_core.library import reading, streams
from autolora_core.library.index import Library
from autolora_core.library.one_pass import Pass, Tick
from autolora_core.library.walk import Found
from benchmarks.scale.encode import CORES, scratch, two_processors
from benchmarks.scale.lora_files import write

MB_A_SECOND = {"disk": 120.0, "old disk": 80.0, "quick": None}
SEEK_MS = {"disk": 12.0, "old disk": 15.0, "quick": 0.0}
FAMILY, RANK, FILES, TURNS = "sdxl", 16, 6, 3
HARD_DISK, HARD_DISK_FILES, THREADS = "disk", 60, 4
QUICK_LAYERS, QUICK_FILES = 60, 2


class Speed:
    """One drive's. ``wait(file, bytes)`` returns when they would have come."""

    def __init__(self, name: str):
        rate = MB_A_SECOND[name]
        self._rate, self._seek = rate and rate * 1e6, SEEK_MS[name] / 1e3
        self._free, self._last, self._lock = 0.0, None, threading.Lock()

    def wait(self, file: object, size: int) -> None:
        if self._rate is None:
            return
        with self._lock:
            seek = self._seek if file is not self._last else 0.0
            self._free, self._last = max(self._free, time.perf_counter()) + seek + size / self._rate, file
            until = self._free
        time.sleep(max(0.0, until - time.perf_counter()))


class Slow:
    """A file on such a drive."""

    def __init__(self, stream: Any, speed: Speed):
        self._stream, self._speed = stream, speed

    def readinto(self, buffer: memoryview) -> int:
        count = self._stream.readinto(buffer)
        self._speed.wait(self, count)
        return count

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._speed.wait(self, len(block))
        return block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def measure(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    two_processors()
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        figures, rows = _several(folder, quick)
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        shares, more = _hard_disk(folder, quick)
    return figures | shares, rows + more


def _several(folder: str, quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    roots = {name: Path(folder) / name for name in MB_A_SECOND}
    for place, root in enumerate(roots.values()):
        _fill(root, QUICK_FILES if quick else FILES, place * FILES, quick)
    with slowed(roots):
        rows = [_row(folder, {name: root}) for name, root in roots.items()]
        rows.append(_row(folder, roots))
        rows.append({**_row(folder, roots, order=lambda item: 0), "one_queue": True})
    slowest = max(row["seconds"] for row in rows[: len(roots)])
    figures = {
        "drives_over_slowest": rows[-2]["seconds"] / slowest,
        "drives_one_queue_over_slowest": rows[-1]["seconds"] / slowest,
    }
    return figures, rows


def _hard_disk(folder: str, quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    roots = {HARD_DISK: Path(folder) / "loras"}
    _fill(roots[HARD_DISK], QUICK_FILES if quick else HARD_DISK_FILES, 0, quick)
    size = sum(path.stat().st_size for path in roots[HARD_DISK].iterdir())
    least = size / (MB_A_SECOND[HARD_DISK] * 1e6)
    rows = []
    for figure, slow in (("hard_disk_share", streams.SLOW_BYTES_A_SECOND), ("hard_disk_share_side_by_side", 0.0)):
        with slowed(roots), mock.patch.object(streams, "SLOW_BYTES_A_SECOND", slow):
            rows.append({**_row(folder, roots, threads=THREADS, turns=1), "figure": figure, "bytes": size})
    return {row["figure"]: least / row["seconds"] for row in rows}, rows


def _fill(root: Path, files: int, first: int, quick: bool) -> None:
    layers = QUICK_LAYERS if quick else None
    for number in range(first, first + files):
        write(root / f"{number}.safetensors", FAMILY, RANK, torch.float16, number, layers)


@contextmanager
def slowed(roots: dict[str, Path]):
    """Each of ``roots`` is a drive, as quick as :data:`MB_A_SECOND` says, and as :data:`SEEK_MS`."""
    speeds = {str(root): Speed(name) for name, root in roots.items()}

    def opened(path: str, tick: Tick, hashing: bool = True) -> Pass:
        made = real(path, tick, hashing)
        made.stream = Slow(made.stream, speeds[str(Path(path).parent)])
        return made

    real = reading.open_pass
    with (
        mock.patch.object(reading, "open_pass", opened),
        mock.patch.object(Found, "drive", property(lambda item: item.root)),
    ):
        yield


def _row(
    folder: str, roots: dict[str, Path], order: Callable[[Found], Any] | None = None, threads: int = CORES,
    turns: int = TURNS,
) -> dict[str, Any]:  # fmt: skip
    times = []
    for _ in range(turns):
        with tempfile.TemporaryDirectory(dir=folder) as place, Library.open(place) as library:
            begun = time.perf_counter()
            report = library.scan(roots, workers=threads, processes=0, order=order)
            times.append(time.perf_counter() - begun)
            if report.encoded != report.added or report.problems:
                raise RuntimeError(f"{report.encoded} of {report.added} files were encoded: {report.problems}")
    row = {"roots": list(roots), "files": report.added, "threads": threads, "seconds": statistics.median(times),
           "turns": times}  # fmt: skip
    print(row, flush=True)
    return row
