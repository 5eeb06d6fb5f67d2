"""A tiny model, a loras folder and the Apply node around it, and a float64 look at what a layer really put out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from comfy_local import pack_module

from autolora_core.fusion.files import write_gate


class World:
    """``model`` is a MODEL made from ``state`` by ComfyUI; LoRA and gate files live under ``folder``."""

    def __init__(self, folder: Path, state: dict[str, torch.Tensor], model: Any, monkeypatch: pytest.MonkeyPatch):
        import folder_paths

        self.folder, self.state, self.model = folder, state, model
        self.loras, self.gates = folder / "loras", folder / "gates"
        self.gates.mkdir(parents=True)
        self.loras.mkdir(parents=True)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(self.loras)], {".safetensors"}))
        monkeypatch.setattr(pack_module("nodes.bridge_gates"), "gate_folders", lambda: [str(self.gates)])

    def lora(self, name: str, contains: str = "joint_blocks", seed: int = 0, rank: int = 4, scale: float = 0.15) -> str:
        layers = tiny_models.linear_layers(self.state, contains)
        tiny_models.save_lora(self.loras / name, layers, rank, seed, scale)
        return name

    def file(self, name: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in tensors.items()}, self.loras / name, metadata)
        return name

    def gate(self, vectors: dict[str, Any], name: str = "gate.safetensors", family: str = "sd3", **more: Any) -> str:
        write_gate(self.gates / name, vectors, family=family, **more)
        return name

    def apply(self, *stack: tuple[str, float], model: Any = None, **inputs: Any) -> tuple[Any, Any, str]:
        """The node itself; ``stack`` entries are (name, strength)."""
        node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
        entries = [(name, strength, strength) for name, strength in stack]
        return node.apply(model or self.model, lora_stack=entries, **inputs)

    def fused(self, *stack: tuple[str, float], **inputs: Any) -> Any:
        return self.apply(*stack, **inputs)[0]

    def stock(self, *stack: tuple[str, float], model: Any = None) -> Any:
        """ComfyUI's own LoraLoader, one after the other."""
        import comfy.sd
        import comfy.utils

        model = model or self.model
        for name, strength in stack:
            state = comfy.utils.load_torch_file(str(self.loras / name), safe_load=True)
            model, _ = comfy.sd.load_lora_for_models(model, None, state, strength, 0)
        return model


def sd3_fixtures(hidden: int) -> tuple[Any, Any]:
    """The fixtures ``state`` (weights of a tiny SD3, once a module) and ``world`` (around it, for one test)."""

    @pytest.fixture(scope="module")
    def state(comfy) -> dict[str, torch.Tensor]:
        return tiny_models.sd3_state(hidden)

    @pytest.fixture
    def world(comfy, tmp_path, monkeypatch, state) -> Iterator[World]:
        import comfy.model_management

        yield World(tmp_path, state, tiny_models.load(state), monkeypatch)
        comfy.model_management.unload_all_models()

    return state, world


def clip_fixtures() -> tuple[Any, Any]:
    """The fixtures ``errors`` (the pack's) and ``clip_l`` (a small CLIP of ComfyUI's, once a module)."""

    @pytest.fixture
    def errors(comfy):
        return pack_module("autolora_core.errors")

    @pytest.fixture(scope="module")
    def clip_l(comfy):
        """ComfyUI's own CLIP-L text encoder with one narrow layer and random weights."""
        import comfy.sd
        import comfy.sd1_clip

        small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
        target = SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer)
        clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": small, "dtype": torch.float32})
        clip.cond_stage_model.load_state_dict(tiny_models.random_state(clip.cond_stage_model))
        return clip

    return errors, clip_l


def two(world: World) -> tuple[tuple[str, float], tuple[str, float]]:
    """Two LoRAs on every layer, at strength 1."""
    return (world.lora("a.safetensors", seed=1), 1.0), (world.lora("b.safetensors", seed=2), 1.0)


def difference(one: torch.Tensor, two: torch.Tensor) -> float:
    """The largest one between two numbers at the same place."""
    return (one - two).abs().max().item()


def layer_calls(model: Any, names: list[str], **how: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer → (input, output) of its last call while ``model`` is sampled; outputs as the network received them."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = []
    for name in names:
        module = model.model.get_submodule("diffusion_model." + name)

        def remember(_, inputs, output, name=name):
            seen[name] = (inputs[0].detach().clone(), output.detach().clone())

        hooks.append(module.register_forward_hook(remember))
    try:
        tiny_models.sample(model, **how)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def untouched(model: Any) -> bool:
    """No layer of the network has a ``forward`` of its own any more."""
    return not any("forward" in module.__dict__ for module in model.model.modules())


def lora_delta(path: Path, key: str) -> torch.Tensor:
    """ΔW of one kohya-suffixed linear layer in float64, strength 1: alpha/rank · up · down."""
    from safetensors.torch import load_file

    state = load_file(path)
    up, down = state[f"{key}.lora_up.weight"].double(), state[f"{key}.lora_down.weight"].double()
    return float(state[f"{key}.alpha"]) / down.shape[0] * up.flatten(1) @ down.flatten(1)
