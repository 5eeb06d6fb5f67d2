"""Renames a file's tensors to keys that every ComfyUI from 0.3.75 on reads, for the spellings it does not read itself.

The target is its generic form, ``diffusion_model.<native module>.<suffix>``. Rows of a fused weight go under the
diffusers names that ComfyUI maps to those rows, so nothing has to be padded or joined.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .header import read_tensors
from .modules import ModuleEntry

if TYPE_CHECKING:
    from .file import LoraFile

_UNETS = ("sd15", "sd2", "sdxl")
_FLUXES = ("flux", "flux2", "chroma")
# prefix -> families whose diffusers names ComfyUI 0.3.75 maps under it (comfy/lora.py, model_lora_keys_unet)
_READS_DIFFUSERS = {
    "transformer.": ("sd3", "emoji", *_FLUXES, "qwen_image", "aura_flow", "pixart", "hidream", "hunyuan_video"),
    "base_model.model.": ("sd3", "emoji", "pixart"),
    "unet.base_model.model.": ("pixart",),
    "lora_transformer_": ("sd3", "emoji", *_FLUXES),
    "lycoris_": ("sd3", "emoji", *_FLUXES, "qwen_image", "z_image", "lumina2", "hidream"),
    "": ("qwen_image",),
}
_SAME_NAMES = ("qwen_image", "hidream")  # diffusers and the base name all layers alike
# 0.3.75 knows FLUX.2's layers by diffusers' names of FLUX.1 alone
_FLUX2_ONLY = re.compile(
    r"ff(_context)?\.linear_|to_qkv_mlp_proj|stream_modulation|time_guidance_embed|single_.*attn\.to_out"
)
_ROWS_PREFIX = {family: "transformer." for family in ("sd3", "emoji", "pixart", *_FLUXES)}
_ROWS_PREFIX |= {family: "diffusion_model." for family in ("z_image", "lumina2")}
_HALVES_PREFIX = {family: "transformer." for family in ("sd3", "emoji", "aura_flow", *_FLUXES)}
SUFFIX = {
    "down": ".lora_down.weight",
    "magnitude": ".dora_scale",
    "up": ".lora_up.weight",
    "mid": ".lora_mid.weight",
    "bias": ".diff_b",
    "a1": ".a1.weight",
    "a2": ".a2.weight",
    "b1": ".b1.weight",
    "b2": ".b2.weight",
}
_READ_SUFFIXES = (
    ".weight", ".alpha", ".dora_scale", ".diff", ".diff_b", ".set_weight", ".w_norm", ".b_norm", ".reshape_weight",
    ".oft_blocks", ".rescale", ".lora_A", ".lora_B",
)  # fmt: skip
_UNREADABLE = {"ia3": "IA³", "vera": "VeRA", "adalora": "AdaLoRA", "embedding": "LoRA of an embedding"}
_MAGNITUDES = ("magnitude", "dora_scale")
_LYCORIS_ROLES = ("hada_", "lokr_")
_OTHER_PEFT_NAME = re.compile(r"\.lora_[AB]\.(?!default\.)[^.]+\.weight")


def comfy_state_dict(lora: LoraFile) -> dict[str, Tensor] | None:
    """See :meth:`LoraFile.comfy_state_dict`."""
    if lora.kind in ("control", "not_a_lora") or all(_reads_right(entry, lora) for entry in lora.modules.values()):
        return None
    result: dict[str, Tensor] = {}
    for entry in lora.modules.values():
        stem = comfy_stem(entry, lora.family.name)
        read = read_tensors(lora.header, entry.keys.values())
        result |= read if stem is None else under_stem(stem, entry, read)
    return result


def under_stem(stem: str, entry: ModuleEntry, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One module's tensors (by the file's keys) as ComfyUI reads them under the name ``stem``.

    The bias of an up factor is scaled as the product is (PEFT), while ComfyUI adds a ``diff_b`` as it stands.
    """
    result = {}
    for role, key in entry.keys.items():
        value = tensors[key]
        if role == "bias":
            value = value.reshape(-1) * entry.scale
        elif role in _MAGNITUDES:
            value = _upright(value, entry)
        result[stem + SUFFIX.get(role, f".{role}")] = value
    if entry.scale != entry.stock_scale and entry.rank:
        result[f"{stem}.alpha"] = torch.tensor(entry.scale * entry.rank)
    return result


def unreadable_kinds(lora: LoraFile) -> list[str]:
    """Kinds of adapter in a file that no ComfyUI can apply, in words; empty for most files."""
    return sorted({word for entry in lora.modules.values() if (word := _unreadable(entry)) is not None})


def _unreadable(entry: ModuleEntry) -> str | None:
    if entry.kind in ("oft", "boft") and "oft_blocks" not in entry.keys:
        return f"{entry.kind.upper()} as PEFT stores it"
    return _UNREADABLE.get(entry.kind)


