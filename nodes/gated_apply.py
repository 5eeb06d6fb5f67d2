"""Node "Gated Multi-LoRA Apply"."""

from __future__ import annotations

from typing import Any

from ..autolora_core.fusion.methods.planner import Settings
from ..autolora_core.fusion.requests import library_of, requests_of
from ..autolora_core.fusion.terms import terms_of
from ..autolora_core.wording import lines_apart
from . import fusion_inputs as inputs

MODE_TIP = (
    "auto: gate where one exists and two or more LoRAs meet, else sum; a pick whose words the prompt hardly asks for "
    "counts less. gate: always the gate, an error without one. "
    "sum: plain addition, as the stock LoRA loader does. energy: the sum, as loud as the loudest LoRA. "
    "ties, dare, magnitude: keep a part of each LoRA's numbers (density). klora: one LoRA a layer, the subject "
    "early, the style late. np: the subject gives way to the style (mu). ssr: LoRAs are routed by their own words, "
    "needs CLIP. switch: one LoRA a step. composite: the mean of one prediction a LoRA, as many times slower. "
    "With one LoRA every mode is the plain LoRA."
)


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
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model. It is cloned, never changed."}),
                "mode": (inputs.MODES, {"default": "auto", "tooltip": MODE_TIP}),
                "gate": inputs.gate(),
                "strength": inputs.strength(),
            },
            "optional": {
                **inputs.loras(),
                **inputs.settings(),
                "terms": inputs.TERMS,
                "record": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Note what passes of each LoRA, for Gate Heat Map and, while sampling, on this "
                        "node's cards. Costs some time.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, **given: Any) -> str:
        from .bridge_gates import gates_fingerprint

        return gates_fingerprint()

    def run(self, selection: Any = None, unique_id: Any = None, **inputs: Any) -> dict[str, Any]:
        """As :meth:`apply`, and what the page shows of it."""
        applied = self._applied(selection=selection, node=str(unique_id or ""), **inputs)
        applied.card["library"] = library_of(selection)  # the very card: what passes is put into it after sampling
        report = lines_apart(applied.report)
        return {"ui": {"text": [report], "autolora": [applied.card]}, "result": (applied.model, applied.clip, report)}

    def apply(self, model: Any, *given: Any, **inputs: Any) -> tuple[Any, Any, str]:
        """Model, CLIP and report; the inputs by name, or in their order."""
        applied = self._applied(model, *given, **inputs)
        return applied.model, applied.clip, lines_apart(applied.report)

    def _applied(
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
        node: str = "",
    ) -> Any:
        from .bridge import apply_loras
        from .bridge_methods import Wishes

        requests = requests_of(selection, lora_stack, strength)
        prompt = str((selection or {}).get("prompt") or "")
        wishes = Wishes(mode, gate, Settings(density, mu, swap_roles, interval), prompt, terms_of(terms), record, node)
        return apply_loras(model, clip, requests, wishes)
