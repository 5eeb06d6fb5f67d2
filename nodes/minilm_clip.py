"""Node "Load MiniLM CLIP (demo model)"."""

from __future__ import annotations

import os
from typing import Any

from ..autolora_core.encode.towers import MINILM_FIX, MINILM_SHA256, MiniLMTower, file_sha256
from ..autolora_core.errors import TowerError


class AutoLoRAMiniLMCLIPLoader:
    """Loads the text encoder of the demo model."""

    TITLE = "Load MiniLM CLIP (demo model)"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "The text encoder of the demo model: all-MiniLM-L6-v2, 24 tokens, longer prompts are cut. "
        "Connect it to the stock CLIP Text Encode nodes; word weights such as (otter:1.3) work."
    )
    RETURN_TYPES = ("CLIP",)
    RETURN_NAMES = ("clip",)
    OUTPUT_TOOLTIPS = ("Text encoder for CLIP Text Encode. It fits the demo model only.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[Any]:
        from .bridge_clip import build_minilm_clip

        return (build_minilm_clip(checked_minilm_folder()),)


def checked_minilm_folder() -> str:
    """The folder of the original all-MiniLM-L6-v2. Raises ``TowerError`` when it is absent or another file."""
    tower = MiniLMTower.find()
    if tower is None:
        raise TowerError("the text encoder all-MiniLM-L6-v2 is not installed", fix=MINILM_FIX)
    weights = os.path.join(tower.folder, "model.safetensors")
    if file_sha256(weights) != MINILM_SHA256:
        raise TowerError("not the original all-MiniLM-L6-v2 weights", path=weights, fix=MINILM_FIX)
    return os.fspath(tower.folder)
