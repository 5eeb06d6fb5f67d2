"""Proves that the layers a prompt reaches are found under their names in every base, with the input they share."""

from __future__ import annotations

import pytest

from autolora_core.encode.spaces import CONTEXT, FAMILIES, named_space, space_name, space_of

UNET = "input_blocks.1.1.transformer_blocks.0"
# family, module, which tokens it reads, and where its input is recorded when that is not the module itself
REACHED = [
    ("sd15", "input_blocks.1.1.transformer_blocks.0.attn2.to_k", CONTEXT, None),
    ("sdxl", "middle_block.1.transformer_blocks.9.attn2.to_v", CONTEXT, None),
    ("sd3", "joint_blocks.3.context_block.mlp.fc1", "text"),
    ("emoji", "joint_blocks.0.context_block.attn.proj", "text"),
    ("sd3", "joint_blocks.3.context_block.mlp.fc2", "text"),
    ("flux", "double_blocks.1.txt_mlp.0", "text"),
    ("chroma", "double_blocks.0.txt_attn.qkv", "text"),
    ("qwen_image", "transformer_blocks.2.attn.add_v_proj", "text", "transformer_blocks.2.attn.add_q_proj"),
    ("wan", "blocks.17.cross_attn.v", CONTEXT, "blocks.0.cross_attn.k"),
    ("ltxv", "transformer_blocks.20.attn2.to_v", CONTEXT, "transformer_blocks.0.attn2.to_k"),
    ("pixart", "blocks.20.cross_attn.kv_linear", CONTEXT, "blocks.0.cross_attn.kv_linear"),
    ("anima", "blocks.11.cross_attn.v_proj", CONTEXT, "blocks.0.cross_attn.k_proj"),
    ("z_image", "context_refiner.1.feed_forward.w3", "text", "context_refiner.1.feed_forward.w1"),
    ("aura_flow", "double_layers.0.mlpC.c_fc2", "text", "double_layers.0.mlpC.c_fc1"),
    ("z_image", "layers.0.attention.qkv", "text"),
    ("z_image", "layers.0.attention.out", "tail"),
    ("krea2", "blocks.3.attn.gate", "text", "blocks.3.attn.wq"),
    ("krea2", "blocks.3.attn.wo", "tail"),
    ("flux", "single_blocks.0.linear1", "text"),
    ("sd15", f"{UNET}.attn1.to_k", "image", f"{UNET}.attn1.to_q"),
    ("sdxl", "middle_block.1.transformer_blocks.2.ff.net.0.proj", "image"),
    ("emoji", "joint_blocks.3.x_block.attn.qkv", "image"),
    ("sd3", "joint_blocks.0.x_block.mlp.fc2", "image"),
    ("flux", "double_blocks.0.img_attn.proj", "image"),
    ("qwen_image", "transformer_blocks.0.attn.to_v", "image", "transformer_blocks.0.attn.to_q"),
    ("wan", "blocks.0.self_attn.v", "image", "blocks.0.self_attn.q"),
    ("pixart", "blocks.1.attn.qkv", "image"),
    ("anima", "blocks.1.self_attn.k_proj", "image", "blocks.1.self_attn.q_proj"),
    ("aura_flow", "double_layers.0.attn.w2k", "image", "double_layers.0.attn.w2q"),
]  # fmt: skip
NOT_REACHED = [
    ("sd15", "input_blocks.1.0.in_layers.2"),
    ("emoji", "final_layer.linear"),
    ("flux", "double_blocks.18.txt_mlp.0"),
    ("flux", "double_blocks.0.img_mod.lin"),
    ("hunyuan_video", "single_blocks.0.linear1"),
    ("wan", "blocks.0.cross_attn.k_img"),
    ("unknown", CONTEXT),
]


@pytest.mark.parametrize("case", REACHED, ids=lambda case: f"{case[0]} {case[1]}")
def test_layers_that_a_prompt_reaches(case):
    family, module, tokens = case[:3]
    found = space_of(family, module)
    probe = case[3] if len(case) > 3 else module
    assert found.probe == probe
    assert found.name == (CONTEXT if tokens == CONTEXT else probe)
    assert found.tokens == ("text" if tokens == CONTEXT else tokens)
    assert found.reading == (f"{found.name}@image" if tokens in ("image", "tail") else found.name)
    assert space_name(found.reading) == found.name
    assert named_space(family, found.name) == found


@pytest.mark.parametrize(("family", "name"), NOT_REACHED)
def test_other_layers(family, name):
    assert space_of(family, name) is None


def test_early_blocks_come_first_and_wide_inputs_last():
    def order(*names: str) -> list[str]:
        return sorted(names, key=lambda name: space_of("sd3", f"joint_blocks.{name}").order)

    names = ["1.context_block.attn.qkv", "0.context_block.mlp.fc2", "0.x_block.attn.proj", "0.context_block.attn.qkv"]
    assert order(*names) == [names[3], names[2], names[0], names[1]]


def test_a_unet_is_read_from_its_middle_outwards():
    blocks = ["middle_block", "output_blocks.0", "output_blocks.4", "input_blocks.8", "input_blocks.4"]
    spaces = [space_of("sdxl", f"{block}.1.transformer_blocks.0.attn2.to_out.0") for block in blocks]
    assert [space.order for space in spaces] == sorted(space.order for space in spaces)
    assert space_of("sdxl", "middle_block.1.transformer_blocks.0.attn2.to_k").order < spaces[0].order


def test_families_without_rules_are_known():
    assert "emoji" in FAMILIES and "unknown" not in FAMILIES and named_space("emoji", CONTEXT) is None
