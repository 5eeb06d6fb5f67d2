"""Proves which tensor names are understood, in which spelling, and which base module each one means.

Expected names are written out by hand from the base models' own state dicts.
"""

from __future__ import annotations

import pytest

from autolora_core.lora.header import Header, TensorInfo
from autolora_core.lora.keys import ignored_reason, parse_key
from autolora_core.lora.modules import Sorted, sort_modules
from autolora_core.lora.names import find_module
from autolora_core.lora.names_unet import cloneofsimo_order, cloneofsimo_text_order


def read(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Sorted:
    tensors = {key: TensorInfo("F16", shape, 0, 0) for key, shape in shapes.items()}
    return sort_modules(Header("names.safetensors", 0, tensors, metadata or {}))


def pair(stem: str, out: int, wide: int, down: str = ".lora_down.weight", up: str = ".lora_up.weight") -> dict:
    return {stem + down: (4, wide), stem + up: (out, 4)}


KEYS = [
    # key, spelling, half, role, path
    ("lora_unet_a_b.lora_down.weight", "kohya", "model", "down", "a_b"),
    ("lora_unet_a_b.lora_up.weight", "kohya", "model", "up", "a_b"),
    ("lora_unet_a_b.lora_mid.weight", "kohya", "model", "mid", "a_b"),
    ("lora_unet_a_b.alpha", "kohya", "model", "alpha", "a_b"),
    ("lora_unet__blocks_0.lora_down.weight", "wan-fun", "model", "down", "blocks_0"),
    ("lora_te_text_model_x.lora_down.weight", "kohya", "text", "down", "text_model_x"),
    ("lora_te2_text_model_x.hada_w1_a", "kohya", "text", "hada_w1_a", "text_model_x"),
    ("lora_transformer_a.lokr_w2_b", "onetrainer", "model", "lokr_w2_b", "a"),
    ("lycoris_a.lokr_t2", "lycoris", "model", "lokr_t2", "a"),
    ("down_blocks.0.attn1.processor.to_k_lora.down.weight", "bare", "model", "down", "down_blocks.0.attn1.to_k"),
    ("unet.down_blocks.0.attn1.processor.to_k_lora.up.weight", "diffusers", "model", "up", "down_blocks.0.attn1.to_k"),
    ("unet.mid_block.attn1.to_q.lora.down.weight", "diffusers", "model", "down", "mid_block.attn1.to_q"),
    ("text_encoder.text_model.q_proj.lora_linear_layer.up.weight", "diffusers", "text", "up", "text_model.q_proj"),
    ("text_encoder_2.text_model.q_proj.lora_A.weight", "diffusers", "text", "down", "text_model.q_proj"),
    ("transformer.x.attn.to_q.lora_A.weight", "diffusers", "model", "down", "x.attn.to_q"),
    ("transformer.x.attn.to_q.lora_B.default.weight", "diffusers", "model", "up", "x.attn.to_q"),
    ("transformer.x.attn.to_q.lora_B.my-style_2.weight", "diffusers", "model", "up", "x.attn.to_q"),
    ("base_model.model.x.to_q.lora_A.weight", "peft", "model", "down", "x.to_q"),
    ("base_model.model.x.to_q.lora_magnitude_vector", "peft", "model", "magnitude", "x.to_q"),
    ("base_model.model.text_model.q_proj.lora_B.weight", "peft", "text", "up", "text_model.q_proj"),
    ("unet.base_model.model.x.lora_B.weight", "peft", "model", "up", "x"),
    ("diffusion_model.double_blocks.0.x.lora_B.weight", "native", "model", "up", "double_blocks.0.x"),
    ("model.diffusion_model.x.y.lora_up.weight", "native", "model", "up", "x.y"),
    ("diffusion_model.x.diff_b", "native", "model", "diff_b", "x"),
    ("diffusion_model.x.set_weight", "native", "model", "set_weight", "x"),
    ("diffusion_model.x.reshape_weight", "native", "model", "reshape_weight", "x"),
    ("diffusion_model.x.w_norm", "native", "model", "w_norm", "x"),
    ("diffusion_model.x.a1.weight", "native", "model", "a1", "x"),
    ("diffusion_model.x.oft_blocks", "native", "model", "oft_blocks", "x"),
    ("double_blocks.0.processor.qkv_lora1.down.weight", "xlabs", "model", "down", "double_blocks.0.qkv_lora1"),
    ("single_blocks.0.processor.qkv_lora.up.weight", "xlabs", "model", "up", "single_blocks.0.qkv"),
    ("double_blocks.0.img_attn.proj.lora_B.bias", "bare", "model", "bias", "double_blocks.0.img_attn.proj"),
    ("double_blocks.0.norm.key_norm.scale", "bare", "model", "set_norm", "double_blocks.0.norm.key_norm"),
    ("unet:12:down", "cloneofsimo", "model", "down", "unet:12"),
    ("text_encoder:3:up", "cloneofsimo", "text", "up", "text_encoder:3"),
    ("text_encoders.clip_l.transformer.text_model.x.lora_up.weight", "comfy-text", "text", "up", "text_model.x"),
]


@pytest.mark.parametrize("key, form, half, role, path", KEYS, ids=[row[0] for row in KEYS])
def test_a_key_is_split_into_spelling_half_path_and_role(key: str, form: str, half: str, role: str, path: str) -> None:
    found = parse_key(key)
    assert (found.form.name, found.form.half, found.role, found.path) == (form, half, role, path)
    assert key.startswith(found.stem) and ignored_reason(key) is None


@pytest.mark.parametrize("key", ["model.diffusion_model.out.2.weight", "first_stage_model.x.bias", "a", ".alpha", ""])
def test_keys_of_other_files_are_not_taken_for_lora_keys(key: str) -> None:
    assert parse_key(key) is None


@pytest.mark.parametrize("key", ["bundle_emb.tok.string_to_param.*", "emb_params", "clip_l", "<s1>", "lora_controlnet"])
def test_what_is_set_aside_has_a_reason(key: str) -> None:
    assert ignored_reason(key)


NAMES = [
    # family, the file's path, layer shape, the base's own name, rows, halves swapped
    ("sd15", "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", (320, 320),
     "input_blocks.1.1.transformer_blocks.0.attn1.to_q"),
    ("sd15", "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_out.0", (1280, 1280),
     "input_blocks.8.1.transformer_blocks.0.attn2.to_out.0"),
    ("sd15", "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out", (1280, 1280),
     "output_blocks.3.1.transformer_blocks.0.attn1.to_out.0"),
    ("sd15", "up_blocks_3_attentions_2_proj_in", (320, 320, 1, 1), "output_blocks.11.1.proj_in"),
    ("sd15", "mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj", (10240, 1280),
     "middle_block.1.transformer_blocks.0.ff.net.0.proj"),
    ("sd15", "down_blocks_1_resnets_0_conv_shortcut", (640, 320, 1, 1), "input_blocks.4.0.skip_connection"),
    ("sd15", "mid_block_resnets_1_time_emb_proj", (1280, 1280), "middle_block.2.emb_layers.1"),
    ("sd15", "down_blocks_1_downsamplers_0_conv", (640, 640, 3, 3), "input_blocks.6.0.op"),
    ("sd15", "up_blocks_0_upsamplers_0_conv", (1280, 1280, 3, 3), "output_blocks.2.1.conv"),
    ("sd15", "up_blocks_1_upsamplers_0_conv", (1280, 1280, 3, 3), "output_blocks.5.2.conv"),
    ("sdxl", "down_blocks_2_attentions_1_transformer_blocks_9_attn2_to_k", (1280, 2048),
     "input_blocks.8.1.transformer_blocks.9.attn2.to_k"),
    ("sdxl", "up_blocks_0_attentions_2_proj_out", (1280, 1280), "output_blocks.2.1.proj_out"),
    ("sdxl", "up_blocks_1_upsamplers_0_conv", (640, 640, 3, 3), "output_blocks.5.2.conv"),
    ("sdxl", "input_blocks_4_1_transformer_blocks_1_ff_net_2", (640, 2560),
     "input_blocks.4.1.transformer_blocks.1.ff.net.2"),
    ("sdxl", "add_embedding_linear_1", (1280, 2816), "label_emb.0.0"),
    ("sd3", "transformer_blocks.7.attn.to_k", (1536, 1536), "joint_blocks.7.x_block.attn.qkv", (1536, 3072)),
    ("emoji", "transformer_blocks_3_attn_add_v_proj", (256, 256), "joint_blocks.3.context_block.attn.qkv", (512, 768)),
    ("emoji", "joint_blocks_2_x_block_adaLN_modulation_1", (1536, 256), "joint_blocks.2.x_block.adaLN_modulation.1"),
    ("sd3", "norm_out.linear", (3072, 1536), "final_layer.adaLN_modulation.1", None, True),
    ("sd3", "transformer_blocks.23.norm1_context.linear", (3072, 1536),
     "joint_blocks.23.context_block.adaLN_modulation.1", None, True),
    ("sd3", "transformer_blocks.22.norm1_context.linear", (9216, 1536),
     "joint_blocks.22.context_block.adaLN_modulation.1"),
    ("flux", "single_transformer_blocks.4.attn.to_v", (3072, 3072), "single_blocks.4.linear1", (6144, 9216)),
    ("flux", "single_transformer_blocks_4_proj_mlp", (12288, 3072), "single_blocks.4.linear1", (9216, 21504)),
    ("flux", "single_transformer_blocks.4.proj_out", (3072, 15360), "single_blocks.4.linear2"),
    ("flux", "transformer_blocks.1.attn.to_add_out", (3072, 3072), "double_blocks.1.txt_attn.proj"),
    ("flux", "double_blocks.1.qkv_lora2", (9216, 3072), "double_blocks.1.txt_attn.qkv"),
    ("flux", "single_blocks.1.qkv_lora", (9216, 3072), "single_blocks.1.linear1", (0, 9216)),
    ("flux", "norm_out.linear", (6144, 3072), "final_layer.adaLN_modulation.1", None, True),
    ("flux2", "single_transformer_blocks.4.attn.to_qkv_mlp_proj", (55296, 6144), "single_blocks.4.linear1"),
    ("hunyuan_video", "double_blocks.3.img_attn_qkv", (9216, 3072), "double_blocks.3.img_attn.qkv"),
    ("hunyuan_video", "single_blocks_3_modulation_linear", (9216, 3072), "single_blocks.3.modulation.lin"),
    ("hunyuan_video", "double_blocks_3_txt_mlp_fc2", (3072, 12288), "double_blocks.3.txt_mlp.2"),
    ("qwen_image", "transformer_blocks_0_attn_to_out_0", (3072, 3072), "transformer_blocks.0.attn.to_out.0"),
    ("qwen_image", "transformer_blocks_0_img_mlp_net_0_proj", (12288, 3072), "transformer_blocks.0.img_mlp.net.0.proj"),
    ("z_image", "layers.5.attention.to_k", (3840, 3840), "layers.5.attention.qkv", (3840, 7680)),
    ("lumina2", "layers.5.attention.to_v", (768, 2304), "layers.5.attention.qkv", (3072, 3840)),
    ("z_image", "noise_refiner_1_feed_forward_w3", (10240, 3840), "noise_refiner.1.feed_forward.w3"),
    ("wan", "blocks.3.attn2.add_k_proj", (1536, 1536), "blocks.3.cross_attn.k_img"),
    ("wan", "blocks_3_ffn_net_0_proj", (8960, 1536), "blocks.3.ffn.0"),
    ("ltxv", "transformer_blocks_3_attn2_to_out_0", (2048, 2048), "transformer_blocks.3.attn2.to_out.0"),
    ("pixart", "transformer_blocks.3.attn2.to_v", (1152, 1152), "blocks.3.cross_attn.kv_linear", (1152, 2304)),
    ("aura_flow", "joint_transformer_blocks.1.attn.add_q_proj", (3072, 3072), "double_layers.1.attn.w1q"),
    ("anima", "blocks_0_adaln_modulation_cross_attn_1", (256, 2048), "blocks.0.adaln_modulation_cross_attn.1"),
    ("krea2", "transformer_blocks.0.attn.to_gate", (6144, 6144), "blocks.0.attn.gate"),
    ("krea2", "txtfusion_refiner_blocks_1_mlp_up", (6912, 2560), "txtfusion.refiner_blocks.1.mlp.up"),
]  # fmt: skip


@pytest.mark.parametrize("row", NAMES, ids=[f"{row[0]}-{row[1]}" for row in NAMES])
def test_the_base_s_own_name(row: tuple) -> None:
    family, path, shape, module, rows, swapped = row + (None, False)[len(row) - 4 :]
    target = find_module(family, path, shape)
    assert target.module == module and target.swap_halves == swapped
    assert (None if target.piece is None else target.piece(shape)) == rows


@pytest.mark.parametrize(
    "family, path",
    [
        ("sd15", "down_blocks_4_attentions_0_proj_in"),
        ("sd15", "down_blocks.0.attentions.2.proj_in"),
        ("flux", "nothing"),
    ],
)
def test_layers_the_base_does_not_have_are_not_named(family: str, path: str) -> None:
    assert find_module(family, path, (4, 4)) is None


TEXT = [
    ("lora_te_text_model_encoder_layers_3_mlp_fc2", (768, 3072), "clip_l.text_model.encoder.layers.3.mlp.fc2"),
    ("lora_te_text_model_encoder_layers_3_self_attn_q_proj", (1024, 1024),
     "clip_h.text_model.encoder.layers.3.self_attn.q_proj"),
    ("lora_te2_text_model_encoder_layers_31_mlp_fc1", (5120, 1280), "clip_g.text_model.encoder.layers.31.mlp.fc1"),
    ("lora_te1_text_model_encoder_layers_31_mlp_fc1", (5120, 1280), "clip_g.text_model.encoder.layers.31.mlp.fc1"),
    ("lora_te3_encoder_block_1_layer_1_DenseReluDense_wi_0", (10240, 4096),
     "t5xxl.encoder.block.1.layer.1.DenseReluDense.wi_0"),
    ("text_encoder_3.encoder.block.1.layer.0.SelfAttention.q", (4096, 4096),
     "t5xxl.encoder.block.1.layer.0.SelfAttention.q"),
    ("lora_te_layers_0_mlp_gate_proj", (2816, 1024), "text_encoder.layers.0.mlp.gate_proj"),
    ("text_encoder.model.layers.0.self_attn.o_proj", (1024, 1024), "text_encoder.layers.0.self_attn.o_proj"),
]  # fmt: skip


@pytest.mark.parametrize("stem, shape, module", TEXT, ids=[row[0] for row in TEXT])
def test_text_encoders_are_told_apart_by_width(stem: str, shape: tuple[int, int], module: str) -> None:
    assert list(read(pair(stem, *shape)).entries) == [module]


def test_cloneofsimo_numbers_follow_the_registration_order_of_old_diffusers() -> None:
    order = cloneofsimo_order()
    assert len(order) == 144 and len(set(order)) == 144
    first = "down_blocks.0.attentions.0.transformer_blocks.0."
    parts = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "attn2.to_q", "attn2.to_k"]
    assert order[:7] == [first + part for part in parts]
    assert order[54].startswith("up_blocks.1.attentions.0.") and order[135].startswith("mid_block.attentions.0.")
    names = [name.rpartition(".")[2] for name in cloneofsimo_text_order()[:4]]
    assert names == ["k_proj", "v_proj", "q_proj", "out_proj"]


