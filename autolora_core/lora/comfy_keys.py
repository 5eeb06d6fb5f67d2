"""Renames a file's tensors to keys that every ComfyUI from 0.3.75 on reads, for the spellings it does not read itself.

The target is its generic form, ``diffusion_model.<native module>.<suffix>``. Rows of a fused weight go under the
diffusers names that ComfyUI maps to those rows, so nothing has to be padded or joined.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .header import read_tensors
from .modules import ModuleEntry

if TYPE_CHECKING:
    from .file import LoraFile

_UNETS = ("sd15", "sd2", "sdxl")
_FLUXES = ("flux", "flux2", "chroma")
# spelling -> families whose diffusers names ComfyUI 0.3.75 maps in that spelling (comfy/lora.py, model_lora_keys_unet)
_READS_DIFFUSERS = {
    "diffusers": ("sd3", "emoji", *_FLUXES, "qwen_image", "aura_flow", "pixart", "hidream"),
    "peft": ("sd3", "emoji", "pixart"),
    "onetrainer": ("sd3", "emoji", *_FLUXES),
    "lycoris": (*_UNETS, "sd3", "emoji", *_FLUXES, "qwen_image", "z_image", "lumina2", "hidream"),
    "bare": ("qwen_image",),
}
_ROWS_PREFIX = {family: "transformer." for family in ("sd3", "emoji", "pixart", *_FLUXES)}
_ROWS_PREFIX |= {family: "diffusion_model." for family in ("z_image", "lumina2")}
_HALVES_PREFIX = {family: "transformer." for family in ("sd3", "emoji", "aura_flow", *_FLUXES)}
_SUFFIX = {
    "down": ".lora_down.weight",
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
_LYCORIS_ROLES = ("hada_", "lokr_")
_OTHER_PEFT_NAME = re.compile(r"\.lora_[AB]\.(?!default\.)[^.]+\.weight")


def comfy_state_dict(lora: LoraFile) -> dict[str, Tensor] | None:
    """See :meth:`LoraFile.comfy_state_dict`."""
    modules = lora.modules
    if lora.kind in ("control", "not_a_lora") or all(_is_read(entry, lora.family.name) for entry in modules.values()):
        return None
    result: dict[str, Tensor] = {}
    for entry in modules.values():
        stem = comfy_stem(entry, lora.family.name)
        read = read_tensors(lora.header, entry.keys.values())
        for role, key in entry.keys.items():
            name = stem + _SUFFIX.get(role, f".{role}") if stem is not None else key
            result[name] = read[key].reshape(-1) if role == "magnitude" else read[key]
        if stem is not None and entry.scale != entry.stock_scale and entry.rank:
            result[f"{stem}.alpha"] = torch.tensor(entry.scale * entry.rank)
    return result


def comfy_stem(entry: ModuleEntry, family: str) -> str | None:
    """The name of a module before the suffix, as ComfyUI's generic form spells it; None when it has no such name."""
    if entry.half == "text_encoder":
        return None
    if entry.half != "model":
        module = entry.base_module.removeprefix(f"{entry.half}.")
        return f"text_encoders.{entry.half}.transformer.{module}"
    if entry.rows is not None:
        if entry.form == "xlabs" or entry.path.endswith(".linear1_qkv"):
            return f"diffusion_model.{entry.base_module}_qkv"  # ComfyUI's name for the first three quarters of linear1
        prefix = _ROWS_PREFIX.get(family)
        return None if prefix is None else prefix + entry.path
    if entry.swap_halves:
        prefix = _HALVES_PREFIX.get(family)
        return None if prefix is None else prefix + entry.path
    return f"diffusion_model.{entry.name}"


def _is_read(entry: ModuleEntry, family: str) -> bool:
    """Whether ComfyUI 0.3.75 maps this module's keys by itself."""
    if not all(_suffix_is_read(role, key, entry) for role, key in entry.keys.items()):
        return False
    return _text_is_read(entry) if entry.half != "model" else _model_is_read(entry, family)


def _suffix_is_read(role: str, key: str, entry: ModuleEntry) -> bool:
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
    if entry.form == "native":
        plain = entry.rows is None and not entry.swap_halves and entry.path == entry.name
        other_names = family in ("z_image", "lumina2", "hunyuan_video")
        return entry.stem.startswith("diffusion_model.") and (plain or other_names)
    if family in _UNETS and entry.form in ("kohya", "lycoris", "diffusers", "bare"):
        return _unet_is_read(entry)
    if entry.form in ("kohya", "wan-fun"):
        plain = entry.path.replace(".", "_") == entry.name.replace(".", "_")
        return plain and entry.rows is None and not entry.swap_halves
    if family == "hunyuan_video" and entry.form == "diffusers":
        return entry.path.startswith(("double_blocks.", "single_blocks.", "txt_in."))
    return family in _READS_DIFFUSERS.get(entry.form, ())


def _unet_is_read(entry: ModuleEntry) -> bool:
    """UNet names: kohya's and LyCORIS' always; dotted ones only as attention processors or outside attention."""
    if entry.form == "kohya":
        return True
    if entry.form == "lycoris":
        return entry.path != entry.name
    if entry.path == entry.name:
        return False
    return ".processor." in entry.stem or ".to_" not in entry.path
