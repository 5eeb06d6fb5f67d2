"""Nodes "Compare Modes and Strengths" and "Picture Sheet": one graph draws every pair, one picture shows them."""

from __future__ import annotations

from typing import Any

from ..autolora_core.fusion.compare import pairs, sheet
from .fusion_inputs import MODES


class AutoLoRACompare:
    """Runs the rest of the graph once for every mode and strength."""

    TITLE = "Compare Modes and Strengths"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Makes every pair of the modes and strengths you name. Connect mode and strength to Gated Multi-LoRA Apply: "
        "all that follows runs once for every pair. Picture Sheet puts the pictures side by side, with their labels."
    )
    RETURN_TYPES = (MODES, "FLOAT", "STRING", "INT")
    RETURN_NAMES = ("mode", "strength", "label", "columns")
    OUTPUT_IS_LIST = (True, True, True, False)
    OUTPUT_TOOLTIPS = (
        "For mode of Gated Multi-LoRA Apply, one a pair.",
        "For strength of Gated Multi-LoRA Apply, one a pair.",
        "For labels of Picture Sheet, one a pair.",
        "For columns of Picture Sheet: a line for every mode.",
    )
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        modes = f"Modes of Gated Multi-LoRA Apply, one a line: {', '.join(MODES)}."
        strengths = "Numbers with commas between them. Each multiplies the strength of every LoRA; 0 is the bare model."
        return {
            "required": {
                "modes": ("STRING", {"default": "sum\nauto", "multiline": True, "tooltip": modes}),
                "strengths": ("STRING", {"default": "0.5, 1.0", "tooltip": strengths}),
            }
        }

    def compare(self, modes: str, strengths: str) -> tuple[list[str], list[float], list[str], int]:
        made, columns = pairs(modes, strengths, MODES)
        return [one.mode for one in made], [one.strength for one in made], [one.label for one in made], columns


class AutoLoRAPictureSheet:
    """Puts pictures of many runs on one sheet."""

    TITLE = "Picture Sheet"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = "Puts all pictures that reach it onto one sheet, in lines, each with its label below."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("sheet",)
    OUTPUT_TOOLTIPS = ("One picture with all of them.",)
    INPUT_IS_LIST = True
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        labels = "Words below the pictures, one a picture, as Compare Modes and Strengths gives them."
        columns = "Pictures in a line; 0 makes the sheet as square as it can be."
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The pictures, from as many runs and batches as there are."}),
                "columns": ("INT", {"default": 0, "min": 0, "max": 64, "tooltip": columns}),
            },
            "optional": {"labels": ("STRING", {"forceInput": True, "tooltip": labels})},
        }

    def show(self, images: list[Any], columns: list[int], labels: list[str] | None = None) -> tuple[Any]:
        import torch

        pictures, words = [], []
        for run, batch in enumerate(images):
            pictures += list(batch.cpu().numpy())
            words += [labels[run] if labels and run < len(labels) else ""] * len(batch)
        return (torch.from_numpy(sheet(pictures, words, columns[0]))[None],)
