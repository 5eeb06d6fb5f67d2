"""The text half of a LoRA: what of it the connected CLIP has, as ComfyUI's weight patches.

There the plain sum is all we want, and weight patches are exactly that, for every kind of adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.lora

from ..autolora_core.errors import NothingMatchesError
from ..autolora_core.fusion.report import LoraOutcome
from ..autolora_core.lora.keys import parse_key
from ..autolora_core.lora.text_keys import Placement, place, shown_half, stated_encoder, text_tensors
from .bridge_features import weight_shape
from .bridge_loras import LoadedLora

_TEXT_KEYS = ("lora_te", "lora_prior_te", "text_encoder")  # how keys of text encoders begin, whatever comes then


@dataclass
class TextHalf:
    """``patches``: for the CLIP's patcher. ``layers``: encoder → (layers found, layers of the file); ``missing``:
    layer → why it is left out."""

    patches: dict[Any, Any] = field(default_factory=dict)
    layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class TextEncoders:
    """What a CLIP has: its parameters with their shapes, and ComfyUI's map from LoRA names to them."""

    def __init__(self, clip: Any):
        model = clip.cond_stage_model
        self.weights = dict(_weights(model))
        self.key_map = comfy.lora.model_lora_keys_clip(model, {})

    @property
    def names(self) -> str:
        """The encoders, as a report lists them."""
        found = dict.fromkeys(name.partition(".")[0] for name in self.weights if ".transformer." in name)
        return ", ".join(found) or "no text encoder that LoRAs are made for"


def text_half(lora: LoadedLora, encoders: TextEncoders | None) -> TextHalf:
    """Place the LoRA's text layers in the encoders; None: no CLIP is connected, so all that is known is what is left
    out."""
    modules = {name: entry for name, entry in lora.file.modules.items() if entry.half != "model"}
    if encoders is None:
        return TextHalf(layers=_counted(modules))
    placement = place(modules.values(), encoders.weights)
    state = text_tensors(placement, modules, lora.stored)
    unread = _unread(lora, encoders.key_map, placement)
    known = {key for key in lora.file.keys.unknown if _is_text(key)} - unread.keys()
    state |= {key: lora.stored[key] for key in known}
    patches = comfy.lora.load_lora(state, dict(encoders.key_map), log_missing=False)
    return TextHalf(patches, placement.layers, {**placement.missing, **unread})


def require_text_match(lora: LoadedLora, outcome: LoraOutcome, encoders: TextEncoders | None) -> None:
    """Raise ``NothingMatchesError`` when a LoRA that changes text encoders only changes none of those connected."""
    if "model" in lora.file.halves:
        return
    if not lora.request.clip:
        outcome.notes.append("it changes text encoders only, and its strength there is 0: it changes nothing")
        return
    if outcome.clip_layers:
        return
    if encoders is None:
        raise NothingMatchesError(
            f"{lora.name} changes text encoders only, and no CLIP is connected",
            path=lora.file.path,
            fix="connect CLIP, or leave this LoRA out (banned, in Retrieve LoRAs from Prompt)",
        )
    reasons = "; ".join(dict.fromkeys(outcome.text_missing.values()))
    raise NothingMatchesError(
        f"{lora.name} changes text encoders only ({', '.join(outcome.encoders)}), and not one of its layers exists in "
        f"the connected CLIP ({encoders.names}): {reasons}",
        path=lora.file.path,
        fix="connect the CLIP it was made for, or leave this LoRA out",
    )


def fill_in(outcome: LoraOutcome, half: TextHalf, connected: bool) -> None:
    """Count the text half in the LoRA's report."""
    outcome.encoders, outcome.text_missing = half.layers, half.missing
    outcome.clip_layers = sum(found for found, _ in half.layers.values())
    outcome.clip_connected = connected


def _weights(model: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Parameters called weight with their sizes."""
    for name, module in model.named_modules():
        shape = weight_shape(module)
        if shape is not None:
            yield f"{name}.weight", shape


def _counted(modules: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    placement = Placement()
    for entry in modules.values():
        placement.count(stated_encoder(entry) or shown_half(entry.half), False)
    return placement.layers


def _is_text(key: str) -> bool:
    parsed = parse_key(key)
    return parsed.form.half == "text" if parsed else key.startswith(_TEXT_KEYS)


def _unread(lora: LoadedLora, key_map: Mapping[str, Any], placement: Placement) -> dict[str, str]:
    """Text layers whose names are not in our tables: ComfyUI's own may know them, and gets them as they are.

    Counts both in ``placement``; returns key → why for those that nobody knows.
    """
    stems: dict[str, list[str]] = {}
    for key in sorted(filter(_is_text, lora.file.keys.unknown)):
        parsed = parse_key(key)
        stems.setdefault(parsed.stem if parsed else key, []).append(key)
    unread: dict[str, str] = {}
    for stem, keys in stems.items():
        target = key_map.get(stem)
        encoder = target.partition(".")[0] if isinstance(target, str) else "unknown names"
        placement.count(encoder, target is not None)
        if target is None:
            unread |= dict.fromkeys(keys, "names that neither this pack nor ComfyUI knows")
    return unread
