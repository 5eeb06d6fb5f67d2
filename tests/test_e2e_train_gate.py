"""Encode → Train Fusion Gate → Apply on a real ComfyUI server, and the command line that does the same."""

from __future__ import annotations

import pytest
from e2e_world import APPLY, SAMPLER, SEEDED, StandIn, main_graph

from scripts._lib import gate_graph
from scripts._lib.server import PACK_NAME, REPO, ComfyServer
from scripts.train_gate import parse

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    world = StandIn(tmp_path_factory.mktemp("models"))
    with ComfyServer(tmp_path_factory.mktemp("e2e"), models=world.models(), packs={PACK_NAME: REPO}) as server:
        yield server


def trained(server):
    """The command line's own graph, on the small world."""
    few = {"steps": 8, "most-loras": 4, "sampling-steps": 2, "width": 64, "gate-name": "small"}
    options = parse([word for name, value in few.items() for word in (f"--{name}", str(value))])
    return server.run(gate_graph.build(options))


def test_train_and_apply(server):
    result = trained(server)
    report = result.text(gate_graph.REPORT)
    assert "8 steps on 4 LoRAs and 4 pictures" in report and "plain sum" in report, report
    assert len(result.images(gate_graph.PREVIEWS)) == 4
    made = server.base / "models" / "autolora" / "small.safetensors"
    assert made.exists() == ("saved as small.safetensors" in report)
    again = trained(server)
    assert again.text(gate_graph.REPORT) == report, "nothing changed: ComfyUI does not run it again"
    if made.exists():
        graph = main_graph(library="e2e")
        graph[APPLY]["inputs"] |= {"mode": "gate", "gate": "small.safetensors"}
        graph[SAMPLER]["inputs"] |= SEEDED
        assert server.run(graph).status == "success"
