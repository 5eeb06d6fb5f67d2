"""ComfyUI in this process, and the pack loaded under it the way ComfyUI loads a custom node folder."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PACK = "autolora_pack_under_test"


def comfyui_path() -> Path | None:
    """``COMFYUI_PATH``, else the newest ComfyUI in the pack's cache, else None."""
    named = os.environ.get("COMFYUI_PATH")
    cache = Path(os.environ.get("AUTOLORA_CACHE", ROOT / ".cache"))
    folders = [Path(named)] if named else sorted(cache.glob("ComfyUI-*"), reverse=True)
    return next((folder for folder in folders if (folder / "comfy" / "model_patcher.py").is_file()), None)


def start_comfy() -> ModuleType:
    """Import ComfyUI on the CPU. Its root goes first on the path: both it and the pack have a module ``nodes``."""
    if "comfy.sd" in sys.modules:
        return sys.modules["comfy"]
    folder = comfyui_path()
    if folder is None:
        raise RuntimeError("no ComfyUI found: set COMFYUI_PATH, or run scripts/test.py which unpacks one")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    argv, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.sd
    finally:
        sys.argv = argv
    return sys.modules["comfy"]


def pack_module(name: str) -> ModuleType:
    """A module of the pack (``nodes.gated_apply``) inside a package whose name is not the repository's."""
    start_comfy()
    for package, folder in ((PACK, ROOT), (f"{PACK}.nodes", ROOT / "nodes")):
        if package not in sys.modules:
            module = importlib.util.module_from_spec(importlib.util.spec_from_loader(package, None, is_package=True))
            module.__path__ = [str(folder)]
            sys.modules[package] = module
    return importlib.import_module(f"{PACK}.{name}")
