"""Node "Gate Heat Map": what passed of each LoRA, block by block and step by step, in the last sampling."""

from __future__ import annotations

import json
from typing import Any

from ..autolora_core.fusion.heat_picture import SHOWS, draw
from .wires import require_model


class AutoLoRAGateHeatMap:
    """Shows what the last sampling let through of each LoRA."""

    TITLE = "Gate Heat Map"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "A picture of what passed of each LoRA in the last sampling: a row for each block of the model, a column for "
        "each step; all numbers as JSON. Switch record on in Gated Multi-LoRA Apply, and connect its model and the "
        "sampler's latent here."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "json")
    OUTPUT_TOOLTIPS = (
        "A panel for each LoRA: rows are blocks, columns are steps.",
        "Block × step × LoRA, what passes and how loud it is, and the mean of every layer.",
    )
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": (
                    "MODEL",
                    {"tooltip": "The model that was sampled, from Gated Multi-LoRA Apply with record on."},
                ),
                "samples": ("LATENT", {"tooltip": "What the sampler made of it: so that this node runs afterwards."}),
                "shows": (
                    list(SHOWS),
                    {
                        "default": "passes",
                        "tooltip": "passes: how much of each LoRA's own output is added, 1 is all of it. "
                        "loudness: how large that is beside the layer's own output.",
                    },
                ),
            }
        }

    def show(self, model: Any, samples: Any, shows: str = "passes") -> tuple[Any, str]:
        import torch

        from .bridge_record import last_heat

        require_model(model)
        heat = last_heat(model)
        return torch.from_numpy(draw(heat, shows))[None], json.dumps(heat.as_json())
