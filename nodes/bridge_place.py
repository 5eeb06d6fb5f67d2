"""How a model of ComfyUI's lays a picture into tokens: what masks of LoRAs go by."""

from __future__ import annotations

from typing import Any

from ..autolora_core.errors import FamilyError
from ..autolora_core.fusion.area import Layout
from ..autolora_core.lora.families import Family
from .bridge_features import has_reference_rows, padded_to

# Families whose layout was looked up in ComfyUI: text and picture apart, or text first in joint rows. In others text
# may come last, or further tokens stand between, and a mask would lie beside the picture. HunyuanVideo lays the picture
# first at ComfyUI 0.3.75 and the text first at 0.33, and nothing about the network tells which.
PLACED = (
    "sd15", "sd2", "sdxl", "sd3", "emoji", "flux", "flux2", "chroma", "qwen_image", "z_image", "lumina2", "wan",
)  # fmt: skip


def require_places(model: Any, family: Family) -> None:
    """Raises ``FamilyError`` where nobody knows which token is which place of the picture."""
    if family.name in PLACED and not has_reference_rows(model.model.diffusion_model):
        return
    raise FamilyError(
        f"a mask cannot be placed on a model of family {family.name}",
        key="mask",
        fix=f"leave the mask out; it works on {', '.join(name for name in PLACED if name != 'emoji')}",
    )


def layout_of(model: Any) -> Layout:
    """Of a MODEL; the number of text tokens is told by every evaluation."""
    network = model.model.diffusion_model
    patch, frames = getattr(network, "patch_size", None), 1
    if isinstance(patch, (tuple, list)):
        frames, patch = (patch[0] if len(patch) == 3 else 1), patch[-1]
    return Layout(patch, frames, multiple=padded_to(network))
