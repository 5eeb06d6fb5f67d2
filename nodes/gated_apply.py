"""Node "Gated Multi-LoRA Apply"."""

from __future__ import annotations

from typing import Any

from ..autolora_core.fusion.methods.planner import METHODS, Settings
from ..autolora_core.fusion.requests import requests_of
from ..autolora_core.fusion.terms import terms_of

MODES = ["auto", "gate", "sum", *METHODS]
MODE_TIP = (
    "auto: gate where one exists and two or more LoRAs meet, else sum; a pick whose words the prompt hardly asks for "
    "counts less. gate: always the gate, an error without one. "
    "sum: plain addition, as the stock LoRA loader does. energy: the sum, as loud as the loudest LoRA. "
    "ties, dare, magnitude: keep a part of each LoRA's numbers (density). klora: one LoRA a layer, the subject "
    "early, the style late. np: the subject gives way to the style (mu). ssr: LoRAs are routed by their own words, "
    "needs CLIP. switch: one LoRA a step. composite: the mean of one prediction a LoRA, as many times slower. "
    "With one LoRA every mode is the plain LoRA."
)
GATE_TIP = "auto takes the gate made for this base model, from models/autolora or the pack's models folder."


class AutoLoRAGatedApply:
    """Applies several LoRAs at once so that they do not fight."""

    TITLE = "Gated Multi-LoRA Apply"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Applies all LoRAs of a selection or a LORA_STACK at once. A learned gate decides per layer, channel and token "
        "how much of each LoRA passes. Where there is no gate for the model, they are added up as by the stock loader. "
        "Nine training-free methods can be chosen instead. "
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
                "clip": ("CLIP", {"tooltip": "Text encoders, for LoRAs that change them too. Mode ssr needs it."}),
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
                "density": (
                    "FLOAT",
                    {
                        "default": Settings.density,
                        "min": 0.01,
                        "max": 1.0,
                        "step": 0.05,
                        "tooltip": "For ties, dare and magnitude: the share of each LoRA's numbers that is kept. "
                        "1 keeps all of them.",
                    },
                ),
                "mu": (
                    "FLOAT",
                    {
                        "default": Settings.mu,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.05,
                        "tooltip": "For np: how far the subject gives way to the style. 0 is the plain sum.",
                    },
                ),
                "swap_roles": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "For np and klora: exchange subject and style. The report says which LoRA was taken "
                        "for which: Retrieve's roles, else the first LoRA is the subject.",
                    },
                ),
                "interval": (
                    "INT",
                    {
                        "default": Settings.interval,
                        "min": 1,
                        "max": 1000,
                        "tooltip": "For switch: for how many steps each LoRA is on before the next one takes over.",
                    },
                ),
                "terms": ("LORA_TERMS", {"tooltip": "From LoRA Time and Place: when, where and in which blocks."}),
                "record": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Note what passes of each LoRA, for Gate Heat Map. Costs some time."},
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
        density: float = Settings.density,
        mu: float = Settings.mu,
        swap_roles: bool = Settings.swap_roles,
        interval: int = Settings.interval,
        terms: Any = None,
        record: bool = False,
    ) -> tuple[Any, Any, str]:
        from .bridge import apply_loras
        from .bridge_methods import Wishes

        requests = requests_of(selection, lora_stack, strength)
        prompt = str((selection or {}).get("prompt") or "")
        wishes = Wishes(mode, gate, Settings(density, mu, swap_roles, interval), prompt, terms_of(terms), record)
        applied = apply_loras(model, clip, requests, wishes)
        return applied.model, applied.clip, applied.report
