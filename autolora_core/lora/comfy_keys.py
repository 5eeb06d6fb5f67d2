"""Renames a file's tensors to keys that every ComfyUI from 0.3.75 reads. (Filled in with the formats it does not read.)"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .file import LoraFile


def comfy_state_dict(lora: LoraFile) -> dict[str, Tensor] | None:
    """See :meth:`LoraFile.comfy_state_dict`."""
    return None
