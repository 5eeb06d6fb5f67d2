"""Helper nodes that show what is inside a latent, a picture or a model, to the last bit."""

from __future__ import annotations

import base64
import hashlib
import json

import numpy as np
import torch


class Sees:
    """An output node that shows what its ``see`` returns."""

    RETURN_TYPES = ()
    FUNCTION = "see"
    CATEGORY = "tests"
    OUTPUT_NODE = True


class SeeNumbers(Sees):
    """A latent or a picture as text: shape and little-endian float32 values, base64."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": {"samples": ("LATENT",), "image": ("IMAGE",)}}

    def see(self, samples=None, image=None):
        values = (image if samples is None else samples["samples"]).detach().float().cpu().numpy().astype("<f4")
        text = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
        return {"ui": {"text": [json.dumps({"shape": list(values.shape), "values": text})]}}


class FreshLatent:
    """The latent it was given. Another ``nonce`` makes everything behind it run again."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "fresh"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "nonce": ("STRING", {"default": ""})}}

    def fresh(self, samples, nonce):
        return (samples,)


class PrintModel:
    """The state of a base model after ``after`` was sampled: a hash of every parameter and buffer as they lie in
    memory, and how many layers are fused. (A wrapper that is switched off may stay, where another pack's lay on it.)"""

    RETURN_TYPES = ()
    FUNCTION = "show"
    CATEGORY = "tests"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "after": ("LATENT",)}}

    def show(self, model, after):
        network, total = model.model, hashlib.sha256()
        for name, value in sorted([*network.named_parameters(), *network.named_buffers()]):
            total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            total.update(_bytes(value))
        owners = [getattr(one.__dict__.get("forward"), "__self__", None) for one in network.modules()]
        fused = sum(type(one).__name__ == "FusedForward" and one.live for one in owners)
        return {"ui": {"text": [json.dumps({"weights": total.hexdigest(), "fused": fused})]}}


def _bytes(value):
    """What is stored, whatever class of tensor stores it."""
    parts = [value]
    if hasattr(value, "__tensor_flatten__"):  # a wrapper around other tensors, as of quantised checkpoints
        parts = [getattr(value, name) for name in value.__tensor_flatten__()[0]]
    elif hasattr(value, "_qdata"):
        parts = [value._qdata]
    parts = [part.detach().as_subclass(torch.Tensor).cpu().contiguous().reshape(-1) for part in parts]
    return b"".join(part.view(torch.uint8).numpy().tobytes() for part in parts)


NODES = {"SeeNumbers": SeeNumbers, "FreshLatent": FreshLatent, "PrintModel": PrintModel}
