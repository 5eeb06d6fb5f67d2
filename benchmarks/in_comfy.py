"""The demo model and the pack's nodes inside the real ComfyUI of ``scripts/test.py``, in this process, on the CPU."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from benchmarks.results_file import REPO


@cache
def start() -> None:
    """ComfyUI reads the command line when it is imported, so it gets one of its own."""
    sys.path.append(str(REPO / "tests"))
    from comfy_local import comfy_path

    sys.path.insert(0, str(comfy_path()))
    sys.argv = ["comfy", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import folder_paths

    folder_paths.folder_names_and_paths["loras"] = ([str(REPO / "models" / "loras")], {".safetensors"})


def demo_model() -> Any:
    """A MODEL."""
    start()
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(REPO / "models" / "emoji_mmdit.safetensors"))


def node(name: str) -> Any:
    """An instance, by module and class: ``gated_apply.AutoLoRAGatedApply``."""
    module, _, kind = name.partition(".")
    return getattr(pack_module(f"nodes.{module}"), kind)()


def pack_module(name: str) -> Any:
    """A module of the pack as ComfyUI has it, ``nodes.bridge_bank``: another copy than the one imported by its path."""
    start()
    import comfy_local

    return comfy_local.pack_module(name)
