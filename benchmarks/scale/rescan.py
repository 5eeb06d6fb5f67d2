"""A library of a hundred thousand files that did not change: how long it takes to see that.

The folders hold real files with the sidecars of other tools beside them. What a scan that read them all would have left
in the database is put there by SQL, from a scan of their headers: a scan of unchanged files opens none of them.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autolora_core.library.index import Library
from autolora_core.library.responses import response_id
from autolora_core.library.sketches import sketch_id
from autolora_core.library.walk import Scope, folder_state
from benchmarks.scale.encode import scratch, two_processors
from benchmarks.scale.folders import make

FILES, QUICK_FILES, TURNS = 100_000, 3_000, 3


def measure(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    two_processors()
    files = QUICK_FILES if quick else FILES
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        root, times = Path(folder) / "loras", {"walk": [], "rescan": [], "state": []}
        make(root, files)
        with Library.open(Path(folder) / "library") as library:
            _known(library, root)
            for _ in range(TURNS):
                times["walk"].append(_timed(lambda: bare_walk(root)))
                times["rescan"].append(_timed(lambda: _rescan(library, root, files)))
                times["state"].append(_timed(lambda: folder_state(Scope.of([root]))))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    figures = {
        "rescan_100k_s": seconds["rescan"] * FILES / files,
        "rescan_over_walk": seconds["rescan"] / seconds["walk"],
        "folder_state_100k_s": seconds["state"] * FILES / files,
    }
    rows = [{"what": name, "files": files, "seconds": value, "turns": times[name]} for name, value in seconds.items()]
    return figures, rows


def bare_walk(root: Path) -> int:
    """Sizes and times of all files, and nothing else."""
    count, folders = 0, [os.fspath(root)]
    while folders:
        with os.scandir(folders.pop()) as listed:
            for entry in listed:
                if entry.is_dir():
                    folders.append(entry.path)
                else:
                    entry.stat()
                    count += 1
    return count


def _known(library: Library, root: Path) -> None:
    """The rows of a library that has read and encoded everything below ``root``."""
    library.scan([root], headers_only=True)
    with library.store.transaction() as db:
        whole = "(SELECT printf('%064x', id) FROM files f WHERE f.hash = contents.hash)"
        db.execute(f"UPDATE contents SET hash = {whole}")
        db.execute("UPDATE files SET hash = printf('%064x', id)")
        for table, key, columns in (
            ("features", sketch_id, "hash, sketch_id, layout, width, rows, log_norms, skipped, problem, date"),
            ("responses", response_id, "hash, response_id, spaces, rows, scale, problem, date"),
        ):
            values = "hash, ?" + ", ''" * (columns.count(",") - 1)
            db.execute(f"INSERT INTO {table} ({columns}) SELECT {values} FROM contents", (key("sdxl"),))


def _rescan(library: Library, root: Path, files: int) -> None:
    report = library.scan([root])
    if (report.unchanged, report.files, report.bytes_read) != (files, files, 0):
        raise RuntimeError(f"{report.unchanged} of {report.files} files were unchanged, {report.bytes_read} bytes read")


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
