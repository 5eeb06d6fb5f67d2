"""Proves that the base family is recognised from names and widths, says why, and is not fooled by metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from test_lora_keys import pair, read

from autolora_core.lora.names import tells_partial

SHARED = Path(os.environ.get("AUTOLORA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
LAYOUTS = sorted((SHARED / "data" / "layouts").glob("*.json"))


def unet(block: str, text: int) -> dict[str, tuple[int, ...]]:
    return pair(f"lora_unet_{block}_transformer_blocks_0_attn2_to_k", 640, text)


DIFFUSERS = (".lora_A.weight", ".lora_B.weight")
CASES = {
    "sd15": (unet("down_blocks_1_attentions_0", 768), "sd15", None),
    "sd2": (unet("down_blocks_1_attentions_0", 1024), "sd2", None),
    "sdxl": (unet("input_blocks_4_1", 2048), "sdxl", None),
    "sdxl without text layers": (
        pair("lora_unet_input_blocks_8_1_transformer_blocks_5_attn1_to_q", 1280, 1280),
        "sdxl", None),
    "sd15 without text layers": (
        pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320, 320),
        "sd15", None),
    "refiner": (unet("input_blocks_4_1", 1280), "sdxl", "refiner"),
    "sd3 kohya": (pair("lora_unet_joint_blocks_0_x_block_attn_qkv", 4608, 1536), "sd3", "medium"),
    "sd3 diffusers": (pair("transformer.transformer_blocks.0.attn.to_q", 2432, 2432, *DIFFUSERS), "sd3", "large"),
    "sd3.5 medium": (
        pair("transformer.transformer_blocks.0.attn.to_q", 1536, 1536, *DIFFUSERS)
        | pair("transformer.transformer_blocks.0.attn2.to_q", 1536, 1536, *DIFFUSERS), "sd3", "3.5-medium"),
    "emoji native": (pair("diffusion_model.joint_blocks.0.context_block.mlp.fc1", 1024, 256), "emoji", None),
    "emoji peft": (pair("base_model.model.transformer_blocks.3.attn.add_q_proj", 256, 256, *DIFFUSERS), "emoji", None),
    "emoji feed-forward out": (
        pair("lora_unet_joint_blocks_0_x_block_mlp_fc2", 256, 1024)
        | pair("lora_unet_joint_blocks_0_x_block_mlp_fc1", 1024, 256),
        "emoji", None),
    "flux double": (pair("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072), "flux", None),
    "flux single": (pair("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072, *DIFFUSERS), "flux", None),
    "flux modulation": (
        pair("transformer.transformer_blocks.0.norm1_context.linear", 18432, 3072, *DIFFUSERS),
        "flux", None),
    "flux2 dev": (pair("diffusion_model.double_blocks.0.img_attn.qkv", 18432, 6144, *DIFFUSERS), "flux2", "dev"),
    "klein 4b": (pair("diffusion_model.single_blocks.0.linear1", 27648, 3072, *DIFFUSERS), "flux2", "klein-4b"),
    "klein 9b": (
        pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 36864, 4096, *DIFFUSERS),
        "flux2", "klein-9b"),
    "chroma": (
        pair("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072)
        | pair("lora_unet_distilled_guidance_layer_in_proj", 5120, 64), "chroma", None),
    "hunyuan kohya": (pair("lora_unet_double_blocks_0_img_mlp_fc1", 12288, 3072), "hunyuan_video", None),
    "hunyuan by depth": (
        pair("transformer.single_transformer_blocks.39.attn.to_q", 3072, 3072, *DIFFUSERS),
        "hunyuan_video", None),
    "qwen": (pair("transformer_blocks.59.attn.to_q", 3072, 3072), "qwen_image", None),
    "qwen feed-forward": (pair("transformer.transformer_blocks.0.img_mlp.net.2", 3072, 12288), "qwen_image", None),
    "z image": (pair("diffusion_model.layers.0.attention.qkv", 11520, 3840), "z_image", None),
    "lumina2": (pair("diffusion_model.layers.0.attention.qkv", 3840, 2304), "lumina2", None),
    "wan": (pair("diffusion_model.blocks.0.self_attn.q", 5120, 5120, *DIFFUSERS), "wan", "14b"),
    "wan diffusers": (pair("transformer.blocks.0.attn1.to_q", 1536, 1536, *DIFFUSERS), "wan", "1.3b"),
    "ltxv": (pair("diffusion_model.transformer_blocks.0.attn1.to_q", 2048, 2048, *DIFFUSERS), "ltxv", "2b"),
    "pixart": (pair("transformer.transformer_blocks.0.attn1.to_q", 1152, 1152, *DIFFUSERS), "pixart", None),
    "aura flow": (pair("transformer.joint_transformer_blocks.0.attn.to_q", 3072, 3072, *DIFFUSERS), "aura_flow", None),
    "anima": (pair("lora_unet_blocks_0_mlp_layer1", 8192, 2048), "anima", None),
    "krea2": (pair("lora_unet_blocks_0_attn_wq", 6144, 6144), "krea2", None),
    "hidream": (pair("diffusion_model.double_stream_blocks.0.block.attn1.to_q", 2560, 2560), "hidream", None),
    "nobody": (pair("diffusion_model.encoder.wobble.3", 7, 7), "unknown", None),
    "a clip": (
        pair("base_model.model.text_model.encoder.layers.0.self_attn.q_proj", 768, 768, *DIFFUSERS),
        "unknown", None),
    "kohya's clip of sd15": (pair("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, 768), "sd15", None),
    "kohya's clip of sd2": (pair("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1024, 1024), "sd2", None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_family_is_recognised_and_says_why(name: str) -> None:
    shapes, family, variant = CASES[name]
    found = read(shapes)
    assert (found.family.name, found.family.variant) == (family, variant)
    assert found.family.evidence and all(line.endswith(".") for line in found.family.evidence)
    if family != "unknown":
        assert not found.report.unknown and found.entries


def test_metadata_settles_only_what_layers_leave_open() -> None:
    flux = pair("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072, *DIFFUSERS)
    assert read(flux, {"modelspec.architecture": "chroma/lora"}).family.name == "chroma"
    wrong = read(flux, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}).family
    assert wrong.name == "flux" and "otherwise" in wrong.evidence[-1]
    agreed = read(flux, {"ss_base_model_version": "flux1"}).family
    assert agreed.name == "flux" and "agrees" in agreed.evidence[-1]
    clip = pair("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 768, 768, *DIFFUSERS)
    assert read(clip, {"ss_base_model_version": "sdxl_base_v1-0"}).family.name == "sdxl"


def test_what_is_missing_is_told_in_words() -> None:
    emoji = [f"joint_blocks.{n}.x_block.attn.qkv" for n in range(4)]
    assert tells_partial("emoji", None, emoji) is None
    assert tells_partial("emoji", None, emoji[1:2]) == "1 of 4 joint_blocks (missing 0, 2-3)"
    flux = [f"double_blocks.{n}.img_attn.qkv" for n in range(19)]
    assert tells_partial("flux", None, flux) == "none of 38 single_blocks (missing 0-37)"
    assert tells_partial("unknown", None, flux) is None


EXPECTED = {
    # layout -> family, spelling, modules, one module it must name
    "anima_lora_kohya": ("anima", "kohya", 11, "blocks.0.adaln_modulation_cross_attn.1"),
    "anima_lora_kohya_with_te": ("anima", "kohya", 9, "text_encoder.layers.0.mlp.gate_proj"),
    "anima_lora_lokr": ("anima", "native", 3, "blocks.0.cross_attn.k_proj"),
    "anima_lora_peft": ("anima", "native", 6, "blocks.0.mlp.layer1"),
    "flux_control_lora": ("flux", "bare", 466, "double_blocks.18.txt_attn.norm.query_norm"),
    "flux_dora_onetrainer": ("flux", "onetrainer", 506, "t5xxl.encoder.block.23.layer.1.DenseReluDense.wi_1"),
    "flux_lokr_bfl": ("flux", "native", 6, "double_blocks.0.img_attn.qkv"),
    "flux_lora_aitoolkit": ("flux", "native", 228, "single_blocks.37.linear2"),
    "flux_lora_diffusers": ("flux", "diffusers", 494, "single_blocks.0.linear1[9216:21504]"),
    "flux_lora_diffusers_base_model": ("flux", "peft", 381, "final_layer.linear"),
    "flux_lora_diffusers_no_proj_mlp": ("flux", "diffusers", 342, "double_blocks.9.img_attn.qkv[3072:6144]"),
    "flux_lora_kohya": ("flux", "kohya", 304, "single_blocks.37.modulation.lin"),
    "flux_lora_kohya_with_te1": ("flux", "kohya", 376, "clip_l.text_model.encoder.layers.11.mlp.fc2"),
    "flux_lora_xlabs": ("flux", "xlabs", 12, "double_blocks.10.txt_attn.qkv"),
    "krea2_lora_kohya": ("krea2", "kohya", 40, "txtfusion.layerwise_blocks.0.mlp.down"),
    "qwen_image_lora_diffusers": ("qwen_image", "bare", 3, "transformer_blocks.1.attn.to_k"),
    "qwen_image_lora_kohya": ("qwen_image", "kohya", 8, "transformer_blocks.0.img_mlp.net.0.proj"),
}


@pytest.mark.parametrize("path", LAYOUTS, ids=lambda path: path.stem)
def test_every_key_of_every_real_layout_is_used(path: Path) -> None:
    shapes = {key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}
    found = read(shapes)
    family, form, count, module = EXPECTED[path.stem]
    assert (found.family.name, found.forms[0], len(found.entries)) == (family, form, count)
    assert module in found.entries
    assert found.report.used == set(shapes) and not found.problems
