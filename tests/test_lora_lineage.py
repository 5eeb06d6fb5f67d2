"""Proves that checkpoint lines of one base are told apart by what real headers, sidecars and names say, not by guesses.

The headers are as kohya's scripts, ai-toolkit and musubi-tuner write them, the base models as Civitai and Lora-Manager
spell them.
"""

from __future__ import annotations

import pytest

from autolora_core.lora.families import Layers
from autolora_core.lora.lineage import (
    Lineage,
    belongs,
    choices,
    lineage,
    lineage_note,
    lineage_of_network,
    mixed_note,
)

SDXL_KOHYA = {
    "ss_base_model_version": "sdxl_base_v1-0",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
}
FLUX_KOHYA = {"ss_base_model_version": "flux1", "modelspec.architecture": "flux-1-dev/lora"}


def kohya(checkpoint: str, rest: dict[str, str]) -> dict[str, str]:
    return {**rest, "ss_sd_model_name": checkpoint}


HEADERS = [
    ("sdxl", kohya("ponyDiffusionV6XL_v6StartWithThisOne.safetensors", SDXL_KOHYA), "pony"),
    ("sdxl", kohya("autismmixSDXL_autismmixConfetti.safetensors", SDXL_KOHYA), "pony"),
    ("sdxl", kohya("Illustrious-XL-v0.1.safetensors", SDXL_KOHYA), "illustrious"),
    ("sdxl", kohya("illustriousXL_v01.safetensors", SDXL_KOHYA), "illustrious"),
    ("sdxl", kohya("waiNSFWIllustrious_v110.safetensors", SDXL_KOHYA), "illustrious"),
    ("sdxl", kohya("noobaiXLNAIXL_vPred10Version.safetensors", SDXL_KOHYA), "noobai"),
    ("sdxl", kohya("animagine-xl-3.1.safetensors", SDXL_KOHYA), "animagine"),
    ("sdxl", kohya("sd_xl_base_1.0.safetensors", SDXL_KOHYA), "base"),
    ("sdxl", kohya(r"D:\models\sd_xl_base_1.0_0.9vae.safetensors", SDXL_KOHYA), "base"),
    ("sdxl", kohya("/pony/lora/training/model.safetensors", SDXL_KOHYA), ""),  # a folder is no checkpoint
    ("sdxl", SDXL_KOHYA, ""),  # so trainers write for every SDXL
    ("sd15", kohya("animefull-final-pruned.ckpt", {"ss_base_model_version": "sd_v1"}), "anime"),
    ("sd15", kohya("nai.ckpt", {}), "anime"),
    ("sd15", kohya("v1-5-pruned-emaonly.safetensors", {"ss_base_model_version": "sd_v1"}), "1.5"),
    ("sd15", {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}, ""),
    ("flux", FLUX_KOHYA, "dev"),
    ("flux", kohya("flux1-krea-dev.safetensors", FLUX_KOHYA), "krea"),
    ("flux", kohya("flux1-dev-kontext_fp8_scaled.safetensors", FLUX_KOHYA), "kontext"),
    ("flux", {"modelspec.architecture": "flux-1-schnell/lora"}, "schnell"),
    ("flux", {"ss_base_model_version": "flux1"}, ""),
    ("qwen_image", {"modelspec.architecture": "qwen-image-edit-plus/lora"}, "edit"),
    ("qwen_image", {"modelspec.architecture": "qwen-image/lora"}, "image"),
    ("z_image", {"ss_base_model_version": "zimage:turbo"}, "turbo"),
    ("z_image", {"ss_base_model_version": "zimage:deturbo"}, "de-turbo"),
    ("sd3", {"modelspec.architecture": "stable-diffusion-3.5-large/lora"}, "3.5 large"),
    ("sd3", {"modelspec.architecture": "stable-diffusion-3-medium/lora"}, "3 medium"),
    ("wan", {"ss_base_model_version": "wan22_14b"}, "2.2"),
]


