"""Faults, tried for real: kills, full and read-only disks, changing files, two processes, clocks, newer versions.

``python -m benchmarks.reliability --part faults`` tries all of them, ``--quick`` a few of each. Every trial ends with
the same questions: does it open, is everything there that was committed, does the next run finish, is the result that
of an undisturbed run? What was tried, and what was not, is in ``docs/reliability.md``.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import faults_disks, faults_files, faults_folders, faults_kills, faults_others
from .faults_world import Row

SEED = 7
FULL = {"encode": 120, "train": 42, "save": 42, "torn": 24, "levels": 8, "epochs": 2, "drive": 12, "changing": 24,
        "cut": 2.0, "shared": 3, "seconds": 8.0, "clocks": 8}  # fmt: skip
QUICK = {"encode": 6, "train": 3, "save": 3, "torn": 2, "levels": 1, "epochs": 0, "drive": 3, "changing": 1, "cut": 0.3,
         "shared": 1, "seconds": 2.0, "clocks": 1}  # fmt: skip


def trials(many: dict[str, Any], base: Path) -> list[Callable[[], Row]]:
    """One call a kind of fault, each in a folder of its own below ``base``."""
    rng = random.Random(SEED)

    def at(name: str) -> Path:
        (base / name).mkdir()
        return base / name

    return [
        lambda: faults_kills.kill_encode(many["encode"], rng, at("encode")),
        lambda: faults_kills.kill_train(many["train"], rng, at("train")),
        lambda: faults_kills.kill_save(many["save"], rng, at("save")),
        lambda: faults_files.torn_writes(many["torn"], rng, at("torn")),
        lambda: faults_files.flushed_in_order(at("flushed")),
        lambda: faults_disks.disk_full(many["levels"], many["epochs"], at("full")),
        lambda: faults_folders.read_only_folders(many["epochs"], at("read only")),
        lambda: faults_files.changing_files(many["changing"], rng, at("changing")),
        lambda: faults_files.maps(at("cut"), many["cut"]),
        lambda: faults_folders.drive_gone(many["drive"], rng, at("drive")),
        lambda: faults_others.two_processes(many["shared"], many["seconds"], rng, at("shared")),
        lambda: faults_others.clocks(many["clocks"], rng, at("clocks")),
        lambda: faults_others.newer_versions(at("newer")),
    ]


def figures_of(rows: list[Row]) -> dict[str, float]:
    """``faults_tried``, ``faults_with_loss``, and how often each kind was tried."""
    figures = {row.kind: row.tried for row in rows}
    figures["faults_tried"] = sum(row.tried for row in rows)
    figures["faults_with_loss"] = sum(len(row.losses) for row in rows)
    figures["kills"] = sum(row.tried for row in rows if row.kind.startswith("kills_"))
    for row in rows:
        for name in ("longest_read_ms", "longest_unwritten_ms", "commit_ms_full", "commit_ms_normal"):
            if name in row.more:
                figures[f"faults_{name}"] = row.more[name]
    return figures


def measure(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """See :mod:`benchmarks.parts`."""
    torch.set_num_threads(1)  # children are forked
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="autolora-faults-") as folder:
        for work in trials(QUICK if quick else FULL, Path(folder)):
            rows.append(work())
            print(f"faults: {rows[-1].kind}: {rows[-1].tried} tried, {len(rows[-1].losses)} with loss", flush=True)
    # Errors name files: where this run happened to have its folder is nobody's business.
    said = json.dumps([row.to_json() for row in rows]).replace(json.dumps(folder)[1:-1], "…")
    return figures_of(rows), json.loads(said)
