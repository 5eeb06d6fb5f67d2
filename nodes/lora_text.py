"""Nodes "LoRA Stack from Text" and "LoRA Stack to Text": ``<lora:name:weight>``, as prompts elsewhere have it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from ..autolora_core.errors import FileFormatError
from ..autolora_core.fusion.file_names import short_names, spelled, without_ending
from ..autolora_core.fusion.lora_text import GROUPS, Mark, marks_text, plain, read_marks
from ..autolora_core.fusion.requests import Request, merge_same_files, requests_of, stack_entries
from ..autolora_core.library.metadata import read_words
from ..autolora_core.lora.header import read_header
from ..autolora_core.wording import counted, shown

NAMES = ("file name", "folder and file name")


class AutoLoRAStackFromText:
    """Reads the LoRAs out of a prompt."""

    TITLE = "LoRA Stack from Text"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Takes <lora:name:0.8> and <lora:name:0.8:0.6> (model, text encoder) out of a text and makes a LORA_STACK of "
        "them. Names may lack folder and ending; one that is not there, or could be several files, is an error."
    )
    RETURN_TYPES = ("LORA_STACK", "STRING", "STRING")
    RETURN_NAMES = ("lora_stack", "text", "report")
    OUTPUT_TOOLTIPS = (
        "The incoming stack, then the LoRAs of the text; for Gated Multi-LoRA Apply or another pack's loader.",
        "The text without the <lora:…>; for CLIP Text Encode.",
        "Which file each <lora:…> was taken for.",
    )
    FUNCTION = "read"
    SEARCH_ALIASES = ["lora tag loader", "lora syntax", "load lora from prompt", "a1111 lora"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = "A prompt with <lora:name:weight>. Two weights are for model and text encoder, in this order."
        stack = "A LORA_STACK that the text's LoRAs are added to."
        return {
            "required": {"text": ("STRING", {"multiline": True, "default": "", "tooltip": tip})},
            "optional": {"lora_stack": ("LORA_STACK", {"tooltip": stack})},
        }

    @classmethod
    def IS_CHANGED(cls, **given: Any) -> str:
        """Which file a name means depends on the files that are there."""
        from .bridge_paths import lora_names

        return str(hash(tuple(lora_names())))

    def read(self, text: str, lora_stack: Any = None) -> tuple[list[tuple[str, float, float]], str, str]:
        from .bridge_loras import listed_name, resolve, told_name

        marks, rest = read_marks(text)
        stack, lines = stack_entries(lora_stack), []
        for mark in marks:
            path = resolve(Request(mark.name, mark.model, mark.clip))
            stack.append((listed_name(path) or path, mark.model, mark.clip))
            lines.append(_line(mark, told_name(path)))
        return stack, rest, "\n".join([f"{counted(len(marks), 'LoRA')} in the text", *lines])


class AutoLoRAStackToText:
    """Writes LoRAs as text."""

    TITLE = "LoRA Stack to Text"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Writes the LoRAs of a selection or a LORA_STACK as <lora:name:0.8>, and their trigger words as "
        "TriggerWord Toggle (LoraManager) takes them."
    )
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("text", "trigger_words")
    OUTPUT_TOOLTIPS = (
        "<lora:name:weight>, with a second weight where the text encoder's differs.",
        "Trigger words of all LoRAs, with ,, between: each one can be switched off in TriggerWord Toggle.",
    )
    FUNCTION = "write"
    SEARCH_ALIASES = ["lora stack to string", "lora syntax", "trigger words"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = "How files are named. Files of one name in several folders are written with folders in any case."
        return {
            "required": {"names": (list(NAMES), {"default": NAMES[0], "tooltip": tip})},
            "optional": {
                "selection": ("LORA_SELECTION", {"tooltip": "Picks of Retrieve LoRAs from Prompt."}),
                "lora_stack": ("LORA_STACK", {"tooltip": "LoRAs from any stacker. One that the selection names too is "
                               "written once."}),
            },
        }  # fmt: skip

    def write(self, names: str = NAMES[0], selection: Any = None, lora_stack: Any = None) -> tuple[str, str]:
        from .bridge_loras import resolved
        from .bridge_paths import lora_names

        merged = merge_same_files(resolved(requests_of(selection, lora_stack)))
        listed = [request.name for _, request in merged]
        short = short_names(listed, lora_names()) if names == NAMES[0] else _with_folders(listed)
        text = marks_text((request for _, request in merged), short)
        words = [word for path, request in merged if not request.absent for word in _triggers(path, request)]
        return shown(text), shown(GROUPS.join(dict.fromkeys(words)))


def _line(mark: Mark, name: str) -> str:
    clip = "" if mark.clip == mark.model else f", text encoder {plain(mark.clip)}"
    ignored = f"; not heeded: {', '.join(mark.ignored)}" if mark.ignored else ""
    return f"- {shown(mark.name)}: {shown(name)} × {plain(mark.model)}{clip}{ignored}"


def _with_folders(names: Iterable[str]) -> dict[str, str]:
    return {name: without_ending(spelled(name)) for name in names}


def _triggers(path: str, request: Request) -> tuple[str, ...]:
    """The pick's, else what the file and its sidecars say."""
    if request.triggers:
        return request.triggers
    try:
        metadata = read_header(path).metadata
    except FileFormatError:
        metadata = {}
    return read_words(path, metadata, os.listdir(os.path.dirname(path))).text.triggers
