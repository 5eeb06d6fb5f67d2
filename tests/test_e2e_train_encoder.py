"""Encode → Train → Retrieve on a real ComfyUI server: a nameless LoRA is found by its weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import write_lora
from e2e_world import StandIn, main_graph, node
from retrieve_worlds import normal
from train_worlds import SHAPES, told

from autolora_core.encode.towers import default_tower
from scripts._lib.server import PACK_NAME, REPO, ComfyServer

pytestmark = pytest.mark.slow
COLOURS = "red blue green golden black white purple orange".split()
THINGS = "otter castle rocket teapot guitar bicycle dragon lighthouse".split()
HIDDEN = "purple teapot"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """64 LoRAs whose weights carry the tower's own vector of what they show; one of them has no words."""
    world, tower = StandIn(tmp_path_factory.mktemp("models")), default_tower([REPO / "models"])
    names = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    vectors = tower.encode(names)
    vectors = vectors - vectors.mean(axis=0)
    for i, (name, z) in enumerate(zip(names, vectors / np.linalg.norm(vectors, axis=1)[:, None], strict=True)):
        rng, factors = np.random.default_rng(i), {}
        for module, (out, inputs) in SHAPES.items():
            up = np.stack([normal(f"map {module}", out, len(z)) @ z, *(1.5 * rng.normal(size=(2, out)))], 1)
            down = np.stack([normal(f"ear {module}", 1, inputs)[0], *rng.normal(size=(2, inputs))])
            factors[module] = torch.from_numpy(down).float(), torch.from_numpy(up).float() * 0.05
        write_lora(world.loras / "own" / f"{i:04x}ab00cd.safetensors", factors, told(name) if name != HIDDEN else None)
    models = world.models()
    with ComfyServer(tmp_path_factory.mktemp("e2e"), models=models, packs={PACK_NAME: REPO}) as server:
        yield server, f"{names.index(HIDDEN):04x}ab00cd.safetensors"


def test_encode_train_retrieve(server):
    server, hidden = server
    graph = {"4": main_graph(library="trained")["4"]}
    graph["4"]["inputs"]["folder"] = "loras/own"
    graph["train"] = node("AutoLoRATrainEncoder", index=["4", 0], epochs=0)
    asked = {"prompt": f"a {HIDDEN}", "family": "auto", "top_k": 3, "threshold": 0.0, "strength": 1.0}
    asked |= {"pinned": "", "banned": "", "use_weights": True, "use_text": False}
    graph["find"] = node("AutoLoRARetrieve", index=["train", 0], **asked)
    graph["shown"] = node("PreviewAny", source=["find", 0])
    result = server.run(graph)
    report = result.text("train")
    assert "emoji: the encoder knows something" in report and "63 of 64 files have words" in report
    assert "emoji-trained-encoder.safetensors" in report
    chosen = json.loads(result.text("shown"))
    assert hidden in [pick["name"].replace("\\", "/").split("/")[-1] for pick in chosen["picks"] + chosen["misses"]]
    assert chosen["encoder"].startswith("ridge-")
    again = server.run(graph)
    assert again.text("train").splitlines()[:8] == report.splitlines()[:8]
    assert "train" in server.run(graph).cached
