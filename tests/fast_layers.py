"""A gated linear layer with LoRAs of several kinds, through the shipped ``FusionLayer``; needs ComfyUI."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from comfy_local import pack_module

from autolora_core.fusion.gate import VECTORS, GateVectors

N_IN, OUT, TOKENS = 48, 96, 37
RANKS = (3, 16, 40)
PARTS = ((0, 32), (32, 64), (64, 96))


def random(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def gate(channels: int = OUT, seed: int = 9, **more: Any) -> Any:
    """Of the pack's own class."""
    named = {name: random(channels, seed=seed + i) for i, name in enumerate(VECTORS)}
    found = GateVectors.from_named(named)
    return pack_module("autolora_core.fusion.gate").GateVectors(**{**vars(found), **more})


def branch(lora: int, rank: int, scale: float = 1.0, span=None, seed: int = 0, **fields: Any) -> Any:
    width = OUT if span is None else span[1] - span[0]
    if not fields:
        down = random(rank, N_IN, seed=100 + 10 * lora + seed, scale=N_IN**-0.5)
        fields = {"down": down, "up": random(width, rank, seed=200 + 10 * lora + seed, scale=rank**-0.5)}
    return pack_module("autolora_core.fusion.branches").Branch("layer", lora, scale=scale, slice=span, **fields)


def three() -> list[Any]:
    """Three LoRAs of different ranks and strengths."""
    return [branch(n, rank, 0.5 + 0.4 * n) for n, rank in enumerate(RANKS)]


def base_layer(dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    layer = torch.nn.Linear(N_IN, OUT, device="meta")
    weight, bias = random(OUT, N_IN, seed=1, scale=N_IN**-0.5), random(OUT, seed=2)
    layer.weight, layer.bias = (torch.nn.Parameter(v.to(dtype), requires_grad=False) for v in (weight, bias))
    return layer


def layer(branches: list[Any], gates: dict | None, dtype=None, moment: Any = None, **plan: Any) -> Any:
    """A ``FusionLayer``; ``gates`` as ``build_plan`` takes them."""
    plan_of = pack_module("autolora_core.fusion.plan").build_plan
    made = plan_of(branches, {"layer": OUT}, gates, **plan).modules["layer"]
    return pack_module("nodes.bridge_bank").FusionLayer(made, base_layer(), moment, dtype)


def count_calls(monkeypatch: Any) -> list[int]:
    """A list that gets an entry for every call of the fused form."""
    packed, calls = pack_module("nodes.bridge_packed"), []
    real = packed.add_gated
    monkeypatch.setattr(packed, "add_gated", lambda *args: (calls.append(1), real(*args))[1])
    return calls


def inputs(dtype: torch.dtype = torch.float32, tokens: int = TOKENS) -> SimpleNamespace:
    x = random(2, tokens, N_IN, seed=3).to(dtype)
    return SimpleNamespace(x=x, y0=base_layer(dtype)(x))
