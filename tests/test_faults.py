"""Tries a few of every fault of ``python -m benchmarks.reliability --part faults`` for real, and proves that its checks
notice a store that loses what it committed and a writer that leaves half a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
KINDS = {
    "kills_encode", "kills_train", "kills_save", "torn_writes", "flush_order", "disk_full", "read_only", "file_changes",
    "cut_while_read", "drive_gone", "two_processes", "clocks", "newer_versions",
}  # fmt: skip
if not hasattr(os, "fork"):
    pytest.skip("processes are forked", allow_module_level=True)


def run(*arguments: str, cache: Path) -> str:
    """Forked children: in a process that has no threads yet."""
    environment = {**os.environ, "AUTOLORA_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_a_few_of_every_fault(tmp_path):
    words = run("-m", "benchmarks.reliability", "--here", "--part", "faults", "--quick", cache=tmp_path)
    said = json.loads(words[words.index("{\n") :])
    figures, rows = said["figures"], {row["kind"]: row for row in said["rows"]}
    lost = {kind: row["first_loss"] for kind, row in rows.items() if row["with_loss"]}
    assert not lost and figures["faults_with_loss"] == 0
    assert set(rows) == KINDS and all(row["tried"] > 0 for row in rows.values())
    assert figures["kills"] == 12 and figures["faults_tried"] == sum(row["tried"] for row in rows.values())
    assert rows["disk_full"]["stopped_with_an_error"] > 0


PLANTED = """
import random, sys, torch
from pathlib import Path
from benchmarks.reliability import faults_kills as kills
torch.set_num_threads(1)
{plant}
row = kills.{kind}({count}, random.Random(3), Path(sys.argv[1]))
print(len(row.losses), row.losses[0][-300:] if row.losses else "")
"""
FORGETFUL = """
import os, sqlite3
keep = kills.keep_journal
def forgetful(log):
    # what is committed to a new library goes to memory, as if it reached the disk later
    real = sqlite3.connect
    fresh = lambda at: str(at).endswith("library.sqlite") and not os.path.exists(at)
    sqlite3.connect = lambda at, *a, **k: real(":memory:" if fresh(at) else at, *a, **k)
    keep(log)
kills.keep_journal = forgetful
"""
TORN = """
import time
from autolora_core.fusion import files
def torn(path, write, fresh=False):
    whole = Path(sys.argv[1]) / "whole"
    write(str(whole))
    data = whole.read_bytes()
    with open(path, "wb", buffering=0) as out:
        out.write(data[: len(data) // 2])
        time.sleep(0.02)
        out.write(data[len(data) // 2 :])
files.write_whole = torn
"""


@pytest.mark.parametrize("kind,plant,count,says", [
    ("kill_encode", FORGETFUL, 4, "is gone"), ("kill_save", TORN, 4, "Error"),
])  # fmt: skip
def test_a_planted_loss_is_noticed(tmp_path, kind, plant, count, says):
    said = run("-c", PLANTED.format(plant=plant, kind=kind, count=count), str(tmp_path), cache=tmp_path)
    losses, _, first = said.partition(" ")
    assert int(losses) > 0 and says in first