def test_every_key_is_used_ignored_or_unknown_and_never_two_of_them() -> None:
    shapes = pair("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072) | {
        "lora_unet_double_blocks_0_img_attn_qkv.alpha": ()
    }
    shapes |= pair("lora_unet_double_blocks_0_no_such_layer", 9, 9)
    shapes |= pair("lora_unet_double_blocks_0_txt_attn_qkv", 9216, 3072, up=".oops")
    shapes |= {"bundle_emb.x.string_to_param.*": (1, 768), "what.is.this": (3,)}
    report = read(shapes).report
    assert report.used == {key for key in shapes if "img_attn_qkv" in key}
    assert report.unknown == {
        "lora_unet_double_blocks_0_no_such_layer.lora_down.weight",
        "lora_unet_double_blocks_0_no_such_layer.lora_up.weight",
        "lora_unet_double_blocks_0_txt_attn_qkv.oops", "what.is.this",
    }  # fmt: skip
    damaged = report.ignored["lora_unet_double_blocks_0_txt_attn_qkv.lora_down.weight"]
    assert "damaged" in damaged and "embedding" in report.ignored["bundle_emb.x.string_to_param.*"]
    assert len(report.used) + len(report.unknown) + len(report.ignored) == len(shapes)


def test_a_module_named_twice_counts_once_and_is_reported() -> None:
    shapes = pair("lora_unet_double_blocks_0_img_mlp_0", 12288, 3072)
    shapes |= pair("diffusion_model.double_blocks.0.img_mlp.0", 12288, 3072, ".lora_A.weight", ".lora_B.weight")
    found = read(shapes)
    assert list(found.entries) == ["double_blocks.0.img_mlp.0"] and "twice" in found.problems[0]
    assert set(found.report.ignored) == {key for key in shapes if key.startswith("diffusion_model.")}


