"""A helper node that counts what is alive in the server's process: patchers, networks, tensors, objects of a pack."""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

from .looking import Sees


class SeeObjects(Sees):
    """Live objects after a garbage collection: of the pack in ``custom_nodes/<pack>`` (``kinds``: by class), model
    patchers, networks, tensors with the bytes they hold, and Python's own blocks of memory.

    ``nonce`` makes it look again; ``model``, ``clip`` and ``vae`` only keep loaders in the server's cache.
    """

    @classmethod
    def INPUT_TYPES(cls):
        strings = {name: ("STRING", {"default": "autolora" if name == "pack" else ""}) for name in ("nonce", "pack")}
        kept = {"model": ("MODEL",), "clip": ("CLIP",), "vae": ("VAE",)}
        return {"required": strings, "optional": kept}

    def see(self, nonce, pack, model=None, clip=None, vae=None):
        gc.collect()
        counts = dict.fromkeys(("pack", "patchers", "networks", "tensors"), 0)
        storages, kinds = {}, Counter()
        for one in gc.get_objects():
            kind = type(one)  # isinstance() would ask proxies what they stand for
            if _is_of(kind, pack):
                kinds[kind.__qualname__] += 1
            counts["patchers"] += issubclass(kind, ModelPatcher)
            counts["networks"] += issubclass(kind, BaseModel)
            if issubclass(kind, torch.Tensor):
                counts["tensors"] += 1
                _add_storage(storages, one)
        counts["pack"], counts["kinds"] = kinds.total(), kinds
        counts["tensor_bytes"] = sum(storages.values())
        counts["blocks"] = sys.getallocatedblocks() - len(storages)
        return {"ui": {"text": [json.dumps(counts)]}}


def _is_of(kind, pack):
    """ComfyUI names a pack's modules after its folder's whole path, with dots as ``_x_``."""
    return f"custom_nodes/{pack}" in str(kind.__module__).replace("\\", "/")


def _add_storage(storages, tensor):
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # a tensor without memory of its own
        return
    storages[storage.data_ptr()] = storage.nbytes()


NODES = {"SeeObjects": SeeObjects}
