"""Proves on a real ComfyUI server that a saved picture tells which LoRAs made it, also where Apply itself did not run
again; and that LoRAs come into a graph as text and leave it as text."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path

import pytest
from conftest import emoji_factors, write_lora
from e2e_world import APPLY, RETRIEVE, SAMPLER, SAVE, StandIn, drawn, main_graph, node, ran, stacked
from PIL import Image

from scripts._lib.client import ExecutionFailed, PromptRejected
from scripts._lib.graphs import find
from scripts._lib.png import same_picture
from scripts._lib.server import PACK_NAME, REPO, ComfyServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = StandIn(tmp_path_factory.mktemp("models"))
    words = {"modelspec.trigger_phrase": "fx fox, in snow"}
    write_lora(world.loras / "animals" / "fox.safetensors", emoji_factors(60, 2), words)
    return world


@pytest.fixture(scope="module")
def server(world, tmp_path_factory):
    packs = {PACK_NAME: REPO, "e2e_pack": Path(__file__).parent / "e2e_pack"}
    with ComfyServer(tmp_path_factory.mktemp("e2e"), models=world.models(), packs=packs) as server:
        yield server


def telling(graph, **inputs):
    """The graph with its Save Image replaced by ours."""
    images = graph[SAVE]["inputs"]["images"]
    graph[SAVE] = node("AutoLoRASaveImage", images=images, filename_prefix="told", model=[APPLY, 0], **inputs)
    return graph


def told(server, result):
    picture = drawn(server, result)
    return picture, Image.open(io.BytesIO(picture)).info


def digest(world, name):
    return hashlib.sha256((world.loras / name).read_bytes()).hexdigest()


def test_a_picture_tells_its_loras_also_when_apply_is_cached(server, world):
    workflow = {"nodes": [], "links": [], "version": 0.4}
    graph = telling(main_graph(library="told", seed=7), positive=[RETRIEVE, 2], settings="Clip skip: 2")
    result = server.run(graph, extra_data={"extra_pnginfo": {"workflow": workflow}})
    _, info = told(server, result)
    assert {name: body["inputs"] for name, body in json.loads(info["prompt"]).items()} == {
        name: body["inputs"] for name, body in graph.items()
    }
    assert json.loads(info["workflow"]) == workflow
    (applied,) = json.loads(info["autolora"])["applied"]
    names = {lora["name"] for lora in applied["loras"]}
    assert {"otter.safetensors", "pixel_art_style.safetensors"} <= names and applied["family"] == "emoji"
    for lora in applied["loras"]:
        assert lora["hashes"]["sha256"] == digest(world, lora["name"]) and lora["origin"] == "selection"
        short = lora["name"].removesuffix(".safetensors")
        assert f"<lora:{short}:{lora['strength']}>" in info["parameters"]
        assert f'"lora:{short}": "{digest(world, lora["name"])[:10]}"' in info["parameters"]
    prompt, settings = info["parameters"].split("\nNegative prompt:")[0], info["parameters"].split("\n")[-1]
    assert prompt.startswith("an otter, pixel art style") and "Clip skip: 2" in settings
    assert re.match(r"Steps: 2, Sampler: Euler, Schedule type: \w+, CFG scale: 3, Seed: 7, Size: 128x128, ", settings)

    assert ran(server.run(graph, extra_data={"extra_pnginfo": {"workflow": workflow}})) == set()
    graph[SAMPLER]["inputs"]["seed"] = 8
    again = server.run(graph)
    assert APPLY not in ran(again) and {SAMPLER, SAVE} <= ran(again)
    _, second = told(server, again)
    assert json.loads(second["autolora"])["applied"] == [applied] and "Seed: 8" in second["parameters"]


def test_the_picture_is_that_of_save_image(server):
    plain = stacked("otter.safetensors|1|1", mode="sum")
    plain["stock"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name="castle.safetensors", strength_model=0.5)
    plain[APPLY]["inputs"]["model"] = ["stock", 0]
    stock = drawn(server, server.run(plain))
    picture, info = told(server, server.run(telling(plain)))
    assert same_picture(stock, picture)
    assert info["parameters"].split("\n")[0].endswith("<lora:castle:0.5> <lora:otter:1.0>")
    assert json.loads(info["autolora"])["other_loras"][0]["node"] == "stock"


def test_loras_come_as_text_and_leave_as_text(server):
    graph = telling(stacked("", mode="sum"))
    sampler = graph[find(graph, "KSampler")]["inputs"]
    del graph["stack"]
    graph["text"] = node("AutoLoRAStackFromText", text="an otter <lora:otter:1:0.5>, <lora:FOX:0.5>")
    graph[APPLY]["inputs"]["lora_stack"] = ["text", 0]
    graph[sampler["positive"][0]]["inputs"]["text"] = ["text", 1]
    graph["words"] = node("AutoLoRAStackToText", names="file name", lora_stack=["text", 0])
    graph |= {name: node("PreviewAny", source=["words", slot]) for slot, name in enumerate(("marks", "triggers"))}
    graph["rest"] = node("PreviewAny", source=["text", 1])
    result = server.run(graph)
    assert result.text("marks") == "<lora:otter:1.0:0.5> <lora:fox:0.5>"
    assert result.text("rest") == "an otter" and result.text("triggers") == "fx fox,, in snow"
    _, info = told(server, result)
    assert info["parameters"].startswith("an otter <lora:otter:1.0> <lora:fox:0.5>\n")
    typed = stacked("otter.safetensors|1|0.5\nanimals/fox.safetensors|0.5|0.5", mode="sum")
    typed[sampler["positive"][0]]["inputs"]["text"] = "an otter"
    assert same_picture(drawn(server, server.run(typed)), drawn(server, result))


def test_a_name_that_means_nothing_stops_the_run(server):
    graph = {"text": node("AutoLoRAStackFromText", text="<lora:unicorn:1>"), "show": None}
    graph["show"] = node("PreviewAny", source=["text", 1])
    with pytest.raises(ExecutionFailed, match="the LoRA file unicorn is not in any of ComfyUI's loras folders"):
        server.run(graph)


def test_a_line_that_is_no_setting_is_refused_before_anything_runs(server):
    graph = telling(main_graph(library="told", seed=9), settings="20 steps")
    with pytest.raises(PromptRejected) as refused:
        server.run(graph)
    (error,) = refused.value.node_errors[SAVE]["errors"]
    assert error["details"].startswith("settings - '20 steps' is not a setting")
    graph["typed"] = node("PrimitiveStringMultiline", value="Clip skip: 2")
    graph[SAVE]["inputs"]["settings"] = ["typed", 0]  # not known before it runs
    _, info = told(server, server.run(graph))
    assert "Clip skip: 2" in info["parameters"]
