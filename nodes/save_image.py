"""Node "Save Image with LoRA Info": a picture that tells which LoRAs made it."""

from __future__ import annotations

import json
from typing import Any

from ..autolora_core.errors import SelectionError
from ..autolora_core.image_info.graph import facts_of
from ..autolora_core.image_info.parameters import read_settings
from ..autolora_core.wording import shown

SETTINGS_TIP = (
    "Settings that the graph does not tell, or tells wrongly, one on a line: Steps: 20, Sampler: Euler a, VAE: name … "
    "An empty value leaves one out."
)
# Those that ComfyUI's server fills in. %date:…% and %node.input% are its page's, and for its own nodes only.
PREFIX_TIP = (
    "Begins the file's name; subfolders as in Save Image. Filled in are %width% %height% %year% %month% %day% %hour% "
    "%minute% %second%."
)


class AutoLoRASaveImage:
    """Saves pictures with their LoRAs, strengths and hashes, where other programs look for them."""

    TITLE = "Save Image with LoRA Info"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Saves pictures as Save Image does, and writes which LoRAs were used, how strongly and by which files: as "
        "parameters that Civitai, Lora-Manager and AUTOMATIC1111 read, and whole as JSON. Connect the model that "
        "Gated Multi-LoRA Apply gave. LoRAs of stock loaders are found in the graph."
    )
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("parameters", "json")
    OUTPUT_TOOLTIPS = (
        "The parameters text, as it stands in the file.",
        "What each Apply node did: LoRAs, strengths, hashes, mode, gate and report.",
    )
    FUNCTION = "save"
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["save image with metadata", "save image a1111", "lora hashes", "civitai metadata"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The pictures to save."}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "tooltip": PREFIX_TIP}),
            },
            "optional": {
                "model": ("MODEL", {"tooltip": "The model that was sampled, from Gated Multi-LoRA Apply."}),
                "clip": ("CLIP", {"tooltip": "The CLIP from Apply, for LoRAs that change nothing but text encoders."}),
                "positive": ("STRING", {"forceInput": True, "tooltip": "The prompt as it was encoded, with trigger "
                             "words. Without it: the text in the graph."}),
                "negative": ("STRING", {"forceInput": True, "tooltip": "The negative prompt. Without it: the text in "
                             "the graph."}),
                "seed": ("INT", {"forceInput": True, "tooltip": "The seed, where a node computes it. Without it: that "
                         "in the graph."}),
                "settings": ("STRING", {"multiline": True, "default": "", "tooltip": SETTINGS_TIP}),
                "hash_model": ("BOOLEAN", {"default": False, "tooltip": "Also tell the hash of the base model's file. "
                               "It is read whole, once."}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "unique_id": "UNIQUE_ID"},
        }  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, settings: str | None = None) -> bool | str:
        """A line that is no setting is refused before anything is sampled; linked: None. No other input is named here,
        so ComfyUI's own checks of the others stay."""
        try:
            read_settings(settings or "")
        except SelectionError as error:
            return str(error)
        return True

    def save(
        self, images: Any, filename_prefix: str = "ComfyUI", model: Any = None, clip: Any = None,
        positive: str | None = None, negative: str | None = None, seed: int | None = None, settings: str = "",
        hash_model: bool = False, prompt: Any = None, extra_pnginfo: Any = None, unique_id: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        from . import bridge_save_image as bridge

        replaced = read_settings(settings)
        facts = bridge.with_texts(facts_of(prompt, unique_id), positive, negative, seed)
        size = (int(images.shape[2]), int(images.shape[1]))
        told = bridge.tell(model, clip, facts, size, replaced, hash_model)
        saved = bridge.save_pictures(images, filename_prefix, told, prompt, extra_pnginfo)
        text, whole = shown(told.parameters), shown(json.dumps(told.autolora, ensure_ascii=False))
        return {
            "ui": {"images": saved, "text": [shown("\n\n".join([text, *told.notes]))]},
            "result": (text, whole),
        }
