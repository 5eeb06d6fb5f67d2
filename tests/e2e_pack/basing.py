"""Helper nodes that give conditionings, bases stored in an unusual way, and little memory."""

from __future__ import annotations

import json

import comfy.model_management as management
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP

from .looking import Sees


class RandomConditioning:
    """What a text encoder of any width might say: ``tokens`` × ``width`` and a pooled vector, drawn from ``seed``."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "draw"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        sizes = {name: ("INT", {"default": 8}) for name in ("seed", "tokens", "width", "pooled")}
        return {"required": sizes}

    def draw(self, seed, tokens, width, pooled):
        generator = torch.Generator().manual_seed(seed)
        states = torch.randn(1, tokens, width, generator=generator)
        return ([[states, {"pooled_output": torch.randn(1, pooled, generator=generator)}]],)


class PackedOps(comfy.ops.manual_cast):
    """Layers that keep their weights packed and unpack them in every forward, as the GGUF loader's do."""

    class Linear(comfy.ops.manual_cast.Linear):
        """Symmetric 8-bit rows: ``weight`` is int8, and the float the row is multiplied by lies beside it."""

        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features, self.weight, self.bias = in_features, out_features, None, None

        def _load_from_state_dict(self, state_dict, prefix, *others):
            weight, bias = state_dict[f"{prefix}weight"].float(), state_dict.get(f"{prefix}bias")
            scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            self.weight = torch.nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
            self.register_buffer("row_scale", scale, persistent=False)
            self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

        def forward_comfy_cast_weights(self, input):
            weight = (self.weight.to(input.device).float() * self.row_scale.to(input.device)).to(input.dtype)
            bias = None if self.bias is None else self.bias.to(input.device, input.dtype)
            return torch.nn.functional.linear(input, weight, bias)


class LoadPacked:
    """A diffusion model whose linear layers are packed when loaded, with ``PackedOps``."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"unet_name": (folder_paths.get_filename_list("diffusion_models"),)}}

    def load(self, unet_name):
        state = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("diffusion_models", unet_name))
        return (comfy.sd.load_diffusion_model_state_dict(state, model_options={"custom_operations": PackedOps}),)


class LittleMemory:
    """Whoever samples this model finds next to no memory on the device: it is loaded in part and streamed.

    On a CPU ComfyUI never does so by itself; for the length of the sampling it is told that this is none.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "starve"
    CATEGORY = "tests"
    seen = {"streamed": 0, "patched": 0}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def starve(self, model):
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "little memory", self.in_little_memory)
        return (model,)

    @classmethod
    def in_little_memory(cls, executor, *args, **kwargs):
        management.unload_all_models()
        before = management.is_device_cpu, management.vram_state
        management.is_device_cpu, management.vram_state = lambda device: False, management.VRAMState.NO_VRAM
        try:
            out = executor(*args, **kwargs)
            for loaded in management.current_loaded_models:
                cls.seen["streamed"] += bool(loaded.model.model.model_lowvram)
                cls.seen["patched"] += loaded.model.model.lowvram_patch_counter
            return out
        finally:
            management.is_device_cpu, management.vram_state = before
            management.unload_all_models()


class UnloadAll:
    """Drops every model from memory in the middle of a graph and hands the latent on."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "unload"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "how": (["unload_all_models", "free_memory"],)}}

    def unload(self, samples, how):
        if how == "unload_all_models":
            management.unload_all_models()
        else:
            management.free_memory(1e30, management.get_torch_device())
        return (samples,)


class SeeMemory(Sees):
    """How many models were streamed, and how many weight patches were put off, since the last look."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"after": ("LATENT",)}}

    def see(self, after):
        shown = json.dumps(LittleMemory.seen)
        LittleMemory.seen.update(streamed=0, patched=0)
        return {"ui": {"text": [shown]}}


NODES = {one.__name__: one for one in (RandomConditioning, LoadPacked, LittleMemory, UnloadAll, SeeMemory)}
