"""Proves where the layers of a text half go: by what they are and by their sizes, whatever number a trainer gave them.

No ComfyUI here: the text encoders are lists of names and shapes as ComfyUI has them.
"""

from __future__ import annotations

import pytest
import torch

from autolora_core.lora.file import LoraFile
from autolora_core.lora.keys import parse_key
from autolora_core.lora.text_keys import place, text_tensors

Q = "text_model.encoder.layers.{}.self_attn.q_proj"
CLIP_L = {f"clip_l.transformer.{Q.format(n)}.weight": (768, 768) for n in range(2)}
CLIP_G = {f"clip_g.transformer.{Q.format(n)}.weight": (1280, 1280) for n in range(2)}
T5 = "encoder.block.0.layer.0.SelfAttention.q"
LLAMA = {
    "llama.transformer.model.layers.0.self_attn.q_proj.weight": (64, 32),
    "llama.transformer.model.layers.0.mlp.gate_proj.weight": (96, 32),
}


def pair(stem: str, out: int, wide: int, rank: int = 4) -> dict[str, torch.Tensor]:
    return {f"{stem}.lora_down.weight": torch.ones(rank, wide), f"{stem}.lora_up.weight": torch.ones(out, rank)}


@pytest.fixture
def opened(tmp_path):
    def make(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> LoraFile:
        from safetensors.torch import save_file

        save_file(tensors, tmp_path / "a.safetensors", metadata)
        return LoraFile.open(tmp_path / "a.safetensors")

    return make


def placed(file: LoraFile, weights: dict) -> object:
    return place(file.modules.values(), weights)


@pytest.mark.parametrize("number", ["", "1", "2", "3"])
def test_the_width_decides_and_not_the_number(opened, number):
    key = f"lora_te{number}_text_model_encoder_layers_0_self_attn_q_proj"
    found = placed(opened(pair(key, 1280, 1280)), CLIP_L | CLIP_G)
    assert found.placed == {f"clip_g.{Q.format(0)}": f"clip_g.transformer.{Q.format(0)}"}
    assert found.layers == {"clip_g": (1, 1)}


@pytest.mark.parametrize("encoder", ["t5xxl", "umt5xxl", "pile_t5xl"])
@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te2_", "text_encoder_2.", "base_model.model."])
def test_t5_goes_to_whatever_t5_there_is(opened, encoder, prefix):
    key = prefix + (T5.replace(".", "_") if prefix.startswith("lora") else T5)
    found = placed(opened(pair(key, 64, 64)), {f"{encoder}.transformer.{T5}.weight": (64, 64)} | CLIP_L)
    assert found.placed == {f"t5xxl.{T5}": f"{encoder}.transformer.{T5}"} and found.layers == {encoder: (1, 1)}


@pytest.mark.parametrize(
    "key",
    [
        "lora_te_layers_0_self_attn_q_proj",
        "lora_te1_model_language_model_layers_0_self_attn_q_proj",
        "text_encoder.layers.0.self_attn.q_proj",
        "text_encoder.model.layers.0.self_attn.q_proj",
        "base_model.model.model.layers.0.self_attn.q_proj",
        "text_encoders.transformer.model.layers.0.self_attn.q_proj",
        "text_encoders.llama.transformer.model.layers.0.self_attn.q_proj",
    ],
)
def test_every_spelling_of_a_language_model(opened, key):
    found = placed(opened(pair(key, 64, 32)), LLAMA)
    assert list(found.placed.values()) == ["llama.transformer.model.layers.0.self_attn.q_proj"]


def test_a_language_model_of_another_size_is_another_model(opened):
    """Attention of two models may have one size: a layer that does not fit says that no layer belongs here."""
    tensors = pair("lora_te_layers_0_self_attn_q_proj", 64, 32) | pair("lora_te_layers_0_mlp_gate_proj", 80, 32)
    other = {name.replace("llama", "qwen3_4b"): (80, 32) if "mlp" in name else shape for name, shape in LLAMA.items()}
    found = placed(opened(tensors), LLAMA | other)
    assert all(where.startswith("qwen3_4b.") for where in found.placed.values()) and len(found.placed) == 2


def test_a_stated_encoder_is_taken_at_its_word(opened):
    """Two models of one size may be connected in turn: a file that names the other one is not for this one."""
    found = placed(opened(pair("text_encoders.qwen3_8b.transformer.model.layers.0.self_attn.q_proj", 64, 32)), LLAMA)
    assert found.placed == {} and found.layers == {"qwen3_8b": (0, 1)}
    assert list(found.missing.values()) == ["this CLIP has llama"]


def test_layers_beyond_the_depth_are_named(opened):
    tensors = pair(f"text_encoder.{Q.format(1)}", 768, 768) | pair(f"text_encoder.{Q.format(7)}", 768, 768)
    found = placed(opened(tensors), CLIP_L)
    assert found.layers == {"clip_l": (1, 2)}
    assert found.missing == {f"clip_l.{Q.format(7)}": "no such layer in this CLIP's clip_l"}


def test_two_encoders_of_no_known_width_do_not_share_one(opened):
    """Sizes say nothing here, so the numbers do; the second file layer must not land on the first one's encoder."""
    tensors = {}
    for number in (1, 2):
        tensors |= pair(f"lora_te{number}_text_model_encoder_layers_0_self_attn_q_proj", 32, 32)
    file = opened(tensors)
    found = placed(file, {f"clip_l.transformer.{Q.format(0)}.weight": (32, 32)})
    assert found.placed == {f"clip_l.{Q.format(0)}": f"clip_l.transformer.{Q.format(0)}"}
    assert found.missing == {f"clip_g.{Q.format(0)}": "this CLIP has clip_l"}
    both = {f"{name}.transformer.{Q.format(0)}.weight": (32, 32) for name in ("clip_l", "clip_g")}
    assert placed(file, both).layers == {"clip_l": (1, 1), "clip_g": (1, 1)}


def test_without_any_text_encoder_nothing_is_placed(opened):
    other = {"minilm.transformer.embeddings.weight": (3, 4)}
    found = placed(opened(pair(f"text_encoder.{Q.format(0)}", 768, 768)), other)
    assert found.placed == {} and "no text encoder that LoRAs are made for" in next(iter(found.missing.values()))


@pytest.mark.parametrize("number", ["1", "2"])
def test_layers_that_show_no_width_go_with_their_neighbours(opened, number):
    """An OFT's tensors tell the outputs alone, and those of fc1 are no CLIP's width: the number would be asked."""
    stem = f"lora_te{number}_text_model_encoder_layers_0_"
    tensors = {f"{stem}mlp_fc1.oft_blocks": torch.zeros(4, 16, 16)} | pair(f"{stem}self_attn_q_proj", 1280, 1280)
    file = opened(tensors)
    assert file.halves == {"clip_g"} and f"clip_g.{Q.format(0).replace('self_attn.q_proj', 'mlp.fc1')}" in file.modules


def test_adapters_that_weight_patches_do_not_know_are_named(opened):
    stem = f"base_model.model.{Q.format(0)}"
    found = placed(opened({f"{stem}.ia3_l": torch.ones(768, 1)}), CLIP_L)
    assert found.placed == {} and list(found.missing.values()) == ["ComfyUI's weight patches know no ia3 of this form"]


def test_tensors_keep_their_numbers_under_comfyuis_names(opened):
    stem, where = f"base_model.model.{Q.format(0)}", f"text_encoders.clip_l.transformer.{Q.format(0)}"
    down, up, size = torch.randn(4, 768), torch.randn(768, 4), torch.rand(768)
    tensors = {
        f"{stem}.lora_A.mine.weight": down, f"{stem}.lora_B.mine.weight": up,
        f"{stem}.lora_magnitude_vector.mine.weight": size,
    }  # fmt: skip
    file = opened(tensors)
    made = text_tensors(placed(file, CLIP_L), file.modules, tensors)
    assert made.keys() == {f"{where}.lora_down.weight", f"{where}.lora_up.weight", f"{where}.dora_scale"}
    assert made[f"{where}.lora_down.weight"].equal(down) and made[f"{where}.lora_up.weight"].equal(up)
    assert made[f"{where}.dora_scale"].equal(size[:, None])


def test_a_peft_configurations_scale_becomes_an_alpha(opened):
    """The stock loader does not read it: without an alpha its factor would be 1."""
    stem = f"text_encoder.{Q.format(0)}"
    tensors = {f"{stem}.lora_A.weight": torch.ones(4, 768), f"{stem}.lora_B.weight": torch.ones(768, 4)}
    config = '{"text_encoder.r": 4, "text_encoder.lora_alpha": 12}'
    file = opened(tensors, {"lora_adapter_metadata": config})
    made = text_tensors(placed(file, CLIP_L), file.modules, tensors)
    (entry,) = file.modules.values()
    assert entry.scale == 3 and float(made[f"text_encoders.clip_l.transformer.{Q.format(0)}.alpha"]) == 12


def test_ace_steps_layers_are_no_language_model():
    """PEFT files of ACE-Step's own transformer look like a language model without its head."""
    assert parse_key("base_model.model.layers.0.self_attn.q_proj.lora_A.weight").form.half == "model"
    assert parse_key("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").form.half == "text"
