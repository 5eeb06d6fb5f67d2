"""Dense merged updates as ComfyUI weight patches, made when a weight is patched and forgotten again.

The patch holds factors only, as a stock LoRA's does. A fully loaded model computes each update once, when it is loaded;
a layer that ComfyUI streams in low-VRAM mode computes it at every forward, as it does with stock LoRAs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase

from ..autolora_core.fusion.methods.dense import DenseMerge


class DenseAdapter(WeightAdapterBase):
    """``weights`` is ``(DenseMerge,)``: newer ComfyUI makes copies of an adapter from these two attributes."""

    name = "autolora_dense"

    def __init__(self, loaded_keys: set[str], weights: tuple[DenseMerge, ...]):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self,
        weight: torch.Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> torch.Tensor:
        """``weight`` with the update added in place, block of rows by block of rows."""
        (merge,) = self.weights
        for start, stop, rows in merge.blocks(weight.device):
            part = weight[start:stop]
            part += function((strength * rows).reshape(part.shape).to(weight.dtype))
        return weight


def dense_patches(updates: Mapping[str, DenseMerge], prefix: str) -> dict[str, DenseAdapter]:
    """Module → update, as patches for ``ModelPatcher.add_patches``."""
    return {f"{prefix}{name}.weight": DenseAdapter(set(), (merge,)) for name, merge in updates.items()}
