"""Inputs that Apply, Conflict Report and Save Merged share: which LoRAs, how loud, and the settings of the modes."""

from __future__ import annotations

from typing import Any

from ..autolora_core.fusion.methods.planner import METHODS, Settings

MODES = ["auto", "gate", "sum", *METHODS]
GATE_TIP = "auto takes the gate made for this base model, from models/autolora or the pack's models folder."
TERMS = ("LORA_TERMS", {"tooltip": "From LoRA Time and Place: when, where and in which blocks."})


def number(default: float, low: float, high: float, tip: str) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": low, "max": high, "step": 0.05, "tooltip": tip})


def strength() -> tuple[str, dict[str, Any]]:
    tip = "Multiplies the strength of every LoRA. 0 is exactly the model without LoRAs."
    return number(1.0, -10.0, 10.0, tip)


def gate() -> tuple[list[str], dict[str, Any]]:
    """The gate files that are there now."""
    from .bridge_gates import AUTO, gate_files
    from .bridge_paths import for_menus

    return ([AUTO, *for_menus(gate_files())], {"default": AUTO, "tooltip": GATE_TIP})


def loras() -> dict[str, tuple[str, dict[str, Any]]]:
    """Optional inputs: text encoders, and LoRAs from a selection or a stack."""
    stack = (
        "LoRAs from any stacker: (name, model strength, clip strength). A file that the selection names too is used "
        "once, with the selection's strength; a file named twice in the stack gets both strengths added."
    )
    return {
        "clip": ("CLIP", {"tooltip": "Text encoders, for LoRAs that change them too. Mode ssr needs it."}),
        "selection": ("LORA_SELECTION", {"tooltip": "Picks of Retrieve LoRAs from Prompt, with their strengths."}),
        "lora_stack": ("LORA_STACK", {"tooltip": stack}),
    }


def merging() -> dict[str, tuple[str, dict[str, Any]]]:
    """Settings of the modes that make one update of all LoRAs."""
    swap = (
        "For np and klora: exchange subject and style. The report says which LoRA was taken for which: Retrieve's "
        "roles, else the first LoRA is the subject."
    )
    return {
        "density": number(Settings.density, 0.01, 1.0, "For ties, dare and magnitude: the share of each LoRA's numbers "
                          "that is kept. 1 keeps all of them."),
        "mu": number(Settings.mu, 0.0, 100.0, "For np: how far the subject gives way to the style. 0 is the sum."),
        "swap_roles": ("BOOLEAN", {"default": False, "tooltip": swap}),
    }  # fmt: skip


def settings() -> dict[str, tuple[str, dict[str, Any]]]:
    """Of all modes."""
    tip = "For switch: for how many steps each LoRA is on before the next one takes over."
    interval = ("INT", {"default": Settings.interval, "min": 1, "max": 1000, "tooltip": tip})
    return {**merging(), "interval": interval}
