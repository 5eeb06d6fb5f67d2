"""Proves that a LoRA made for another base is refused with both names, and none that may fit is.

Models are ComfyUI's own networks at their real sizes on the meta device; files are headers only: the key and shape
lists of real files beside the checkout, and small ones of every trainer's spelling.
"""

from __future__ import annotations

import json

import lora_comfy_side
import pytest
from comfy_local import as_model, pack_module
from test_lora_families import CASES, EXPECTED, LAYOUTS
from test_lora_keys import pair, read

DIFFUSERS = (".lora_A.weight", ".lora_B.weight")
FAMILY_OF = {
    "SD15": "sd15", "SD20": "sd2", "SDXL": "sdxl", "SD3": "sd3", "SD3-large": "sd3", "Emoji": "emoji", "Flux": "flux",
    "Flux-schnell": "flux", "Flux2": "flux2", "Klein4B": "flux2", "Chroma": "chroma", "QwenImage": "qwen_image",
    "ZImage": "z_image", "Lumina2": "lumina2", "WAN21_T2V": "wan", "Wan14B": "wan", "HunyuanVideo": "hunyuan_video",
    "LTXV": "ltxv", "PixArtSigma": "pixart", "AuraFlow": "aura_flow", "CosmosT2IPredict2": "anima",
}  # fmt: skip
# Files that cannot be told from these other bases by any layer they have.
MAY_BE = {
    "sdxl without text layers": (),
    "sd15 without text layers": ("sd2",),
    "kohya's clip of sd15": tuple(FAMILY_OF.values()),
    "kohya's clip of sd2": tuple(FAMILY_OF.values()),
    "a clip": tuple(FAMILY_OF.values()),
    "nobody": tuple(FAMILY_OF.values()),
    **dict.fromkeys(("flux double", "flux single", "flux modulation"), ("chroma", "flux2", "hunyuan_video")),
    "chroma": ("flux",),
    "flux_lora_xlabs": ("chroma", "flux2", "hunyuan_video"),
    "flux_lokr_bfl": ("chroma", "flux2", "hunyuan_video"),
    "qwen_image_lora_diffusers": ("flux", "chroma", "hunyuan_video", "flux2"),
}
# Bases of one name and other widths: file -> the networks it does not fit.
OTHER_SIZES = {
    "sd3 kohya": {"SD3-large"}, "sd3.5 medium": {"SD3-large"}, "sd3 diffusers": {"SD3"}, "refiner": {"SDXL"},
    "wan": {"WAN21_T2V"}, "wan diffusers": {"Wan14B"}, "flux2 dev": {"Klein4B"}, "klein 4b": {"Flux2"},
    "klein 9b": {"Flux2", "Klein4B"},
    "anima_lora_lokr": {"CosmosT2IPredict2"},  # its factors, as listed, multiply to 16384 × 16384
}  # fmt: skip

NEWER = {"txt_ids_dims": [], "meanflow_sum": False, "vec_in_dim": None}


def configs() -> dict[str, tuple[str, dict]]:
    """Name -> (ComfyUI's class, its configuration)."""
    found = {name: (name, config) for name, config in lora_comfy_side._configs().items()}
    klein = {"hidden_size": 3072, "num_heads": 24, "context_in_dim": 7680, "depth": 5, "depth_single_blocks": 20}
    found["SD3-large"] = ("SD3", {**lora_comfy_side._mmdit(2432, 4096, 2048), "x_block_self_attn_layers": []})
    found["Flux-schnell"] = ("Flux", lora_comfy_side._flux(guidance_embed=False))
    found["Klein4B"] = ("Flux2", {**found["Flux2"][1], **klein})
    wide = {"dim": 5120, "num_heads": 40, "ffn_dim": 13824, "num_layers": 40}
    found["Wan14B"] = ("WAN21_T2V", {**found["WAN21_T2V"][1], **wide})
    return found


@pytest.fixture(scope="module")
def models(comfy) -> dict:
    """Name -> a MODEL."""
    found = {}
    for name, (cls, config) in configs().items():
        try:
            found[name] = as_model(_built(cls, config))
        except AttributeError:  # this ComfyUI is older than the base
            continue
    return found


def _built(cls: str, config: dict):
    try:
        return lora_comfy_side._comfy_model(cls, config)
    except TypeError as error:  # newer versions ask for more
        missing = [name for name in NEWER if f"'{name}'" in str(error)]
        if not missing:
            raise
        return lora_comfy_side._comfy_model(cls, {**config, **{name: NEWER[name] for name in missing}})


@pytest.fixture(scope="module")
def bases(models):
    return {name: pack_module("nodes.bridge_paths").model_family(model) for name, model in models.items()}


def test_every_family_is_recognised_from_a_real_model(bases) -> None:
    assert {name: family.name for name, family in bases.items()} == {name: FAMILY_OF[name] for name in bases}
    assert all(family.among == {family.name} for family in bases.values())
    assert len(bases) >= 19


