"""What the tests of Save Merged LoRA share: the node, and what patches add to the weights."""

from __future__ import annotations

import torch
from apply_world import World
from comfy_local import pack_module
from safetensors import safe_open


def save(world: World, *stack: tuple[str, float], name: str = "made/mix", dtype: str = "float32", **inputs):
    """The node itself: (name in the loras list, report)."""
    node = pack_module("nodes.save_merged").AutoLoRASaveMerged()
    entries = [(one, strength, strength) for one, strength in stack]
    inputs = {"mode": "sum", "lora_stack": entries} | inputs
    return node.save(inputs.pop("model", world.model), name, dtype=dtype, **inputs)["result"]


def patched(model) -> dict[str, torch.Tensor]:
    """Parameter → what its patches add, float32, by ComfyUI's own arithmetic on the model's weights."""
    import comfy.lora
    import comfy.utils

    network = getattr(model, "cond_stage_model", None) or model.model
    patches = (model.patcher if hasattr(model, "cond_stage_model") else model).patches
    out = {}
    for key, own in patches.items():
        weight = comfy.utils.get_attr(network, key).detach().double()
        out[key] = comfy.lora.calculate_weight(own, weight.clone(), key, intermediate_dtype=torch.float64) - weight
    return out


def gap(made: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """‖made − wanted‖ / ‖wanted‖ over all parameters of either."""
    zero = torch.zeros(())
    off = sum(float((made.get(k, zero) - wanted.get(k, zero)).norm()) ** 2 for k in made.keys() | wanted.keys())
    return (off / sum(float(value.norm()) ** 2 for value in wanted.values())) ** 0.5


def tensors(world: World, name: str) -> dict[str, torch.Tensor]:
    with safe_open(world.loras / name, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def metadata(world: World, name: str) -> dict[str, str]:
    with safe_open(world.loras / name, "pt") as file:
        return file.metadata()


def listed() -> list[str]:
    import folder_paths

    return folder_paths.get_filename_list("loras")


def normal(*shape: int, seed: int = 0, scale: float = 0.2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def layer(prefix: str, out: int, n_in: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return {f"{prefix}.lora_down.weight": normal(3, n_in, seed=seed),
            f"{prefix}.lora_up.weight": normal(out, 3, seed=seed + 1)}  # fmt: skip
