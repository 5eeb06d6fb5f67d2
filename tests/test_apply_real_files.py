"""Proves on real LoRA files that every update becomes a branch of a full-size SD1.5 with ComfyUI's own ΔW.

The model lives on the meta device: real names and shapes, no weights. Where there are no real files beside the
checkout there is nothing to run.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from comfy_local import pack_module
from conftest import real_loras

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "adm_in_channels": None,
    "legacy": False,
    "use_checkpoint": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}


@pytest.fixture(scope="module")
def model(comfy):
    import comfy.supported_models

    config = comfy.supported_models.SD15(dict(UNET))
    config.set_inference_dtype(torch.float16, None)
    with torch.device("meta"):
        return SimpleNamespace(model=config.get_model({}, "", device="meta"))


@pytest.mark.slow
@pytest.mark.parametrize("path", real_loras(), ids=lambda path: path.stem)
def test_every_update_becomes_comfyuis_own_delta(model, path):
    import comfy.lora

    loras, requests = pack_module("nodes.bridge_loras"), pack_module("autolora_core.fusion.requests")
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    lora = loras.load(str(path), requests.Request(path.name, 0.7, 0.7))
    half = loras.model_half(lora, model, key_map, 0)
    total = sum(entry.half == "model" for entry in lora.file.modules.values())
    assert (len(half.matched), len(half.branches) + len(half.zero)) == (total, total)
    assert not half.missing and not half.forwarded and len(half.zero) <= total / 2
    patches = {
        (target if isinstance(target, str) else target[0]): patch
        for target, patch in loras._patches(lora, key_map).items()
    }
    for branch in half.branches[:: max(1, total // 8)]:
        shape = model.model.get_submodule("diffusion_model." + branch.module).weight.shape
        key = f"diffusion_model.{branch.module}.weight"
        stock = comfy.lora.calculate_weight([(0.7, patches[key], 1.0, None, None)], torch.zeros(shape), key)
        ours = branch.delta().reshape(shape)
        assert (ours - stock).abs().max() <= 1e-5 * stock.abs().max(), branch.module
        assert stock.abs().max() > 0