def every_file() -> dict[str, tuple[dict, str]]:
    """Label -> (key -> shape, family)."""
    found = {name: (shapes, family) for name, (shapes, family, _) in CASES.items()}
    for path in LAYOUTS:
        shapes = {key: tuple(shape) for key, shape in json.loads(path.read_text(encoding="utf-8")).items()}
        found[path.stem] = (shapes, EXPECTED[path.stem][0])
    return found


FILES = every_file()


@pytest.mark.parametrize("label", FILES)
def test_every_file_meets_every_base(label, bases) -> None:
    """Right pairs are let through, wrong pairs are refused with both names and both evidences."""
    mismatch = pack_module("autolora_core.lora.base_match").mismatch
    shapes, family = FILES[label]
    file = read(shapes).family
    assert file.name == family
    fits = {family, *MAY_BE.get(label, ()), *({"chroma"} if family == "flux" else ())}
    for name, base in bases.items():
        why = mismatch(file, base)
        if base.name in fits and name not in OTHER_SIZES.get(label, ()):
            assert why is None, (name, why)
            continue
        assert why is not None, (name, sorted(file.among), base.name)
        assert file.name in why and base.name in why
        if file.name != base.name:
            assert file.evidence[0] in why and base.evidence[0] in why
        else:
            assert str(file.width) in why and str(base.width) in why


def test_metadata_alone_never_refuses(bases) -> None:
    mismatch = pack_module("autolora_core.lora.base_match").mismatch
    unet = pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", 1280, 1280)
    stated = read(unet, {"ss_base_model_version": "sdxl_base_v1-0"}).family
    assert mismatch(stated, bases["SD15"]) is None and mismatch(stated, bases["SDXL"]) is None
    assert mismatch(stated, bases["Flux"])  # but no layer of FLUX is called so
    flux = pair("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072, *DIFFUSERS)
    assert mismatch(read(flux, {"modelspec.architecture": "chroma/lora"}).family, bases["Flux"]) is None
    wrong = read(flux, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}).family
    assert mismatch(wrong, bases["Flux"]) is None and mismatch(wrong, bases["SDXL"])


def test_an_unknown_base_refuses_nothing(models) -> None:
    import torch

    mismatch = pack_module("autolora_core.lora.base_match").mismatch
    family = pack_module("nodes.bridge_paths").model_family
    custom = as_model(torch.nn.Sequential(torch.nn.Linear(7, 7)))
    assert family(custom).name == "unknown"
    for shapes, _ in FILES.values():
        assert mismatch(read(shapes).family, family(custom)) is None


def test_doubts_are_told(bases) -> None:
    doubt = pack_module("autolora_core.lora.base_match").doubt
    flux = read(FILES["flux double"][0]).family
    assert doubt(flux, bases["Flux"]) is None
    assert "fit chroma as well" in doubt(flux, bases["Chroma"])
    chroma = read(FILES["chroma"][0]).family
    assert "made for chroma, used on flux" in doubt(chroma, bases["Flux"])


def test_a_whole_flux_file_is_not_for_hunyuan_or_klein(bases) -> None:
    """They share the names and sizes of every block, yet FLUX ends at block 18 and 37."""
    mismatch = pack_module("autolora_core.lora.base_match").mismatch
    shapes = {}
    for block in range(38):
        shapes |= pair(f"lora_unet_single_blocks_{block}_linear1", 21504, 3072)
        shapes |= pair(f"lora_unet_double_blocks_{min(block, 18)}_img_attn_qkv", 9216, 3072)
    whole = read(shapes).family
    assert all(mismatch(whole, bases[name]) for name in ("HunyuanVideo", "Klein4B", "QwenImage"))
    assert mismatch(whole, bases["Flux"]) is None and mismatch(whole, bases["Chroma"]) is None


def test_what_the_models_show_of_their_lineage(models) -> None:
    lineage = pack_module("nodes.bridge_paths").model_lineage
    found = {name: lineage(models[name], FAMILY_OF[name]).name for name in models}
    shown = {name: text for name, text in found.items() if text}
    assert shown == {
        "Flux-schnell": "schnell", "SD3": "3.5 medium", "SD3-large": "3.5 large", "WAN21_T2V": "t2v", "Wan14B": "t2v",
    }  # fmt: skip


def test_packed_weights_do_not_hide_the_width(comfy) -> None:
    """Quantised layers keep half or a quarter of the columns in a tensor; the layer itself knows how many it reads."""
    import torch

    class Packed(torch.nn.Module):
        def __init__(self, n_in: int, n_out: int, real: tuple[int, int] | None = None):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(n_out, n_in // 2, device="meta"), requires_grad=False)
            if real is None:
                self.in_features, self.out_features = n_in, n_out
            else:
                self.weight.tensor_shape = real  # as city96's GGUF tensors

    network = torch.nn.Module()
    block = network.joint_blocks = torch.nn.ModuleList([torch.nn.Module()])[0:1]
    block[0].x_block = torch.nn.Module()
    block[0].x_block.attn = torch.nn.Module()
    for layer in (Packed(2432, 7296), Packed(2432, 7296, (7296, 2432))):
        block[0].x_block.attn.qkv = layer
        model = as_model(network)
        family = pack_module("nodes.bridge_paths").model_family(model)
        assert (family.name, family.variant, family.width) == ("sd3", "large", 2432)
