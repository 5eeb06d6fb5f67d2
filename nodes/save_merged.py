"""Node "Save Merged LoRA": a fusion of LoRAs as one file that every LoRA loader reads."""

from __future__ import annotations

from typing import Any

from ..autolora_core.fusion.merged.pack import DTYPES
from ..autolora_core.fusion.methods.planner import Settings
from ..autolora_core.fusion.requests import requests_of
from ..autolora_core.fusion.terms import terms_of
from ..autolora_core.wording import lines_apart
from . import fusion_inputs as inputs

MODE_TIP = (
    "As in Gated Multi-LoRA Apply. sum, ties, dare, magnitude, np and ssr can be saved, and a gate that is a factor "
    "for each channel. A gate that looks at what the layers compute, energy, klora, switch and composite are refused: "
    "they are no change of the weights."
)
DTYPE_TIP = "How numbers are stored. float16 is usual; float32 is twice as large and practically exact."


class AutoLoRASaveMerged:
    """Writes the update that the Apply node would make into one LoRA file."""

    TITLE = "Save Merged LoRA"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Saves all LoRAs of a selection or a LORA_STACK, fused, as one LoRA file in ComfyUI's loras folder. Any stock "
        "LoRA loader reads it, without this pack. Only fusions that are exactly a change of the weights are saved; "
        "the others are refused with the reason. The model itself is not changed."
    )
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("name", "report")
    OUTPUT_TOOLTIPS = (
        "The file's name as the loras list shows it.",
        "What the file is made of, its rank and size, and how far rounding took it from the exact update.",
    )
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model the LoRAs are for; it tells the layers."}),
                "name": ("STRING", {"default": "merged/my-mix", "tooltip": "File name in the loras folder; subfolders "
                         "are made. Without overwrite a name that is taken gets a number."}),
                "mode": (inputs.MODES, {"default": "auto", "tooltip": MODE_TIP}),
                "dtype": (list(DTYPES), {"default": "float16", "tooltip": DTYPE_TIP}),
                "strength": inputs.strength(),
            },
            "optional": {
                **inputs.loras(),
                "gate": inputs.gate(),
                **inputs.merging(),
                "overwrite": ("BOOLEAN", {"default": False, "tooltip": "Replace a file of this name. Off: a free name "
                              "with a number is taken."}),
                "terms": ("LORA_TERMS", {"tooltip": "From LoRA Time and Place: strengths by block. A schedule or a "
                          "mask cannot be saved."}),
            },
        }  # fmt: skip

    @classmethod
    def IS_CHANGED(cls, **given: Any) -> str:
        from .bridge_gates import gates_fingerprint

        return gates_fingerprint()

    def save(
        self, model: Any, name: str, mode: str = "auto", dtype: str = "float16", strength: float = 1.0,
        clip: Any = None, selection: Any = None, lora_stack: Any = None, gate: str = "auto",
        density: float = Settings.density, mu: float = Settings.mu, swap_roles: bool = Settings.swap_roles,
        overwrite: bool = False, terms: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        from .bridge_methods import Wishes
        from .bridge_save_merged import Target, save_merged

        requests = requests_of(selection, lora_stack, strength)
        prompt = str((selection or {}).get("prompt") or "")
        wishes = Wishes(mode, gate, Settings(density, mu, swap_roles), prompt, terms_of(terms))
        saved, report = save_merged(model, clip, requests, wishes, Target(name, dtype, overwrite))
        report = lines_apart(report)
        return {"ui": {"text": [report]}, "result": (saved, report)}
