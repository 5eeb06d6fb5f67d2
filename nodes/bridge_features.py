"""Every question of the kind "does this ComfyUI have X", asked of the thing itself and never of a version number.

Each function says which end of the range (0.3.75 to 0.33) answers how, and why we have to know. They look when they
are called: ComfyUI swaps classes while it starts, and packs replace functions. ``docs/versions.md`` lists what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor


def patcher_class() -> type:
    """The class a model of ours is wrapped in.

    Newer ComfyUI has ``CoreModelPatcher`` and points it to the patcher of dynamic VRAM on NVIDIA cards: factors wrapped
    in the plain one would be held outside its accounts. 0.3.75 has one class only.
    """
    return getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ComfyUI counts an error as memory that ran out, which it handles itself and we must not explain away.

    Newer ComfyUI also means the accelerator errors of newer torch and asks ``is_oom``; 0.3.75 has one exception class.
    """
    ask = getattr(comfy.model_management, "is_oom", None)
    return bool(ask(error)) if ask is not None else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def bypass_loader() -> Callable[..., tuple[Any, Any]] | None:
    """ComfyUI's own loader that injects LoRAs beside the layers, as we do; None at 0.3.75, which has none."""
    return getattr(comfy.sd, "load_bypass_lora_for_models", None)


def unpatched(patcher: Any, name: str, value: Tensor) -> Tensor:
    """A weight as the checkpoint has it. ``value``: the one that the model holds now, patched when it is loaded.

    At both ends a tuple with a ``weight`` is kept for putting it back; patchers of other packs keep a bare tensor, or
    nothing. Dynamic patchers leave the model's weights alone.
    """
    saved = getattr(patcher, "backup", {}).get(name)
    return value if saved is None else getattr(saved, "weight", saved)


def computes_in_bfloat16(device: Any) -> bool:
    """Whether a module with bfloat16 weights may be put on ``device``.

    Both ends say that every device casts it, and both are asked apart about Macs: before macOS 14 Metal has no such
    type, and DirectML never had it. On a CPU it is slow and exact, which is all we need.
    """
    management = comfy.model_management
    if not management.supports_cast(device, torch.bfloat16):
        return False
    return not management.is_device_mps(device) or bool(management.should_use_bf16(device))


def compute_dtype(patcher: Any) -> torch.dtype | None:
    """What a model's layers compute in; None where its patcher does not say.

    At both ends a model that casts its weights names the dtype as ``manual_cast_dtype``, and else computes in that of
    its weights; a wish of the user's lies on the patcher under the same name until the model is loaded.
    """
    try:
        return patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()
    except AttributeError:
        return None


def injections_of(patcher: Any) -> Mapping[str, Any]:
    """What stands beside the layers of a model, by key; patchers of other packs may not know injections."""
    return getattr(patcher, "injections", {})


def true_shape(value: Any) -> tuple[int, ...]:
    """The sizes of a weight, not of its storage: tensors of GGUF packs keep bytes and tell their real sizes apart."""
    return tuple(getattr(value, "tensor_shape", None) or value.shape)


def weight_shape(module: Any) -> tuple[int, ...] | None:
    """The sizes of a layer's weight, by the layer's own word first; None for a module without one.

    The Linear of mixed-precision checkpoints is no ``nn.Linear``, and its packed weight may have any shape: at 0.3.75
    it is a plain tensor there, in newer ComfyUI a class of its own.
    """
    weight = getattr(module, "weight", None)
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return (module.out_features, module.in_features)
    return None if getattr(weight, "shape", None) is None else true_shape(weight)


def padded_to(network: Any) -> int:
    """Text and picture tokens of Z-Image's network are each filled up to a multiple of this; 1 for all others.

    0.3.75 is the first ComfyUI with it: the same class served Lumina 2 before, and still does, without.
    """
    return getattr(network, "pad_tokens_multiple", None) or 1


def has_reference_rows(network: Any) -> bool:
    """Whether Wan puts the tokens of a reference picture in front of the picture's own; variants without have no such
    layer."""
    return getattr(network, "ref_conv", None) is not None
