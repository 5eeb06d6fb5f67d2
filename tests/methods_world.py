"""What the tests of the training-free modes share: a CLIP, LoRAs with names that say something, a look at one layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from apply_world import World, layer_calls, lora_delta
from comfy_local import pack_module
from word_clip import WordClip

EXACT = 1e-4
FC1, QKV = "joint_blocks.0.x_block.mlp.fc1", "joint_blocks.0.context_block.attn.qkv"


class LoraClip(WordClip):
    """One that LoRAs may ask for layers, of which it has none that they know."""

    @property
    def cond_stage_model(self) -> torch.nn.Module:
        return self.net


def methods_fixtures() -> tuple[Any, Any]:
    """The fixtures ``clip`` and, for every test of the file, routers in a folder of their own and none remembered."""

    @pytest.fixture
    def clip(comfy) -> LoraClip:
        return LoraClip()

    @pytest.fixture(autouse=True)
    def routers_elsewhere(comfy, tmp_path, monkeypatch):
        monkeypatch.setattr(pack_module("nodes.bridge_paths"), "user_directory", lambda: str(tmp_path / "user"))
        pack_module("nodes.bridge_ssr")._memory.clear()

    return clip, routers_elsewhere


def two(world: World) -> tuple[tuple[str, float], tuple[str, float]]:
    """Two LoRAs on every layer, at strength 1, each with a name that says something."""
    return (world.lora("wet_otter.safetensors", seed=1), 1.0), (world.lora("rough_paper.safetensors", seed=2), 1.0)


def delta(world: World, name: str, layer: str) -> torch.Tensor:
    return lora_delta(world.loras / name, f"diffusion_model.{layer}")


def update(world: World, model, layer: str, **how) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, what the fused model adds to the layer's own output), float64; hooks see what the network gets."""
    x, out = layer_calls(model, [layer], **how)[layer]
    weight, bias = world.state[layer + ".weight"].double(), world.state[layer + ".bias"].double()
    return x.double(), out.double() - x.double() @ weight.T - bias


def picked(name: str, role: str, triggers: tuple[str, ...] = ()) -> dict:
    return {"name": name, "strength": 1.0, "role": role, "triggers": list(triggers)}


def selection(*picks: dict, prompt: str = "") -> dict:
    return {"format": "autolora-selection/1", "prompt": prompt, "family": "sd3", "picks": list(picks)}