@pytest.mark.parametrize(("family", "metadata", "expected"), HEADERS, ids=lambda value: str(value)[:48])
def test_headers(family, metadata, expected):
    found = lineage(family, metadata)
    assert found.name == expected
    assert bool(found.evidence) == bool(expected)


SIDECARS = [
    ("sdxl", "Pony", "pony"),
    ("sdxl", "Illustrious", "illustrious"),
    ("sdxl", "NoobAI", "noobai"),
    ("sdxl", "SDXL 1.0", "base"),
    ("sdxl", "SDXL", ""),
    ("sdxl", "Kolors", "kolors"),
    ("flux", "Flux.1 D", "dev"),
    ("flux", "Flux.1 S", "schnell"),
    ("flux", "Flux.1 Krea", "krea"),
    ("flux", "Flux.1 Kontext", "kontext"),
    ("flux2", "Flux.2 D", "dev"),
    ("flux2", "Flux.2 Klein 9B-base", "klein base"),
    ("sd3", "SD 3.5 Large Turbo", "3.5 large turbo"),
    ("sd3", "SD 3.5 Medium", "3.5 medium"),
    ("sd3", "SD 3", "3 medium"),
    ("sd15", "SD 1.5", "1.5"),
    ("wan", "Wan Video 2.2 T2V-A14B", "2.2 t2v"),
    ("wan", "Wan Video 2.2 I2V-A14B", "2.2 i2v"),
    ("wan", "Wan Video 2.2 TI2V-5B", "2.2"),
    ("wan", "Wan Video 14B i2v 720p", "2.1 i2v"),
    ("wan", "Wan Video 1.3B t2v", "2.1 t2v"),
    ("z_image", "ZImageTurbo", "turbo"),
    ("z_image", "ZImageBase", "base"),
    ("aura_flow", "Pony V7", "pony v7"),
    ("qwen_image", "Qwen", ""),
    ("unknown", "Pony", ""),
]


@pytest.mark.parametrize(("family", "text", "expected"), SIDECARS)
def test_sidecars(family, text, expected):
    assert lineage(family, {}, text).name == expected


NAMES = [
    ("sdxl", "my_little_pony_cartoon.safetensors", ""),
    ("sdxl", "ponytail.safetensors", ""),
    ("sdxl", "watercolor_pdxl_v2.safetensors", "pony"),
    ("sdxl", "style_PonyXL.safetensors", "pony"),
    ("sdxl", "Inkstyle-illustriousXL.safetensors", "illustrious"),
    ("sdxl", "book illustration.safetensors", ""),
    ("sdxl", "noob_trap.safetensors", "noobai"),
    ("sd15", "anything goes.safetensors", ""),
    ("wan", "wan2.2_i2v_light_HIGH_NOISE.safetensors", "2.2 i2v high noise"),
    ("wan", "orbit_wan22_t2v_LN.safetensors", "2.2 t2v low noise"),
    ("wan", "dance v2.1.safetensors", ""),
    ("flux", "krea/ink.safetensors", ""),
    ("flux", "flux_kontext_remove.safetensors", "kontext"),
]


@pytest.mark.parametrize(("family", "name", "expected"), NAMES)
def test_file_names_are_believed_in_spellings_nobody_draws(family, name, expected):
    assert lineage(family, {}, file_name=name).name == expected


def test_the_surest_source_decides_and_is_named():
    header = kohya("ponyDiffusionV6XL.safetensors", SDXL_KOHYA)
    assert lineage("sdxl", header).evidence == "ss_sd_model_name = 'ponyDiffusionV6XL.safetensors'"
    sidecar = lineage("sdxl", header, "Illustrious; sdxl_base_v1-0", "x_pdxl.safetensors")
    assert (sidecar.name, sidecar.evidence) == ("illustrious", "base model 'Illustrious'")
    # What a library keeps of the header is read without the trainers' name for all of SDXL.
    assert lineage("sdxl", {}, "sdxl_base_v1-0; stable-diffusion-xl-v1-base/lora").name == ""


