"""Encoding on a Ray cluster: two nodes of one processor each on this machine, beside the same work without Ray; and
again with one of the nodes killed in the middle of a shard."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from autolora_core.cluster import command
from autolora_core.library.index import Library
from benchmarks.results_file import REPO
from benchmarks.scale.lora_files import write

sys.path.append(str(REPO / "tests"))  # the tests' cluster is used here too

from cluster_world import dump  # noqa: E402
from ray_world import timed  # noqa: E402

FILES, QUICK_FILES, RANK = 96, 24, 4


def measure(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """How long two workers take against two threads of one process, what a killed one costs, and that all indexes are
    equal."""
    count = QUICK_FILES if quick else FILES
    with tempfile.TemporaryDirectory(prefix="autolora-ray-") as folder:
        base = Path(folder)
        for seed in range(count):
            path = base / "loras" / f"thing-{seed:04}.safetensors"
            write(path, "sdxl", RANK, torch.float16, seed, 40 if quick else None)
        # Before and after: other work on the machine comes and goes.
        alone = encode_alone(base, "before")
        undisturbed, again = encode_on_cluster(base, "none"), encode_alone(base, "after")
        killed = encode_on_cluster(base, "node")
    figures = {
        "ray_files": count,
        "ray_megabytes": alone["megabytes"],
        "ray_time_ratio": 2 * undisturbed["seconds"] / (alone["seconds"] + again["seconds"]),
        "ray_equal_to_single": float(undisturbed["content"] == alone["content"]),
        "ray_killed_equal_to_single": float(killed["content"] == alone["content"]),
        "ray_killed_files_read_twice": sum(n - 1 for n in killed["opened"].values()),
        "ray_killed_files_missing": count - len(killed["opened"]),
    }
    rows = [
        {"way": way, "seconds": made["seconds"], "exit_code": made["code"], "workers": about_workers(made["report"])}
        for way, made in (
            ("alone", alone),
            ("two nodes", undisturbed),
            ("alone again", again),
            ("one node killed", killed),
        )
    ]
    return figures, rows


def about_workers(report: str) -> list[str]:
    return [line for line in report.splitlines() if "workers" in line.lower()]


def encode_alone(base: Path, name: str) -> dict[str, Any]:
    """The command on one machine, with as many threads as it takes."""
    seconds: list[float] = []
    output = io.StringIO()
    real, command._scan = command._scan, timed(command._scan, seconds)
    try:
        with contextlib.redirect_stdout(output):
            code = command.main(["--library", str(base / name), "--loras", str(base / "loras")])
    finally:
        command._scan = real
    size = sum(path.stat().st_size for path in (base / "loras").iterdir())
    with Library.open(base / name) as library:
        return {"seconds": seconds[0], "code": code, "report": output.getvalue(),
                "megabytes": round(size / 1e6, 1), "content": dump(library)}  # fmt: skip


def encode_on_cluster(base: Path, kill: str) -> dict[str, Any]:
    """The command on two nodes, ``kill`` as :mod:`ray_world` takes it; every file with how often it was opened."""
    folder = base / f"cluster-{kill}"
    folder.mkdir()
    program = [sys.executable, str(REPO / "tests" / "ray_world.py"), str(folder), str(base / "loras"), kill]
    done = subprocess.run(program, cwd=REPO, stdout=subprocess.PIPE, encoding="utf-8", timeout=1800, check=True)
    made = json.loads(done.stdout)
    with Library.open(folder / "cluster") as library:
        return {**made, "opened": Counter(name for _, _, name in made["opened"]), "content": dump(library)}