@pytest.mark.parametrize(
    "shapes",
    [
        {"down": (4, 8), "up": (9, 5)},
        {"down": (4,), "up": (9, 4)},
        {"down": (4, 8), "up": (9, 4, 3, 3)},
        {"down": (4, 8)},
        {"down": (0, 8), "up": (9, 0)},
        {"down": (4, 8), "up": (9, 4), "diff_b": (8,)},
        {"alpha": ()},
        {"hada_w1_a": (4, 2), "hada_w1_b": (2, 4), "hada_w2_a": (4, 2), "hada_w2_b": (2, 5)},
        {"hada_w1_a": (4, 2), "hada_w1_b": (2, 4)},
        {"lokr_w1": (2, 2)},
        {"lokr_w1": (2, 2), "lokr_w2_a": (2, 2)},
        {"lokr_w1": (2, 2), "lokr_w2_a": (2, 3), "lokr_w2_b": (4, 2)},
    ],
    ids=str,
)
def test_modules_that_do_not_fit_together_are_set_aside_with_the_reason(shapes: dict[str, tuple]) -> None:
    ends = {"down": "lora_down.weight", "up": "lora_up.weight"}
    keys = {f"lora_unet_double_blocks_0_img_mlp_0.{ends.get(role, role)}": shape for role, shape in shapes.items()}
    found = read(keys)
    assert found.entries == {} and set(found.report.ignored) == set(keys)
    assert all("damaged" in reason for reason in found.report.ignored.values()) and len(found.problems) == 1
