"""Node "LoRA Conflict Report"."""

from __future__ import annotations

from typing import Any

from ..autolora_core.fusion.methods.planner import Settings
from ..autolora_core.fusion.requests import requests_of
from ..autolora_core.fusion.terms import terms_of
from .gated_apply import MODES


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
        from .bridge_gates import AUTO, gate_files

        def number(kind: str, default: float, low: float, high: float, step: float, tip: str) -> tuple:
            return (kind, {"default": default, "min": low, "max": high, "step": step, "tooltip": tip})

        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model, without these LoRAs. It is only looked at."}),
                "mode": (MODES, {"default": "auto", "tooltip": "The mode of Gated Multi-LoRA Apply to tell about."}),
                "gate": ([AUTO, *gate_files()], {"default": AUTO, "tooltip": "The gate that Apply would be given; auto "
                                                 "takes the one made for this base model."}),
                "strength": number("FLOAT", 1.0, -10.0, 10.0, 0.05, "Multiplies the strength of every LoRA."),
            },
            "optional": {
                "clip": ("CLIP", {"tooltip": "Needed by LoRAs that change text encoders only, and by mode ssr."}),
                "selection": ("LORA_SELECTION", {"tooltip": "Picks of Retrieve LoRAs from Prompt, with their roles."}),
                "lora_stack": ("LORA_STACK", {"tooltip": "LoRAs from any stacker: (name, model strength, clip "
                                              "strength). A file that the selection names too counts once."}),
                "density": number("FLOAT", Settings.density, 0.01, 1.0, 0.05, "For ties, dare and magnitude, as in "
                                  "Apply: the share of each LoRA's numbers that is kept."),
                "mu": number("FLOAT", Settings.mu, 0.0, 100.0, 0.05, "For np, as in Apply: how far the subject gives "
                             "way to the style."),
                "swap_roles": ("BOOLEAN", {"default": False, "tooltip": "For np and klora, as in Apply: exchange "
                                           "subject and style."}),
                "interval": number("INT", Settings.interval, 1, 1000, 1, "For switch, as in Apply: for how many steps "
                                   "each LoRA is on."),
                "terms": ("LORA_TERMS", {"tooltip": "From LoRA Time and Place, as in Apply. Strengths by block are "
                                         "measured; schedules and masks are told, not measured."}),
            },
        }  # fmt: skip

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> str:
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
        return {"ui": {"text": [made.text]}, "result": (made.text, made.picture, made.data)}
