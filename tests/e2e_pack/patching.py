"""Helper nodes that patch a model the ways other packs do: attention, whole objects, wrappers, torch.compile."""

from __future__ import annotations

import json
import types

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP

from .looking import Sees


class ImageAttention:
    """As IP-Adapter: every cross-attention of a UNet looks at four tokens more, by keys and values of its own.

    ``way``: the whole attention replaced, keys and values extended, or its output added to.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        ways = ["attn2 replaced", "attn2 extended", "attn1 changed", "attn2 output"]
        return {"required": {"model": ("MODEL",), "way": (ways,), "weight": ("FLOAT", {"default": 0.8})}}

    def patch(self, model, way, weight):
        model = model.clone()
        if way == "attn2 replaced":
            places = [("input", 1), ("middle", 0), ("output", 0), ("output", 1)]
            for block, number in places:
                model.set_model_attn2_replace(lambda q, k, v, extra: _beside(q, k, v, extra, weight), block, number)
        elif way == "attn2 extended":
            model.set_model_attn2_patch(lambda q, k, v, extra: (q, _longer(k, 1, weight), _longer(v, 2, weight)))
        elif way == "attn1 changed":
            model.set_model_attn1_patch(lambda q, k, v, extra: (q * (1 + 0.1 * weight), k, v * (1 - 0.3 * weight)))
        else:
            model.set_model_attn2_output_patch(lambda out, extra: out * (1 + 0.3 * weight))
        return (model,)


def _tokens(like, seed, weight):
    drawn = torch.randn(1, 4, like.shape[-1], generator=torch.Generator().manual_seed(seed))
    return drawn.expand(len(like), -1, -1).to(like) * weight


def _longer(states, seed, weight):
    return torch.cat([states, _tokens(states, seed, weight)], 1)


def _beside(q, k, v, extra, weight):
    heads = extra["n_heads"]
    own = optimized_attention(q, k, v, heads)
    return own + optimized_attention(q, _tokens(q, 1, 1.0), _tokens(q, 2, 1.0), heads) * weight


class LayerReplaced:
    """An object patch on ``layer``: its ``forward``, or the whole layer by a module that holds it."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        ways = (["forward", "module"],)
        return {"required": {"model": ("MODEL",), "layer": ("STRING", {"default": ""}), "way": ways}}

    def patch(self, model, layer, way):
        model, name = model.clone(), f"diffusion_model.{layer}"
        old = model.get_model_object(name)
        if way == "module":
            model.add_object_patch(name, Louder(old))
        else:
            model.add_object_patch(f"{name}.forward", types.MethodType(_louder_forward, old))
        return (model,)


def _louder_forward(self, x):
    return type(self).forward(self, x) * 1.25


class Louder(torch.nn.Module):
    """A layer's output × 1.25. Passes on what is asked of the layer."""

    def __init__(self, held):
        super().__init__()
        self.held = held
        for name in ("in_features", "out_features"):
            setattr(self, name, getattr(held, name))

    @property
    def weight(self):
        return self.held.weight

    def forward(self, x):
        return self.held(x) * 1.25


class Wrapped:
    """The model's own calls wrapped: by the old function of ``model_options`` or by the newer wrappers."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        ways = ["unet function", "apply_model", "diffusion_model", "cfg function", "post cfg"]
        return {"required": {"model": ("MODEL",), "way": (ways,)}}

    def patch(self, model, way):
        model = model.clone()
        if way == "unet function":
            model.set_model_unet_function_wrapper(
                lambda call, given: call(given["input"], given["timestep"], **given["c"]) * 0.9
            )
        elif way == "cfg function":
            model.set_model_sampler_cfg_function(
                lambda given: given["uncond"] + (given["cond"] - given["uncond"]) * given["cond_scale"] * 0.5
            )
        elif way == "post cfg":
            model.set_model_sampler_post_cfg_function(lambda given: given["denoised"] * 0.9)
        else:
            kind = WrappersMP.APPLY_MODEL if way == "apply_model" else WrappersMP.DIFFUSION_MODEL
            model.add_wrapper_with_key(kind, "e2e", lambda executor, *args, **kwargs: executor(*args, **kwargs) * 0.9)
        return (model,)


class CompileEager:
    """ComfyUI's own way to compile a model, with the backend that its node does not offer: capture and guards alone."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model):
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        model = model.clone()
        set_torch_compile_wrapper(model=model, backend="eager")
        return (model,)


class SeeCompiles(Sees):
    """Graphs that torch has compiled in this process so far; ``forget`` throws them away afterwards, as torch compiles
    one function eight times at most."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"after": ("LATENT",), "forget": ("BOOLEAN", {"default": False})}}

    def see(self, after, forget):
        from torch._dynamo.utils import counters

        shown = {"graphs": counters["stats"]["unique_graphs"]}
        if forget:
            torch.compiler.reset()
        return {"ui": {"text": [json.dumps(shown)]}}


NODES = {one.__name__: one for one in (ImageAttention, LayerReplaced, Wrapped, CompileEager, SeeCompiles)}
