"""The Apply node's own layer, ``FusionLayer`` of ``nodes/bridge_bank.py`` inside real ComfyUI, on a layer of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .ways import Layer


class NodeLayer:
    """``FusionLayer`` for the LoRAs and the gate of ``layer``, called as ComfyUI calls it, with a batch of one.

    ComfyUI must be importable: see :func:`benchmarks.in_comfy.start`."""

    def __init__(self, layer: Layer):
        self.layer = layer
        base = nn.Linear(layer.shape.n_in, layer.shape.out, device="meta")
        self.fusion = _module("nodes.bridge_bank").FusionLayer(module_plan(layer), base)

    def __call__(self) -> Tensor:
        return self.fusion(self.layer.x[None], self.layer.base()[None])[0]


def module_plan(layer: Layer) -> Any:
    """Of the pack's own classes: inside ComfyUI they are another copy than ``autolora_core``'s."""
    branches, gate, plan = (_module(f"autolora_core.fusion.{name}") for name in ("branches", "gate", "plan"))
    vectors = gate.GateVectors.from_named({k: v.cpu() for k, v in layer.vectors.named().items()})
    parts = [
        branches.Branch("layer", number, down=down.cpu(), up=up.cpu(), scale=scale)
        for number, (down, up, scale) in enumerate(zip(layer.downs, layer.ups, layer.scales, strict=True))
    ]
    return plan.build_plan(parts, {"layer": layer.shape.out}, {"layer": vectors}).modules["layer"]


def _module(name: str) -> Any:
    from comfy_local import pack_module

    return pack_module(name)


def running() -> Any:
    """As ComfyUI runs a model."""
    return torch.inference_mode()
