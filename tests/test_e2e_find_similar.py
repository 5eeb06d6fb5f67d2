"""Find LoRAs Like This on a real ComfyUI server, over HTTP: by LoRA, by picture, as a list, cached, and into Apply."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import emoji_factors, write_lora
from e2e_world import StandIn, main_graph, node, without_pack
from PIL import Image
from similar_files import mixed, scaled
from tiny_clip import tiny_clip

from scripts._lib.client import ExecutionFailed
from scripts._lib.server import PACK_NAME, REPO, ComfyServer

pytestmark = pytest.mark.slow
FIND, PICKS = "find", "picks"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = StandIn(tmp_path_factory.mktemp("models"))
    otter = emoji_factors(0)
    write_lora(world.loras / "nameless" / "louder.safetensors", scaled(otter, 2))
    write_lora(world.loras / "nameless" / "other numbers.safetensors", mixed(otter))
    picture = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(picture).resize((64, 64)).save(world.loras / "castle.preview.png")
    Image.fromarray(255 - picture).resize((64, 64)).save(world.loras / "rocket.png")
    (world.root / "clip_vision").mkdir()
    tiny_clip(world.root / "clip_vision" / "tiny.safetensors")
    return world


@pytest.fixture(scope="module")
def server(world, tmp_path_factory):
    models = {**world.models(), "clip_vision": [world.root / "clip_vision"]}
    with ComfyServer(tmp_path_factory.mktemp("e2e"), models=models, packs={PACK_NAME: REPO}) as server:
        shown = (world.loras / "castle.preview.png").read_bytes()
        (server.base / "input").mkdir(exist_ok=True)
        (server.base / "input" / "castle.png").write_bytes(shown)
        yield server


def graph(**find):
    """Encode, Find, and the selection shown."""
    encode = main_graph(library="like")["4"]
    return {
        "4": encode,
        FIND: node("AutoLoRAFindSimilar", index=["4", 0], **find),
        PICKS: node("PreviewAny", source=[FIND, 0]),
    }


def picks(result):
    return [pick["name"].split("/")[-1] for pick in json.loads(result.text(PICKS))["picks"]]


def test_by_lora_cached_and_run_again_when_the_file_changes(server, world):
    asked = graph(lora="otter.safetensors", versions=True)
    result = server.run(asked)
    assert sorted(picks(result))[:2] == ["louder.safetensors", "other numbers.safetensors"]
    report = result.text(FIND)
    assert "re-scaled: at strength 0.5" in report and "re-factorised" in report
    again = server.run(asked)
    assert FIND in again.cached and again.text(FIND) == report


def test_by_picture(server):
    asked = graph(image=["picture", 0], clip="clip_vision/tiny.safetensors", top_k=1)
    asked["picture"] = node("LoadImage", image="castle.png")
    result = server.run(asked)
    assert picks(result) == ["castle.safetensors"] and "preview 1.00" in result.text(FIND)


def test_without_a_question_it_lists_the_library(server):
    result = server.run(graph())
    assert picks(result) == [] and "There more than once (3)" in result.text(FIND)


def test_what_is_missing_stops_the_run_and_is_named(server):
    asked = graph(image=["picture", 0])
    asked["picture"] = node("LoadImage", image="castle.png")
    with pytest.raises(ExecutionFailed) as failed:
        server.run(asked)
    error = failed.value.result.error
    assert error["node_type"] == "AutoLoRAFindSimilar" and "CLIP with an image tower" in error["exception_message"]


def test_the_selection_goes_into_apply(server):
    whole = without_pack(main_graph()) | graph(lora="otter.safetensors", versions=True, top_k=1)
    whole["apply"] = node(
        "AutoLoRAGatedApply", model=["1", 0], selection=[FIND, 0], mode="sum", gate="auto", strength=1.0
    )
    whole["10"]["inputs"]["model"] = ["apply", 0]
    whole["fusion"] = node("PreviewAny", source=["apply", 2])
    result = server.run(whole)
    assert picks(result)[0] in result.text("fusion") and result.images("12")


def test_object_info(server):
    info = server.client.object_info("AutoLoRAFindSimilar")["AutoLoRAFindSimilar"]
    assert info["display_name"] == "Find LoRAs Like This" and info["output_node"]
    menus = info["input"]["optional"]
    assert "otter.safetensors" in menus["lora"][0] and menus["clip"][0] == ["none", "clip_vision/tiny.safetensors"]
    page = server.client.request("GET", "/extensions/autolora/docs/AutoLoRAFindSimilar.md").decode()
    assert all(f"\n| {entry} |" in page for entry in (*menus, *info["output_name"]))