def _reads_right(entry: ModuleEntry, lora: LoraFile) -> bool:
    """Whether ComfyUI finds the module, the factor in front of it where it looks, and a magnitude along its axis."""
    flat = "dora_scale" in entry.keys and len(lora.header.shapes[entry.keys["dora_scale"]]) < 2
    return is_read(entry, lora.family.name) and entry.scale == entry.stock_scale and not flat


def _upright(magnitude: Tensor, entry: ModuleEntry) -> Tensor:
    """A magnitude that is stored flat (PEFT) as ComfyUI multiplies it: (out, 1, …), or (1, in, …)."""
    if magnitude.ndim > 1:
        return magnitude
    axis = 0 if magnitude.numel() == entry.shape[0] else 1
    shape = [1] * len(entry.shape)
    shape[axis] = -1
    return magnitude.reshape(shape)


def comfy_stem(entry: ModuleEntry, family: str) -> str | None:
    """The name of a module before the suffix, as ComfyUI's generic form spells it; None when it has no such name."""
    if entry.half == "text_encoder":
        return None
    if entry.half != "model":
        module = entry.base_module.removeprefix(f"{entry.half}.")
        return f"text_encoders.{entry.half}.transformer.{module}"
    if entry.rows is not None:
        if entry.form == "xlabs" or entry.path.endswith(".linear1_qkv"):
            return f"diffusion_model.{entry.base_module}_qkv"
        prefix = _ROWS_PREFIX.get(family)
        return None if prefix is None else prefix + entry.path
    if entry.swap_halves:
        prefix = _HALVES_PREFIX.get(family)
        return None if prefix is None else prefix + entry.path
    if entry.kind in ("oft", "boft") and entry.path.endswith("norm1_context.linear") and family in _ROWS_PREFIX:
        return _ROWS_PREFIX[family] + entry.path  # its tensors do not tell whether this is the one with halves swapped
    if family in _UNETS and entry.path != entry.name:
        # Which number a block has depends on how many there are (SSD-1B, Vega, KOALA), so ComfyUI counts them itself.
        return "lora_unet_" + re.sub(r"\.to_out$", ".to_out.0", entry.path).replace(".", "_")
    return f"diffusion_model.{entry.name}"


def is_read(entry: ModuleEntry, family: str) -> bool:
    """Whether ComfyUI 0.3.75 maps this module's keys by itself."""
    if not all(_suffix_is_read(role, key, entry) for role, key in entry.keys.items()):
        return False
    return _text_is_read(entry) if entry.half != "model" else _model_is_read(entry, family)


def _suffix_is_read(role: str, key: str, entry: ModuleEntry) -> bool:
    if role == "magnitude":
        return False
    if role.startswith(_LYCORIS_ROLES):
        return True
    end = key[len(entry.stem) :]
    if _OTHER_PEFT_NAME.match(end) or end in (".up.weight", ".down.weight"):
        return False
    return end.endswith(_READ_SUFFIXES)


def _text_is_read(entry: ModuleEntry) -> bool:
    if entry.half == "text_encoder":
        return True  # no other name is known to be better
    if entry.form in ("kohya", "comfy-text"):
        return True
    return entry.form == "diffusers" and entry.half in ("clip_l", "clip_g", "clip_h")


def _model_is_read(entry: ModuleEntry, family: str) -> bool:
    prefix = entry.stem[: len(entry.stem) - len(entry.path)]
    plain = entry.rows is None and not entry.swap_halves
    if entry.path.endswith(".linear1_qkv"):  # ComfyUI's own name for three quarters of linear1
        return prefix == "diffusion_model."
    if entry.form == "native":
        other_names = family in ("z_image", "lumina2", "hunyuan_video")
        return entry.stem.startswith("diffusion_model.") and (other_names or (plain and entry.path == entry.name))
    if family in _UNETS:
        return _unet_is_read(entry, prefix)
    if entry.form in ("kohya", "wan-fun"):
        return plain and entry.path.replace(".", "_") == entry.name.replace(".", "_")
    if family == "flux2" and _FLUX2_ONLY.search(entry.path):
        return False
    theirs = entry.path != entry.base_module or family in _SAME_NAMES or entry.path == "context_embedder"
    return theirs and family in _READS_DIFFUSERS.get(prefix, ())


def _unet_is_read(entry: ModuleEntry, prefix: str) -> bool:
    """UNet names: kohya's and LyCORIS' always; dotted ones only as attention processors or outside attention."""
    if entry.form == "kohya":
        return not entry.path.endswith(".to_out")
    if entry.path == entry.name:
        return False
    if entry.form == "lycoris":
        return not entry.path.endswith(".to_out")
    if ".processor." in entry.stem:
        return entry.stem.startswith(("unet.", "down_blocks.", "mid_block.", "up_blocks."))
    return prefix in ("", "unet.") and ".to_" not in entry.path
