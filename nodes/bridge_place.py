"""How a model of ComfyUI's lays a picture into tokens: what masks of LoRAs go by."""

from __future__ import annotations

from typing import Any

from ..autolora_core.fusion.area import Layout
from .bridge_paths import model_family

PICTURE_FIRST = ("hunyuan_video", "hidream")  # families whose joint blocks have the picture before the text


def layout_of(model: Any) -> Layout:
    """Of a MODEL; the number of text tokens is told by every evaluation."""
    network = model.model.diffusion_model
    patch, frames = getattr(network, "patch_size", None), 1
    if isinstance(patch, (tuple, list)):
        frames, patch = (patch[0] if len(patch) == 3 else 1), patch[-1]
    multiple = getattr(network, "pad_tokens_multiple", None) or 1
    return Layout(patch, frames, text_first=model_family(model).name not in PICTURE_FIRST, multiple=multiple)
