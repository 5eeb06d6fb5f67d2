"""A merged LoRA on a real ComfyUI server: saved by the node, drawn with by the stock loader, beside Apply's picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e_world import SAMPLER, StandIn, drawn, furthest, main_graph, node, stacked, without_pack

from scripts._lib.client import ExecutionFailed
from scripts._lib.server import PACK_NAME, REPO, ComfyServer

pytestmark = pytest.mark.slow

LINES = "otter.safetensors|1|1\npixel_art_style.safetensors|0.7|0.7"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    world = StandIn(tmp_path_factory.mktemp("models"))
    packs = {PACK_NAME: REPO, "e2e_pack": Path(__file__).parent / "e2e_pack"}
    with ComfyServer(tmp_path_factory.mktemp("e2e"), models=world.models(), packs=packs) as server:
        yield server


def saving(**inputs):
    """Only the loader, the stack and the node; its outputs are shown."""
    whole = stacked(LINES)
    graph = {"1": whole["1"], "stack": whole["stack"]}
    how = {"name": "mixes/otter", "mode": "sum", "dtype": "float16", "strength": 1.0} | inputs
    graph["save"] = node("AutoLoRASaveMerged", model=["1", 0], lora_stack=["stack", 0], **how)
    return graph | {"name": node("PreviewAny", source=["save", 0]), "report": node("PreviewAny", source=["save", 1])}


def stock(*loras):
    """The picture with ComfyUI's own loader, (name, strength) after (name, strength)."""
    graph, model = without_pack(main_graph()), ["1", 0]
    for number, (name, strength) in enumerate(loras):
        graph[f"lora{number}"] = node("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=strength)
        model = [f"lora{number}", 0]
    graph[SAMPLER]["inputs"]["model"] = model
    return graph


def test_the_stock_loader_draws_what_apply_draws(server):
    result = server.run(saving())
    name = result.text("name")
    assert name.replace("\\", "/") == "mixes/otter.safetensors" and "saved as" in result.text("report")
    merged, base = drawn(server, server.run(stock((name, 1.0)))), drawn(server, server.run(stock()))
    chain = drawn(server, server.run(stock(("otter.safetensors", 1.0), ("pixel_art_style.safetensors", 0.7))))
    applied = drawn(server, server.run(stacked(LINES, mode="sum")))
    assert furthest(merged, chain) <= 2 and furthest(merged, applied) <= 2 < 10 < furthest(merged, base)


def test_a_mode_that_cannot_be_saved_says_which_can(server):
    with pytest.raises(ExecutionFailed, match="mode 'klora' cannot be saved.*sum, ties"):
        server.run(saving(mode="klora", name="never"))
