"""The node under test: Gated Multi-LoRA Apply in sum mode, in the process that runs ComfyUI."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
if str(REPO / "tests") not in sys.path:
    sys.path.append(str(REPO / "tests"))
from comfy_local import pack_module  # noqa: E402  the tests' way to load the pack's modules one by one
from tiny_models import random_state  # noqa: E402  the tests' small networks are filled the same way

LoraError: type[Exception] = pack_module("autolora_core.errors").AutoLoRAError


def patcher_class() -> type:
    """What this ComfyUI wraps a model in."""
    return pack_module("nodes.bridge_features").patcher_class()


def apply_sum(model: Any, name: str, strength: float) -> tuple[Any, str, int]:
    """(MODEL, report, how many layers went to ComfyUI's weight patches)."""
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    fused, _, report = node.apply(model, mode="sum", lora_stack=[(name, strength, strength)])
    patched = {re.sub(r"\.(weight|bias)$", "", key) for key in fused.patches.keys() - model.patches.keys()}
    return fused, report, len(patched)


def open_file(path: Path) -> Any:
    """The pack's reading of a LoRA file."""
    return pack_module("autolora_core.lora.file").LoraFile.open(path)


__all__ = ["LoraError", "apply_sum", "open_file", "patcher_class", "random_state"]
