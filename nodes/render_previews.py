"""Node "Render LoRA Previews": an index and the user's own model → a picture of what each LoRA does, kept beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..autolora_core.errors import AutoLoRAError, SelectionError
from ..autolora_core.fusion.requests import requests_of
from ..autolora_core.previews.run import WITHOUT, Wanted, render
from ..autolora_core.previews.settings import NEUTRAL_PROMPTS, Settings, read_prompts
from ..autolora_core.previews.sheet import contact_sheet
from ..autolora_core.previews.shelf import FOLDER, PreviewShelf, without_key
from ..autolora_core.previews.words import preview_report
from ..autolora_core.wording import lines_apart
from .bar import Bar
from .preview_source import clip_tower
from .wires import require_clip, require_model, require_vae

NONE = "none"
SHOWN = 24  # LoRAs on the sheet
# Runs that a file open elsewhere cut short: one may have changed nothing, and goes on all the same when queued again.
_in_use = {"runs": 0}
PASSING = (
    "The model or CLIP carries changes of its own (a LoRA, patches): these previews count as rendered only as long as "
    "ComfyUI runs."
)


class AutoLoRARenderPreviews:
    """Samples every LoRA on a few neutral prompts, with and without it, and keeps pictures and their differences."""

    TITLE = "Render LoRA Previews"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Renders a few neutral prompts with your own model, without any LoRA and with each one, and keeps the pictures "
        "in the index folder. It shows what a LoRA does unasked, and what it does to pictures can count in Retrieve "
        "LoRAs from Prompt (its input previews). What was rendered is not rendered again; a cancelled run goes on."
    )
    RETURN_TYPES = ("LORA_INDEX", "IMAGE", "STRING")
    RETURN_NAMES = ("index", "previews", "report")
    OUTPUT_TOOLTIPS = (
        "The index, now with previews, for Retrieve LoRAs from Prompt.",
        "A sheet of the pictures, those without a LoRA first.",
        "What was rendered, how much each LoRA changes pictures, and what failed and why.",
    )
    FUNCTION = "render"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        from .bridge_paths import clip_files, for_menus
        from .bridge_samplers import sampler_names, scheduler_names

        return {
            "required": _required(sampler_names(), scheduler_names()),
            "optional": _optional([NONE, *for_menus(clip_files())]),
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """Previews that came or went: a run that was limited goes on. One that has made some runs once more when it is
        queued again, and finds nothing to do."""
        from .bridge_paths import user_directory

        return f"{_state(os.path.join(user_directory(), 'autolora'))}|{_in_use['runs']}"

    def render(
        self, index: dict, model: Any, clip: Any, vae: Any, prompts: str, seed: int = 0, steps: int = 20,
        cfg: float = 4.0, sampler_name: str = "euler", scheduler: str = "normal", width: int = 512, height: int = 512,
        strength: float = 1.0, limit: int = 0, selection: Any = None, lora_stack: Any = None, names: str = "",
        images_kept: int = 1, image_clip: str = NONE,
    ) -> dict[str, Any]:  # fmt: skip
        from .bridge_paths import model_family, open_index
        from .bridge_previews import ModelCamera, asked_for, base_id, image_of, of_library

        require_model(model)
        require_clip(clip)
        require_vae(vae)
        bar = Bar()
        requests = requests_of(selection, lora_stack)
        if (selection is not None or lora_stack is not None) and not requests:
            raise _nothing("the selection and the stack are empty")
        if not strength:
            raise AutoLoRAError("strength 0 shows no LoRA", key="strength", fix="set it to 1")
        tower = None if image_clip == NONE else clip_tower(image_clip, "image_clip")
        base, lasting = base_id(model, clip, vae)
        settings = Settings(
            read_prompts(prompts), seed, steps, cfg, sampler_name, scheduler, width, height, strength, base,
            "" if tower is None else tower.id,
        )  # fmt: skip
        with open_index(index) as library:
            family = model_family(model).name

            def tell(name: str) -> None:
                bar(0, 1, name)

            if requests:
                asked = asked_for(requests, library, strength, tell)
            else:
                asked = of_library(library, family, names, strength, tell)
            if not asked.wanted and not asked.failed:
                raise _nothing(_why_nothing(family, names, asked.others))
            shelf = PreviewShelf(library.folder)
            camera = ModelCamera(model, clip, vae, settings, tower, bar.show)
            outcome = render(shelf, settings, asked.wanted, camera, kept=images_kept, limit=limit, tick=bar)
            outcome.failed = asked.failed | outcome.failed
            _in_use["runs"] += bool(outcome.in_use)
            handle = library.handle
        bar.finish()
        report = lines_apart(preview_report(outcome, settings, asked.others, () if lasting else (PASSING,)))
        sheet = image_of(contact_sheet(_strips(shelf, settings, asked.wanted, set(outcome.failed))))
        return {"ui": {"text": [report]}, "result": (handle, sheet, report)}


def _nothing(why: str) -> SelectionError:
    return SelectionError(
        f"there is no LoRA to render: {why}", key="index", fix="connect an index, a selection or a stack with LoRAs of "
        "the model's base, or change names",
    )  # fmt: skip


def _why_nothing(family: str, names: str, others: Sequence[str]) -> str:
    called = f" whose name passes “{names}”" if names.strip() else ""
    more = f"; {len(others)} are for other bases" if others else ""
    return f"the index holds none for {family}{called}{more}"


def _strips(shelf: PreviewShelf, settings: Settings, wanted: Sequence[Wanted], failed: set[str]) -> list:
    """Title and pictures of those without a LoRA and of the last :data:`SHOWN` LoRAs that have some."""
    from PIL import Image

    from ..autolora_core.library.pictures import read_picture

    def opened(key: str) -> list[Image.Image]:
        found = [read_picture(str(path)) for path in shelf.pictures(key)]
        return [Image.fromarray((picture * 255).round().byte().numpy()) for picture in found]

    shown = [lora for lora in wanted if lora.name not in failed and shelf.picture(lora.key) is not None][-SHOWN:]
    strips = [(WITHOUT, opened(without_key(settings.without))), *((lora.name, opened(lora.key)) for lora in shown)]
    return [strip for strip in strips if strip[1]]


def _state(libraries: str) -> str:
    """Of the previews of every library."""
    try:
        folders = sorted(entry.path for entry in os.scandir(libraries) if entry.is_dir())
    except OSError:
        return ""
    return " ".join(PreviewShelf(folder).state for folder in folders if os.path.isdir(os.path.join(folder, FOLDER)))


def _required(samplers: list[str], schedulers: list[str]) -> dict[str, tuple]:
    neutral = "Neutral prompts, one a line, that leave open what is drawn and how, so that a LoRA shows what it adds."
    return {
        "index": ("LORA_INDEX", {"tooltip": "The index from Encode LoRA Library; the pictures are kept beside it."}),
        "model": ("MODEL", {"tooltip": "The base model, without LoRAs. Not changed."}),
        "clip": ("CLIP", {"tooltip": "Its text encoder."}),
        "vae": ("VAE", {"tooltip": "Its VAE."}),
        "prompts": ("STRING", {"default": "\n".join(NEUTRAL_PROMPTS), "multiline": True, "tooltip": neutral}),
        "seed": _fixed(
            _whole(0, 0, 2**64 - 1, "Noise of the first prompt; each prompt has its own, the same for all LoRAs.")
        ),
        "steps": _whole(20, 1, 1000, "Steps of sampling a picture. Few are enough to tell LoRAs apart."),
        "cfg": _number(4.0, 0.0, 100.0, 0.1, "Guidance; 1 for FLUX."),
        "sampler_name": (samplers, {"default": "euler", "tooltip": "Sampler of the pictures."}),
        "scheduler": (schedulers, {"default": "normal", "tooltip": "Scheduler of the pictures."}),
        "width": _whole(512, 16, 4096, "Width of the pictures; what is kept is no larger than 512.", 8),
        "height": _whole(512, 16, 4096, "Height of the pictures.", 8),
        "strength": _number(1.0, -10.0, 10.0, 0.05, "Strength of every LoRA, for model and text encoder."),
        "limit": _whole(0, 0, 100000, "At most so many LoRAs in one run; queue again to go on. 0: all."),
    }


def _optional(clips: list[str]) -> dict[str, tuple]:
    return {
        "selection": ("LORA_SELECTION", {"tooltip": "Render these LoRAs instead of the whole index."}),
        "lora_stack": ("LORA_STACK", {"tooltip": "Render these LoRAs instead of the whole index."}),
        "names": (
            "STRING",
            {
                "default": "",
                "tooltip": "Only LoRAs of the index whose name matches: pieces of names or patterns with * and ?, "
                "commas between; -part leaves files out.",
            },
        ),
        "images_kept": _whole(1, 1, 64, "How many pictures of each LoRA are kept, of the first prompts."),
        "image_clip": (
            clips,
            {
                "tooltip": "CLIP with an image tower that looks at the pictures: a CLIP vision file or a whole CLIP. "
                "none: the model's own latents are compared."
            },
        ),
    }


def _whole(default: int, low: int, high: int, tip: str, step: int = 1) -> tuple:
    return ("INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tip})


def _fixed(seed: tuple) -> tuple:
    """One that moves by itself, as the page has it for seeds, would render all anew at every run."""
    return (seed[0], {**seed[1], "control_after_generate": False})


def _number(default: float, low: float, high: float, step: float, tip: str) -> tuple:
    return ("FLOAT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tip})
