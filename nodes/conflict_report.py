"""Node "LoRA Conflict Report"."""

from __future__ import annotations

from typing import Any

from ..autolora_core.fusion.methods.planner import Settings
from ..autolora_core.fusion.requests import requests_of
from ..autolora_core.fusion.terms import terms_of
from ..autolora_core.wording import lines_apart
from . import fusion_inputs as inputs


class AutoLoRAConflictReport:
    """Says before sampling who overlaps whom, where, and what the chosen mode will do about it."""

    TITLE = "LoRA Conflict Report"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Tells before sampling which LoRAs pull against each other or double up, in which blocks, and what "
        "the chosen mode of Gated Multi-LoRA Apply will do. Measured on the LoRAs' weights: the model is not run and "
        "not changed. Every number stands beside what chance would give."
    )
    RETURN_TYPES = ("STRING", "IMAGE", "STRING")
    RETURN_NAMES = ("report", "map", "json")
    OUTPUT_TOOLTIPS = (
        "The verdict, what the mode will do, and every LoRA and pair in words.",
        "A row for each block, a column for each pair: the cosine of the updates, and how far the inputs are shared.",
        "Everything in numbers, format autolora-conflicts/1: pairs, blocks and layers.",
    )
    FUNCTION = "report"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model, without these LoRAs. It is only looked at."}),
                "mode": (
                    inputs.MODES, {"default": "auto", "tooltip": "The mode of Gated Multi-LoRA Apply to tell about."}
                ),
                "gate": inputs.gate(),
                "strength": inputs.strength(),
            },
            "optional": {
                **inputs.loras(),
                **inputs.settings(),
                "terms": ("LORA_TERMS", {"tooltip": "From LoRA Time and Place, as in Apply. Strengths by block are "
                                         "measured; schedules and masks are told, not measured."}),
            },
        }  # fmt: skip

    @classmethod
    def IS_CHANGED(cls, **given: Any) -> str:
        from .bridge_gates import gates_fingerprint

        return gates_fingerprint()

    def report(
        self, model: Any, mode: str = "auto", gate: str = "auto", strength: float = 1.0, clip: Any = None,
        selection: Any = None, lora_stack: Any = None, density: float = Settings.density, mu: float = Settings.mu,
        swap_roles: bool = Settings.swap_roles, interval: int = Settings.interval, terms: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        from .bridge_conflicts import conflict_report
        from .bridge_methods import Wishes

        prompt = str((selection or {}).get("prompt") or "")
        wishes = Wishes(mode, gate, Settings(density, mu, swap_roles, interval), prompt, terms_of(terms))
        made = conflict_report(model, clip, requests_of(selection, lora_stack, strength), wishes)
        text = lines_apart(made.text)
        return {"ui": {"text": [text]}, "result": (text, made.picture, made.data)}
