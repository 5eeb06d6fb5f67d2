"""Proves, on a real cluster of two nodes on this machine, that the command encodes a library there, that a node killed
in the middle costs the files it had in hand and nothing else, and that the index is that of one machine."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cluster_world import mixed_folder
from conftest import ROOT
from library_dump import dump

from autolora_core.cluster import command
from autolora_core.library.index import Library

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: it has no package for this Python"
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="Ray runs clusters of several nodes on Linux only"),
]
SECONDS = 240  # for a machine that is busy with other things; alone it takes half a minute


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """LoRA folder, the folder that the cluster worked in, and what :mod:`ray_world` printed."""
    base = tmp_path_factory.mktemp("ray")
    loras = mixed_folder(base / "loras", good=32)
    program = [sys.executable, str(Path(__file__).with_name("ray_world.py")), str(base), str(loras), "node"]
    # In a group of its own: if it hangs, its nodes end with it.
    with subprocess.Popen(
        program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"the cluster did not finish: {process.communicate()[1][-2000:]}")
    assert process.returncode == 0, errors[-4000:]
    return loras, base, json.loads(output)


def test_the_index_is_that_of_one_machine(cluster, tmp_path, capsys):
    loras, base, done = cluster
    assert done["code"] == 0, done["report"]
    assert command.main(["--library", str(tmp_path / "alone"), "--loras", str(loras)]) == 0
    with Library.open(tmp_path / "alone") as alone, Library.open(base / "cluster") as library:
        assert dump(library) == dump(alone) and len(dump(alone)["vectors"]) > 10
    ours, theirs = (text.split("\n\nBy base model")[1] for text in (done["report"], capsys.readouterr().out))
    assert ours.split("\n\nIndex: ")[0] == theirs.split("\n\nIndex: ")[0]


def test_the_killed_node_cost_its_files_alone(cluster):
    loras, base, done = cluster
    assert (base / "reached").exists(), "no node was killed in the middle of a shard"
    victim = next(base.glob("victim-*")).name.removeprefix("victim-")
    in_hand = {name for node, _, name in done["opened"] if node == victim}
    opened = Counter(name for _, _, name in done["opened"])
    assert {name for name, count in opened.items() if count == 2} == in_hand and len(in_hand) == 3
    assert set(opened) == {path.name for path in loras.rglob("*.safetensors")} and max(opened.values()) == 2
    assert "Workers lost: 1; files handed out again for it: 4." in done["report"]


def test_the_run_leaves_nothing_half_done(cluster):
    _, base, _ = cluster
    assert [path.name for path in (base / "cluster").glob("*.tmp")] == []
    with Library.open(base / "cluster") as library:
        assert library.store.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
