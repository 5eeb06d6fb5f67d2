"""The inputs of "Retrieve LoRAs from Prompt", and the base models that can be searched."""

from __future__ import annotations

from ..autolora_core.lora.lineage import choices
from .preview_source import LEARNED, OFF

AUTO = "auto"
FAMILIES = (
    "sd15", "sd2", "sdxl", "sd3", "flux", "flux2", "chroma", "qwen_image", "z_image", "lumina2", "wan", "hunyuan_video",
    "ltxv", "pixart", "aura_flow", "anima", "krea2", "emoji",
)  # fmt: skip
# Bases whose LoRAs are published by checkpoint line; a search can be restricted to one, as "sdxl / pony".
SPLIT = ("sd15", "sdxl", "flux", "qwen_image", "z_image", "wan")
WITHIN = " / "
FAMILY_CHOICES = tuple(
    choice
    for family in FAMILIES
    for choice in (family, *(f"{family}{WITHIN}{line}" for line in (choices(family) if family in SPLIT else ())))
)


def required_inputs() -> dict[str, tuple]:
    def number(kind: str, default: float, low: float, high: float, step: float, tooltip: str) -> tuple:
        return (kind, {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip})

    names = "one name a line, as the LoRA menus show it (folder and ending may be left out)"
    pinned = f"Always choose these: {names}. name:0.7 sets a strength."
    banned = f"Never choose these: {names}. * stands for any letters."
    return {
        "index": ("LORA_INDEX", {"tooltip": "The index from Encode LoRA Library."}),
        "prompt": (
            "STRING",
            {"multiline": True, "default": "", "tooltip": "What the picture should show; the search goes by this."},
        ),
        "family": (
            [AUTO, *FAMILY_CHOICES],
            {
                "tooltip": "Base model whose LoRAs are searched. auto: that of the model connected. With a checkpoint "
                "line (sdxl / pony): without LoRAs that say they are made for another line."
            },
        ),
        "top_k": number("INT", 3, 0, 32, 1, "At most this many LoRAs are chosen, pinned ones included."),
        "threshold": number(
            "FLOAT", 0.5, 0.0, 1.0, 0.01, "How sure it must be that a LoRA fits (0 to 1). Higher chooses fewer."
        ),
        "strength": number("FLOAT", 1.0, -10.0, 10.0, 0.05, "Strength given to every chosen LoRA."),
        "pinned": ("STRING", {"multiline": True, "default": "", "tooltip": pinned}),
        "banned": ("STRING", {"multiline": True, "default": "", "tooltip": banned}),
        "use_weights": (
            "BOOLEAN",
            {
                "default": True,
                "tooltip": "Use what the weights say. With model and clip connected this finds files without any "
                "description.",
            },
        ),
        "use_text": (
            "BOOLEAN",
            {"default": True, "tooltip": "Use names, tags, trigger words and descriptions."},
        ),
    }


def optional_inputs() -> dict[str, tuple]:
    from .bridge_paths import clip_files, for_menus

    return {
        "model": (
            "MODEL",
            {
                "tooltip": "The base model, to leave out LoRAs made for another one and, with a CLIP, to ask the LoRAs "
                "what they do to the prompt's words. Not changed."
            },
        ),
        "clip": (
            "CLIP",
            {
                "tooltip": "The model's text encoder. With it and the model LoRAs that nobody described are found. The "
                "first time a model meets a library this takes seconds to minutes, by the model's size."
            },
        ),
        "lora_stack": ("LORA_STACK", {"tooltip": "A stack to extend: its entries come first and stay as they are."}),
        "choices": (
            "STRING",
            {
                "default": "",
                "multiline": False,
                "tooltip": "What was chosen on the cards of single LoRAs (strength, trigger words, role), as JSON; the "
                "cards write it. Empty: nothing.",
            },
        ),
        "previews": (
            [OFF, LEARNED, *for_menus(clip_files())],
            {
                "default": OFF,
                "tooltip": "Also go by what LoRAs do to pictures, as Render LoRA Previews saw it. learned: from LoRAs "
                "with words and previews. Or the whole CLIP that embedded the previews. off: not at all.",
            },
        ),
    }
