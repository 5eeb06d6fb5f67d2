"""Node "Gated Multi-LoRA Apply"."""

from __future__ import annotations

from typing import Any

from ..autolora_core.fusion.requests import requests_of

MODES = ["auto", "gate", "sum"]
MODE_TIP = (
    "auto: gate where one exists and two or more LoRAs meet, else sum. gate: always the gate, an error without one. "
    "sum: plain addition, as the stock LoRA loader does."
)
GATE_TIP = "auto takes the gate made for this base model, from models/autolora or the pack's models folder."


class AutoLoRAGatedApply:
    """Applies several LoRAs at once so that they do not fight."""

    TITLE = "Gated Multi-LoRA Apply"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Applies all LoRAs of a selection or a LORA_STACK at once. A learned gate decides per layer, channel and token "
        "how much of each LoRA passes. Where there is no gate for the model, they are added up as by the stock loader. "
        "The report says which, and why. The input model is never changed."
    )
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("model", "clip", "report")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRAs. Strength 0 everywhere gives back the input model itself.",
        "The text encoders with the LoRAs' text halves; empty when no CLIP is connected.",
        "For every LoRA: layers found, what was applied in another way and why, and the gate that was used.",
    )
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        from .bridge_gates import AUTO, gate_files

        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model. It is cloned, never changed."}),
                "mode": (
                    MODES,
                    {"default": "auto", "tooltip": MODE_TIP},
                ),
                "gate": ([AUTO, *gate_files()], {"default": AUTO, "tooltip": GATE_TIP}),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -10.0,
                        "max": 10.0,
                        "step": 0.05,
                        "tooltip": "Multiplies the strength of every LoRA. 0 is exactly the model without LoRAs.",
                    },
                ),
            },
            "optional": {
                "clip": ("CLIP", {"tooltip": "Text encoders, for LoRAs that change them too."}),
                "selection": (
                    "LORA_SELECTION",
                    {"tooltip": "Picks of Retrieve LoRAs from Prompt, with their strengths."},
                ),
                "lora_stack": (
                    "LORA_STACK",
                    {
                        "tooltip": "LoRAs from any stacker: (name, model strength, clip strength). "
                        "A file that the selection names too is used once, with the selection's strength; "
                        "a file named twice in the stack gets both strengths added."
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> str:
        from .bridge_gates import gates_fingerprint

        return gates_fingerprint()

    def apply(
        self,
        model: Any,
        mode: str = "auto",
        gate: str = "auto",
        strength: float = 1.0,
        clip: Any = None,
        selection: Any = None,
        lora_stack: Any = None,
    ) -> tuple[Any, Any, str]:
        from .bridge import apply_loras

        applied = apply_loras(model, clip, requests_of(selection, lora_stack, strength), mode, gate)
        return applied.model, applied.clip, applied.report
