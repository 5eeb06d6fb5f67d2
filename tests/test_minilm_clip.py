"""Proves that the MiniLM CLIP object gives stock CLIPTextEncode exactly the states the demo model was trained on."""

from __future__ import annotations

import math

import pytest
from comfy_local import pack_module

from autolora_core.encode.towers import MiniLMTower

PROMPTS = [
    "an otter in watercolour",
    "",
    "Crème brûlée, 3D render; café — 日本",
    "a very long prompt about " + ", ".join(f"thing number {n}" for n in range(40)),
    "red (and green) \\(bottle\\)",
]


@pytest.fixture(scope="module")
def clip(comfy):
    return pack_module("nodes.minilm_clip").AutoLoRAMiniLMCLIPLoader().load()[0]


@pytest.fixture(scope="module")
def tower():
    return MiniLMTower.find().load()


def encode(clip, text):
    """What ComfyUI's own CLIPTextEncode does."""
    (cond, extra), *more = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    assert not more
    return cond, extra["pooled_output"]


def test_it_is_a_stock_clip_object(clip):
    import comfy.sd

    assert type(clip) is comfy.sd.CLIP
    words = clip.cond_stage_model.state_dict()["minilm.transformer.bert.embeddings.word_embeddings.weight"]
    assert words.shape == (30522, 384)


@pytest.mark.parametrize("text", PROMPTS[:4])
def test_states_and_pooled_equal_the_tower(clip, tower, text):
    hidden, pooled = tower.states([text], length=24)
    cond, pooled_output = encode(clip, text)
    assert cond.shape == (1, 24, 384) and pooled_output.shape == (1, 384)
    assert (cond - hidden).abs().max() <= 2e-4
    assert (pooled_output - pooled * math.sqrt(384)).abs().max() <= 2e-4


def test_states_are_zero_beyond_the_end(clip):
    cond, _ = encode(clip, "otter")
    assert cond[0, :3].abs().amax(dim=1).min() > 0.1
    assert not cond[0, 3:].any()


def test_word_weight_scales_the_distance_from_the_empty_prompt(clip, tower):
    weighted, pooled = encode(clip, "an (otter:1.3) swims")
    plain = tower.states(["an otter swims"], length=24)[0]
    empty = tower.states([""], length=24)[0]
    expected = plain.clone()
    expected[0, 2] = (plain[0, 2] - empty[0, 2]) * 1.3 + empty[0, 2]
    assert (weighted - expected).abs().max() <= 3e-4
    assert (weighted - plain).abs().max() > 0.05
    assert (pooled - encode(clip, "an otter swims")[1]).abs().max() <= 2e-4


def test_escaped_and_unweighted_parentheses(clip, tower):
    cond, _ = encode(clip, "red \\(bottle\\)")
    assert (cond - tower.states(["red (bottle)"], length=24)[0]).abs().max() <= 2e-4
    assert encode(clip, "red (bottle:1.0)")[0].equal(encode(clip, "red bottle")[0])


def test_tokens_are_always_24_and_end_with_sep(clip):
    for text in PROMPTS:
        (row,) = clip.tokenize(text)["minilm"]
        ids = [token for token, _ in row]
        assert len(ids) == 24 and ids[0] == 101 and ids.count(102) == 1
        assert not any(ids[ids.index(102) + 1 :])
    assert clip.tokenize("red cat", return_word_ids=True)["minilm"][0][1][2] == 1


def test_a_clone_and_a_second_load_agree(clip):
    again = pack_module("nodes.minilm_clip").AutoLoRAMiniLMCLIPLoader().load()[0]
    assert encode(again, "a fox")[0].equal(encode(clip.clone(), "a fox")[0])


def test_a_changed_weights_file_is_refused(comfy, tmp_path, monkeypatch, tower):
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    (tmp_path / "tokenizer.json").write_bytes((tower.folder / "tokenizer.json").read_bytes())
    monkeypatch.setenv("AUTOLORA_MINILM", str(tmp_path))
    module = pack_module("nodes.minilm_clip")
    with pytest.raises(module.TowerError, match="not the original"):
        module.AutoLoRAMiniLMCLIPLoader().load()


def test_another_network_is_refused_by_name(comfy, tmp_path, tower):
    from safetensors.torch import load_file, save_file

    weights = load_file(tower.folder / "model.safetensors")
    weights.pop("encoder.layer.3.output.dense.bias")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes((tower.folder / "tokenizer.json").read_bytes())
    bridge = pack_module("nodes.bridge_clip")
    with pytest.raises(bridge.TowerError, match=r"encoder\.layer\.3\.output\.dense\.bias"):
        bridge.build_minilm_clip(tmp_path)


def test_absent_package_says_how_to_install(comfy, monkeypatch):
    module = pack_module("nodes.minilm_clip")
    monkeypatch.setattr(module.MiniLMTower, "find", classmethod(lambda cls: None))
    with pytest.raises(module.TowerError, match="pip install"):
        module.AutoLoRAMiniLMCLIPLoader().load()
