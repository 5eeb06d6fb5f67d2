"""What is handed to ComfyUI's weight patches is checked first: ComfyUI logs what does not fit, and goes on without."""

from __future__ import annotations

import pytest
import torch
from apply_world import clip_fixtures, difference, sd3_fixtures
from comfy_local import pack_module
from tiny_models import sample

state, world = sd3_fixtures(64)
errors, _ = clip_fixtures()
LAYER = "joint_blocks.0.x_block.mlp.fc1"  # 256 × 64
STEM = f"diffusion_model.{LAYER}"


def factors(out: int = 256, n_in: int = 64) -> dict[str, torch.Tensor]:
    return {f"{STEM}.lora_down.weight": torch.randn(4, n_in), f"{STEM}.lora_up.weight": torch.randn(out, 4)}


WRONG_SIZES = {
    "DoRA of another layer": {**factors(64, 256), f"{STEM}.dora_scale": torch.ones(64, 1)},
    "a magnitude of another layer": {**factors(), f"{STEM}.dora_scale": torch.ones(192, 1)},
    "diff": {f"{STEM}.diff": torch.randn(128, 64)},
    "set": {f"{STEM}.set_weight": torch.randn(128, 64)},
    "OFT": {f"{STEM}.oft_blocks": torch.randn(16, 8, 8), f"{STEM}.alpha": torch.tensor(0.0)},
    "BOFT": {f"{STEM}.oft_blocks": torch.randn(2, 16, 4, 4), f"{STEM}.alpha": torch.tensor(0.0)},
    "GLoRA": {
        f"{STEM}.{name}.weight": torch.randn(*shape)
        for name, shape in {"a1": (64, 4), "a2": (4, 64), "b1": (128, 4), "b2": (4, 64)}.items()
    },
    "DoRA on LoHa": {
        **{f"{STEM}.hada_w{n}_{x}": torch.randn(*s) for n in (1, 2) for x, s in {"a": (64, 2), "b": (2, 256)}.items()},
        f"{STEM}.dora_scale": torch.ones(64, 1),
    },
    "DoRA on LoKr": {
        f"{STEM}.lokr_w1": torch.randn(4, 4), f"{STEM}.lokr_w2": torch.randn(32, 16),
        f"{STEM}.dora_scale": torch.ones(128, 1),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_SIZES)
def test_a_size_that_comfyui_would_log_and_skip_is_an_error(world, errors, kind):
    name = world.file("wrong.safetensors", WRONG_SIZES[kind])
    with pytest.raises(errors.FamilyError, match=r"wrong\.safetensors does not fit this model.*256"):
        world.apply((name, 1.0), mode="sum")


def test_a_boft_without_constraint_is_one_of_constraint_nought(world):
    blocks = torch.randn(2, 64, 4, 4) * 0.2
    bare = world.file("bare.safetensors", {f"{STEM}.oft_blocks": blocks})
    told = world.file("told.safetensors", {f"{STEM}.oft_blocks": blocks, f"{STEM}.alpha": torch.tensor(0.0)})
    ours, stock, base = (sample(m) for m in (world.fused((bare, 1.0)), world.stock((told, 1.0)), world.model))
    assert torch.equal(ours, stock) and difference(ours, base) > 1e-3


def test_a_magnitude_stored_flat_is_one_an_output(world):
    magnitude = 1 + torch.rand(256)
    flat = world.file("flat.safetensors", {**factors(), f"{STEM}.dora_scale": magnitude})
    upright = world.file("upright.safetensors", {**_read(world, flat), f"{STEM}.dora_scale": magnitude[:, None]})
    assert torch.equal(sample(world.fused((flat, 1.0))), sample(world.stock((upright, 1.0))))


def test_the_scale_of_a_peft_configuration_is_what_is_applied(world):
    config = '{"transformer.lora_alpha": 6, "transformer.use_rslora": true}'
    named = world.file("peft.safetensors", factors(), {"lora_adapter_metadata": config})
    alpha = {f"{STEM}.alpha": torch.tensor(6 * 4**0.5)}
    told = world.file("told.safetensors", {**_read(world, named), **alpha})
    fused, _, report = world.apply((named, 1.0), mode="sum")
    ours, stock = sample(fused), sample(world.stock((told, 1.0)))
    assert difference(ours, stock) <= 1e-3 * difference(stock, sample(world.model))
    assert "sets scale 3" in report and "stock loader would use 1" in report


def test_the_bias_of_pefts_up_factor_is_scaled_with_it(world):
    """PEFT: s·(B·A·x + b); ComfyUI adds a stored ``diff_b`` as it stands."""
    bias = torch.randn(256)
    factor = {f"{STEM}.alpha": torch.tensor(8.0)}
    peft = world.file("peft.safetensors", {**factors(), **factor, f"{STEM}.lora_B.bias": bias})
    told = world.file("told.safetensors", {**_read(world, peft), f"{STEM}.diff_b": bias * 8 / 4})
    ours, stock = sample(world.fused((peft, 1.0))), sample(world.stock((told, 1.0)))
    assert difference(ours, stock) <= 1e-3 * difference(stock, sample(world.model))


@pytest.mark.parametrize("suffix, kind", [("ia3_l", "IA³"), ("vera_lambda_b", "VeRA"), ("oft_R.weight", "OFT as PEFT")])
def test_what_nobody_can_apply_is_refused_by_what_it_is(world, errors, suffix, kind):
    name = world.file("odd.safetensors", {f"{STEM}.{suffix}": torch.ones(256, 1)})
    with pytest.raises(errors.UnsupportedAdapterError, match=rf"odd\.safetensors is made of {kind}"):
        world.apply((name, 1.0), mode="sum")


def test_a_newer_adapter_is_left_as_it_is(comfy):
    from comfy.weight_adapter import LoRAAdapter

    patch = LoRAAdapter(set(), (torch.ones(1),) * 7)
    assert pack_module("nodes.bridge_stock").ready(patch, (2, 2), "layer", "file") is patch


def _read(world, name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(world.loras / name)


def test_a_bias_for_a_layer_without_one_is_left_out_and_said(world):
    """ComfyUI maps it without looking; SD3's query and key norms have no bias."""
    norm = "diffusion_model.joint_blocks.0.x_block.attn.ln_q"
    tensors = {**factors(), f"{norm}.w_norm": torch.randn(64) * 0.1, f"{norm}.b_norm": torch.randn(64)}
    name = world.file("bias.safetensors", tensors)
    model, _, report = world.apply((name, 1.0), mode="sum")
    assert "not in this model: joint_blocks.0.x_block.attn.ln_q.bias" in report
    assert difference(sample(model), sample(world.stock((name, 1.0)))) < 1e-4


def test_a_bias_of_q_alone_is_left_out_and_said(world):
    stem = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{stem}.lora_down.weight": torch.randn(4, 64), f"{stem}.lora_up.weight": torch.randn(64, 4)}
    name = world.file("part.safetensors", {**tensors, f"{stem}.diff_b": torch.randn(64)})
    _, _, report = world.apply((name, 1.0), mode="sum")
    assert "not in this model: the bias of q, k or v alone" in report
