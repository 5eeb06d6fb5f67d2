"""scripts/batch.py with real ComfyUI servers: the client killed, a server killed, Ctrl-C, and the same pictures."""

from __future__ import annotations

import json
import os
import signal

import pytest
from batch_world import check, finished, manifest, pictures, saved_on, start, wait_for, write_table
from e2e_world import SAMPLER, StandIn, main_graph

from scripts._lib.server import ComfyServer

pytestmark = pytest.mark.slow

COUNT = 12


def quick_graph():
    """The shipped workflow at two steps; LoRAs are found by their words, which is quicker than asking the model."""
    return main_graph(library="batch", use_weights=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = StandIn(tmp_path_factory.mktemp("models"))
    (world.root / "workflow.json").write_text(json.dumps(quick_graph()), encoding="utf-8")
    write_table(world.root / "prompts.csv", COUNT)
    return world


@pytest.fixture(scope="module")
def servers(world, tmp_path_factory):
    """Two servers; the tests may end the second."""
    with ComfyServer(tmp_path_factory.mktemp("one"), models=world.models()) as one:
        with ComfyServer(tmp_path_factory.mktemp("two"), models=world.models()) as two:
            yield one, two


def queue_of(server):
    answer = server.client.get("/queue")
    return len(answer["queue_running"]) + len(answer["queue_pending"])


def test_a_killed_client_and_a_killed_server_leave_each_picture_once(world, servers, tmp_path):
    one, two = servers
    table, more = world.root / "prompts.csv", ["--workflow", str(world.root / "workflow.json"), "--gone-after", "2"]
    both = [one.url, two.url]

    killed = start(table, tmp_path / "out", both, *more)
    wait_for(lambda: len(manifest(tmp_path / "out")) >= 3, killed)
    killed.kill()
    killed.communicate()
    sent = saved_on(one.base, two.base) + queue_of(one) + queue_of(two)
    resumed = start(table, tmp_path / "out", both, *more)
    wait_for(lambda: len(manifest(tmp_path / "out")) >= 5 and queue_of(two), resumed)
    assert saved_on(one.base, two.base) <= max(sent, len(manifest(tmp_path / "out")) + 4)
    os.killpg(two.pid, signal.SIGKILL)
    said = finished(resumed)

    lines = check(tmp_path / "out", COUNT)
    assert "looked for on their servers" in said and "gone. Its" in said
    assert {line["server"] for line in lines} == set(both)
    for line in lines:
        subject = line["prompt"].split(",")[0].split()[-1]
        assert f"{subject}.safetensors" in {pick["name"] for pick in line["picks"]}
        assert line["seconds"] > 0 and line["seed"] == line["row"]
    # what the dead server had in hand, at most two jobs, was made again; nothing else was
    assert COUNT <= saved_on(one.base, two.base) <= COUNT + 2

    finished(start(table, tmp_path / "alone", [one.url], *more))
    assert pictures(tmp_path / "alone", check(tmp_path / "alone", COUNT)) == pictures(tmp_path / "out", lines)
    again = finished(start(table, tmp_path / "alone", [one.url], *more))
    assert f"{COUNT} made already" in again and saved_on(one.base, two.base) <= 2 * COUNT + 2


def test_ctrl_c_takes_back_what_waits_and_the_next_run_fetches_what_ran(world, servers, tmp_path):
    one = servers[0]
    graph = quick_graph()
    graph[SAMPLER]["inputs"]["steps"] = 12
    (tmp_path / "slow.json").write_text(json.dumps(graph), encoding="utf-8")
    table, more = write_table(tmp_path / "prompts.csv", 4), ["--workflow", str(tmp_path / "slow.json")]
    before = saved_on(one.base)
    stopped = start(table, tmp_path / "out", [one.url], *more)
    wait_for(lambda: manifest(tmp_path / "out") and queue_of(one) == 2, stopped)
    stopped.send_signal(signal.SIGINT)
    said, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + signal.SIGINT and "1 jobs were taken back" in said and "To go on:" in said
    wait_for(lambda: queue_of(one) == 0)
    assert saved_on(one.base) < before + 4
    finished(start(table, tmp_path / "out", [one.url], *more))
    check(tmp_path / "out", 4)
    assert saved_on(one.base) == before + 4


def test_a_job_that_fails_is_told_with_its_node_and_not_tried_again(world, servers, tmp_path):
    one = servers[0]
    broken = world.loras / "gone.safetensors"
    rows = [{"prompt": "a castle"}, {"prompt": "an otter", "pinned": "gone"}, {"prompt": "x", "Sample.steps": 0}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    more = ["--workflow", str(world.root / "workflow.json")]
    assert not broken.exists()
    process = start(tmp_path / "prompts.jsonl", tmp_path / "out", [one.url], *more)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    lines = {line["row"]: line for line in manifest(tmp_path / "out")}
    assert lines[1]["status"] == "done" and lines[2]["status"] == lines[3]["status"] == "failed"
    assert lines[2]["error"]["type"] == "AutoLoRARetrieve" and "gone" in lines[2]["error"]["message"]
    assert lines[3]["error"]["type"] == "KSampler" and "steps" in lines[3]["error"]["message"]
    assert "row 2 failed: node 5 (AutoLoRARetrieve)" in said
    finished(start(tmp_path / "prompts.jsonl", tmp_path / "out", [one.url], *more))
    assert len(manifest(tmp_path / "out")) == 3
