"""The Apply node's own layer, ``FusionLayer`` of ``nodes/bridge_bank.py`` inside real ComfyUI, on a layer of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .ways import Layer


class NodeLayer:
    """``FusionLayer`` for the LoRAs and the gate of ``layer``, in the forward of a layer as ComfyUI's injection puts it
    there; called with a batch of one.

    ComfyUI must be importable: see :func:`benchmarks.in_comfy.start`."""

    def __init__(self, layer: Layer):
        base = _Linear(layer)
        fusion = _module("nodes.bridge_bank").FusionLayer(module_plan(layer), base, dtype=layer.x.dtype)
        base.forward = _module("nodes.bridge_inject").FusedForward(base, fusion).run
        self.input, self.base = layer.x[None], base

    def __call__(self) -> Tensor:
        return self.base(self.input)[0]

    def in_plain_torch(self) -> Tensor:
        """As where Numba is not installed."""
        with _module("autolora_core.fusion.fast.choose").in_plain_torch():
            return self()


class _Linear(nn.Module):
    def __init__(self, layer: Layer):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


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