def network(*layers: tuple[str, tuple[int, ...]]) -> Layers:
    return Layers(layers)


def test_what_a_network_shows():
    flux = ("img_in", (3072, 64)), ("double_blocks.0.img_attn.qkv", (9216, 3072))
    guided = ("guidance_in.in_layer", (3072, 256))
    assert lineage_of_network("flux", network(*flux)).name == "schnell"
    assert lineage_of_network("flux", network(*flux, guided)).name == ""  # dev, Krea and Kontext are alike
    fill = network(("img_in", (3072, 384)), guided)
    assert lineage_of_network("flux", fill).name == "fill"
    q = ("blocks.0.self_attn.q", (5120, 5120))
    assert lineage_of_network("wan", network(("patch_embedding", (5120, 36, 1, 2, 2)), q)).name == "2.2 i2v"
    seen = ("blocks.0.cross_attn.k_img", (5120, 5120))
    assert lineage_of_network("wan", network(("patch_embedding", (5120, 36, 1, 2, 2)), q, seen)).name == "2.1 i2v"
    assert lineage_of_network("wan", network(("patch_embedding", (5120, 16, 1, 2, 2)), q)).name == "t2v"
    small = network(("patch_embedding", (3072, 48, 1, 2, 2)), ("blocks.0.self_attn.q", (3072, 3072)))
    assert lineage_of_network("wan", small).name == "2.2"
    assert lineage_of_network("sd3", network(("joint_blocks.0.x_block.attn.qkv", (7296, 2432)))).name == "3.5 large"
    assert lineage_of_network("sdxl", network(("input_blocks.0.0", (320, 4, 3, 3)))).name == ""


def test_notes_tell_both_sides_and_only_what_is_known():
    pony, none = lineage("sdxl", {}, "Pony"), Lineage()
    assert lineage_note("sdxl", pony, none) == (
        "made for sdxl pony (base model 'Pony'); which sdxl this model is: not shown by its layers"
    )
    dev, schnell = lineage("flux", {}, "Flux.1 D"), Lineage(("schnell",), "it has no guidance_in layers")
    differs = lineage_note("flux", dev, schnell)
    assert "flux dev" in differs and "this model is flux schnell" in differs and "no guidance_in" in differs
    assert lineage_note("flux", lineage("flux", {}, "Flux.1 S"), schnell) is None
    assert lineage_note("flux", Lineage(), schnell) is None
    i2v = lineage("wan", {}, "Wan Video 2.2 I2V-A14B")
    assert "this model is wan t2v" in lineage_note("wan", i2v, Lineage((None, "t2v", None), "16 channels"))
    assert lineage_note("wan", i2v, Lineage(("2.2", "i2v", None), "36 channels")) is None
    high = lineage("wan", {}, "Wan Video 2.2 I2V-A14B", "a_high_noise.safetensors")
    assert "wan 2.2 i2v, more its layers do not show" in lineage_note("wan", high, Lineage(("2.2", "i2v", None), "36"))


def test_mixed_lineages_are_told():
    assert mixed_note(["pony", "", "pony"]) is None
    assert "pony (2), illustrious (1)" in mixed_note(["pony", "illustrious", "pony", ""])


def test_what_a_search_can_be_restricted_to():
    assert "pony" in choices("sdxl") and choices("wan")[0] == "2.2" and choices("pixart") == ()
    assert belongs(lineage("sdxl", {}, "Pony"), "pony") and not belongs(lineage("sdxl", {}, "Pony"), "noobai")
    assert belongs(Lineage(), "pony")  # says nothing
    assert belongs(lineage("wan", {}, "Wan Video 2.2 I2V-A14B"), "2.2")
