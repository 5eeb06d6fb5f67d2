"""A library on several drives: how long its first scan takes beside the slowest drive by itself.

Drives are imitated: each root reads no faster than it may, however many threads read there (``MB_A_SECOND``: two hard
disks, and one that is as quick as the page cache). ``drives_over_slowest``: seconds of the scan of all roots over those
of the scan of that root alone that takes longest; 1 where the others cost nothing. ``drives_one_queue_over_slowest``:
the same when files are read in one order whatever drive they lie on, as with an order that somebody asked for.
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

from autolora_core.library import reading
from autolora_core.library.index import Library
from autolora_core.library.one_pass import Pass, Tick
from autolora_core.library.walk import Found
from benchmarks.scale.encode import CORES, scratch, two_processors
from benchmarks.scale.lora_files import write

MB_A_SECOND = {"disk": 120.0, "old disk": 80.0, "quick": None}
FAMILY, RANK, FILES, TURNS = "sdxl", 16, 6, 3
QUICK_LAYERS, QUICK_FILES = 60, 2


class Speed:
    """One drive's: ``wait(bytes)`` returns when they would have come."""

    def __init__(self, mb_a_second: float | None):
        self._rate = mb_a_second and mb_a_second * 1e6
        self._free, self._lock = 0.0, threading.Lock()

    def wait(self, size: int) -> None:
        if self._rate is None:
            return
        with self._lock:
            self._free = max(self._free, time.perf_counter()) + size / self._rate
            until = self._free
        time.sleep(max(0.0, until - time.perf_counter()))


def measure(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    two_processors()
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        roots = {name: Path(folder) / name for name in MB_A_SECOND}
        layers = QUICK_LAYERS if quick else None
        for place, root in enumerate(roots.values()):
            for number in range(QUICK_FILES if quick else FILES):
                write(root / f"{number}.safetensors", FAMILY, RANK, torch.float16, place * FILES + number, layers)
        with slowed(roots):
            rows = [_row(folder, [name], {name: root}) for name, root in roots.items()]
            rows.append(_row(folder, list(roots), roots))
            rows.append({**_row(folder, list(roots), roots, order=lambda item: 0), "one_queue": True})
    slowest = max(row["seconds"] for row in rows[: len(roots)])
    figures = {
        "drives_over_slowest": rows[-2]["seconds"] / slowest,
        "drives_one_queue_over_slowest": rows[-1]["seconds"] / slowest,
    }
    return figures, rows


@contextmanager
def slowed(roots: dict[str, Path]):
    """Each of ``roots`` is a drive, as quick as :data:`MB_A_SECOND` says."""
    speeds = {str(root): Speed(MB_A_SECOND[name]) for name, root in roots.items()}

    def opened(path: str, tick: Tick, hashing: bool = True) -> Pass:
        speed = speeds[str(Path(path).parent)]

        def slow(size: int) -> None:
            speed.wait(size)
            tick(size)

        return real(path, slow, hashing)

    real = reading.open_pass
    with (
        mock.patch.object(reading, "open_pass", opened),
        mock.patch.object(Found, "drive", property(lambda item: item.root)),
    ):
        yield


def _row(
    folder: str, names: list[str], roots: dict[str, Path], order: Callable[[Found], Any] | None = None
) -> dict[str, Any]:
    times = []
    for _ in range(TURNS):
        with tempfile.TemporaryDirectory(dir=folder) as place, Library.open(place) as library:
            begun = time.perf_counter()
            report = library.scan(roots, workers=CORES, order=order)
            times.append(time.perf_counter() - begun)
            if report.encoded != report.added or report.problems:
                raise RuntimeError(f"{report.encoded} of {report.added} files were encoded: {report.problems}")
    row = {"roots": names, "files": report.added, "seconds": statistics.median(times), "turns": times}
    print(row, flush=True)
    return row
