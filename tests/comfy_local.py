"""Where the tests' ComfyUI lies, and the pack's node modules one at a time, inside a package whose name is not the
repository's.

Unlike the ``pack`` fixture this does not import every node, so a test of one node does not depend on the others.
ComfyUI must be importable for them: use them together with the ``comfy`` fixture.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACK = "autolora_pack_under_test"
COMFY_VERSION = "0.3.75"
NO_COMFY = "run `python scripts/test.py` once, or set COMFYUI_PATH"


def comfy_path() -> Path:
    """``COMFYUI_PATH``, else the ComfyUI that ``scripts/test.py`` unpacks into the cache; it need not be there."""
    cache = Path(os.environ.get("AUTOLORA_CACHE", ROOT / ".cache"))
    return Path(os.environ.get("COMFYUI_PATH", cache / f"ComfyUI-{COMFY_VERSION}"))


def pack_module(name: str) -> ModuleType:
    """A module of the pack, such as ``nodes.gated_apply``."""
    for package, folder in ((PACK, ROOT), (f"{PACK}.nodes", ROOT / "nodes")):
        if package not in sys.modules:
            module = importlib.util.module_from_spec(importlib.util.spec_from_loader(package, None, is_package=True))
            module.__path__ = [str(folder)]
            sys.modules[package] = module
    return importlib.import_module(f"{PACK}.{name}")


# Sizes of networks that newer ComfyUI insists on, with the values that FLUX.1, HunyuanVideo and Chroma have.
_NEWER_SIZES = {"txt_ids_dims": [], "meanflow_sum": False, "vec_in_dim": None}


def sizes_for(params: type, sizes: dict[str, Any]) -> dict[str, Any]:
    """``sizes`` of a network, with those that this ComfyUI's dataclass ``params`` asks for besides."""
    asked = params.__dataclass_fields__
    return {**{name: value for name, value in _NEWER_SIZES.items() if name in asked}, **sizes}


def every_progress_message(monkeypatch: Any) -> None:
    """Newer ComfyUI keeps back messages that come less than a moment or a step after the last one; here none is."""
    import comfy.utils

    for name in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):
        monkeypatch.setattr(comfy.utils, name, 0.0, raising=False)


def library_place(comfy: ModuleType, name: str) -> Path:
    """Where nodes look for a library of this name: in ComfyUI's user directory, and nowhere else."""
    return Path(comfy.get_user_directory()) / "autolora" / name


def as_model(network):
    """A MODEL of ComfyUI around a network, or around a model that holds one as ``diffusion_model``."""
    import torch
    from comfy.model_patcher import ModelPatcher

    holder = network
    if not hasattr(network, "diffusion_model"):
        holder = torch.nn.Module()
        holder.diffusion_model = network
    return ModelPatcher(holder, torch.device("cpu"), torch.device("cpu"))
