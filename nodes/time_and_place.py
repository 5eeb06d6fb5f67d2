"""Node "LoRA Time and Place": when, where and in which blocks a LoRA is on, for the Apply node."""

from __future__ import annotations

from typing import Any

from ..autolora_core.errors import SelectionError
from ..autolora_core.fusion.terms import EVERY, BlockFactors, Schedule, Term, terms_of


class AutoLoRATimeAndPlace:
    """Says of one LoRA, or of all, when, where and in which blocks it is on."""

    TITLE = "LoRA Time and Place"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Says when, where and in which blocks LoRAs are on: a schedule along the sampling, factors for blocks, a mask. "
        "Everything happens inside the one forward pass that there is anyway. "
        "Connect it to terms of Gated Multi-LoRA Apply; chain several for several LoRAs."
    )
    RETURN_TYPES = ("LORA_TERMS",)
    RETURN_NAMES = ("terms",)
    OUTPUT_TOOLTIPS = ("For terms of Gated Multi-LoRA Apply, or of another LoRA Time and Place.",)
    FUNCTION = "say"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "lora": (
                    "STRING",
                    {
                        "default": EVERY,
                        "tooltip": "Which LoRA: a part of its file name, its number in the report of the Apply node, "
                        "or * for all.",
                    },
                ),
                "schedule": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Strength along the sampling, 0 the first step, 1 the end: 0: 1, 0.5: 1, 0.6: 0 "
                        "goes in straight lines; 0.2-0.8 is on there only. Empty: always on.",
                    },
                ),
                "blocks": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "Strength by block: double_blocks.0-8: 0.5, single_blocks: 0. A block, a range, a "
                        "family of blocks, or a pattern as *.attn*; of several that fit the last counts.",
                    },
                ),
            },
            "optional": {
                "mask": ("MASK", {"tooltip": "Where in the picture it is on: white is all of it, black nothing."}),
                "terms": ("LORA_TERMS", {"tooltip": "What was said of other LoRAs before."}),
            },
        }

    def say(
        self, lora: str = EVERY, schedule: str = "", blocks: str = "", mask: Any = None, terms: Any = None
    ) -> tuple[tuple[Term, ...]]:
        term = Term(lora, Schedule.parse(schedule), BlockFactors.parse(blocks), _one_mask(mask))
        return ((*terms_of(terms), term),)


def _one_mask(mask: Any) -> Any:
    """(h, w) of ComfyUI's (1, h, w)."""
    if mask is None or mask.ndim == 2:
        return mask
    if len(mask) != 1:
        raise SelectionError(
            f"a LoRA has one mask, this is a batch of {len(mask)}", key="mask", fix="connect a single mask"
        )
    return mask[0]
