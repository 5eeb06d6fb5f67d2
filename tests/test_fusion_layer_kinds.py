"""The part of a block that a layer is goes by one word in every family."""

from __future__ import annotations

import pytest

from autolora_core.fusion.layer_kinds import OTHER, kind_of

NAMES = {
    "attention_in": [
        "joint_blocks.0.x_block.attn.qkv", "double_blocks.3.img_attn.qkv",
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k",
        "blocks.7.self_attn.q", "transformer_blocks.0.attn.add_v_proj", "layers.2.attention.qkv",
    ],
    "attention_out": [
        "joint_blocks.0.context_block.attn.proj", "double_blocks.3.txt_attn.proj",
        "middle_block.1.transformer_blocks.0.attn1.to_out.0",
        "blocks.7.cross_attn.o", "transformer_blocks.0.attn.to_add_out",
    ],
    "feedforward_in": [
        "joint_blocks.0.x_block.mlp.fc1", "double_blocks.3.img_mlp.0",
        "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj",
        "blocks.7.ffn.0", "layers.2.feed_forward.w1", "transformer_blocks.0.img_mlp.net.0.proj",
    ],
    "feedforward_out": [
        "joint_blocks.0.x_block.mlp.fc2", "double_blocks.3.txt_mlp.2",
        "input_blocks.4.1.transformer_blocks.0.ff.net.2",
        "blocks.7.ffn.2", "layers.2.feed_forward.w2",
    ],
    "modulation": [
        "joint_blocks.0.x_block.adaLN_modulation.1", "double_blocks.3.img_mod.lin", "single_blocks.9.modulation.lin",
        "transformer_blocks.0.norm1_context.linear", "transformer_blocks.0.img_mod.1",
    ],
    OTHER: ["single_blocks.9.linear1", "input_blocks.1.0.in_layers.2", "time_embed.0", "final_layer.linear", "proj_in"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_kinds(kind, name):
    assert kind_of(name) == kind
