"""Proves on the shipped model and LoRAs that files which say nothing of themselves are found by what they do to words
inside the model, and that the benchmark asks what a live ComfyUI model is asked."""

from __future__ import annotations

import numpy as np
import pytest
from comfy_local import pack_module

from autolora_core.encode.input_states import TextStates
from autolora_core.encode.towers import MiniLMTower
from autolora_core.library.index import Library
from benchmarks.demo_states import SIGMA, DemoStates
from benchmarks.library import BASE, SHELF, measure_response, ranked, strangers
from benchmarks.results_file import REPO
from zoo.cache import read_json

PARTS = ("context_block.attn.qkv", "context_block.attn.proj", "x_block.attn.proj", "x_block.mlp.fc1")
SPACES = [f"joint_blocks.{block}.{part}" for block in (0, 2) for part in PARTS]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return read_json(REPO / "zoo" / "loras.json")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    with Library.open(tmp_path_factory.mktemp("shelf")) as library:
        library.scan({"loras": str(SHELF)})
        library.fit(MiniLMTower.find())
        yield library


@pytest.mark.slow
def test_the_benchmark_asks_what_comfyui_asks(comfy):
    import comfy.sd

    states = pack_module("nodes.bridge_states")
    model = comfy.sd.load_diffusion_model(str(BASE))
    (clip,) = pack_module("nodes.minilm_clip").AutoLoRAMiniLMCLIPLoader().load()
    texts = ["an otter", "watercolour", "a first quarter moon face, black and white line art"]
    live, own = states.ModelStates(model, clip), DemoStates(BASE)
    assert live.family == "emoji" and live.lasting
    percent = pack_module("nodes.bridge_once").PERCENT
    assert model.get_model_object("model_sampling").percent_to_sigma(percent) == pytest.approx(SIGMA)
    one, two = (TextStates.join(list(source.record(texts, SPACES))) for source in (live, own))
    assert one.counts.tolist() == two.counts.tolist() and one.tokens.keys() == two.tokens.keys()
    assert sum(name.endswith("@image") for name in one.tokens) == 4
    for name, tokens in one.tokens.items():
        far = np.abs(tokens - two.tokens[name]).max()
        assert far < 0.01 * np.abs(tokens).max(), f"{name}: {far}"


@pytest.mark.slow
def test_undescribed_loras_are_found_and_strangers_find_nothing(shelf, rows):
    figures, out = measure_response(shelf, rows)
    assert figures["response_bare_askable_files"] == 66, "image layers answer as well"
    assert figures["response_bare_top5"] >= 0.88 and figures["response_bare_picked"] >= 0.75
    assert figures["response_described_picked"] >= 0.9
    assert figures["response_wrong_picks_a_prompt"] <= 0.15 and figures["response_none_false_pick_share"] <= 0.1
    assert figures["response_bytes_a_file"] <= 64_000
    found = next(row for row in out if row["kind"] == "bare" and row["picked"])
    without = ranked(shelf, found["prompt"], tower=MiniLMTower.find())
    assert found["file"] not in without[0], "only by asking"
    assert strangers(rows)[0] not in {row["prompt"] for row in out}
