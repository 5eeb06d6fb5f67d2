"""Proves in real ComfyUI that LoRAs are on when, where and in the blocks that LoRA Time and Place says."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from apply_world import difference, sd3_fixtures, two
from comfy_local import pack_module
from methods_world import FC1
from test_apply_tilted import calls_of

state, world = sd3_fixtures(128)
CONTEXT_FC1 = FC1.replace("x_block", "context_block")


def terms(lora: str = "*", schedule: str = "", blocks: str = "", mask=None, before=None):
    return pack_module("nodes.time_and_place").AutoLoRATimeAndPlace().say(lora, schedule, blocks, mask, before)[0]


def sampled(model) -> torch.Tensor:
    return tiny_models.sample(model, steps=3)


def test_strengths_zero_and_one_of_a_schedule_are_exact(world):
    a, b = two(world)
    for mode in ("sum", "energy", "ties"):
        plain = sampled(world.fused(a, b, mode=mode))
        assert torch.equal(sampled(world.fused(a, b, mode=mode, terms=terms(blocks="joint_blocks: 1"))), plain)
    summed = sampled(world.fused(a, b, mode="sum"))
    assert torch.equal(sampled(world.fused(a, b, mode="sum", terms=terms(schedule="0: 1"))), summed)
    assert torch.equal(sampled(world.fused(a, b, mode="sum", terms=terms("b", "0: 0"))), sampled(world.fused(a)))
    assert torch.equal(sampled(world.fused(a, b, mode="sum", terms=terms(schedule="0: 0"))), sampled(world.model))


def test_a_schedule_is_followed_step_by_step(world):
    a, b = two(world)
    model, _, report = world.apply(a, b, mode="sum", terms=terms("b", "0: 1, 0.5: 0.5, 0.5: 0"))
    assert "strength along the sampling: 0: 1, 0.5: 0.5, 0.5: 0" in report
    calls = calls_of(model, 4)
    alone, whole = world.state[FC1 + ".weight"].double(), world.state[FC1 + ".bias"].double()
    deltas = [tiny_delta(world, name) for name, _ in (a, b)]
    for (x, out), loud in zip(calls, (1, 0.75, 0, 0), strict=True):
        wanted = x @ (alone + deltas[0] + loud * deltas[1]).T + whole
        assert difference(out, wanted) < 1e-4


def tiny_delta(world, name: str) -> torch.Tensor:
    from methods_world import delta

    return delta(world, name, FC1)


def test_factors_of_blocks_scale_strengths(world):
    a, b = two(world)
    halved = sampled(world.fused(a, b, mode="sum", terms=terms("a", blocks="joint_blocks.0-1: 0.5")))
    wanted = sampled(world.fused((a[0], 0.5), b, mode="sum"))
    others = sampled(world.fused(a, b, mode="sum"))
    assert difference(halved, wanted) < 1e-5 < difference(halved, others)
    gone = sampled(world.fused(a, mode="sum", terms=terms(blocks="*: 0")))
    assert torch.equal(gone, sampled(world.model))
    with pytest.raises(Exception, match=r"single_blocks.*joint_blocks\.0-1"):
        world.fused(a, terms=terms(blocks="single_blocks: 0"))
    with pytest.raises(Exception, match="no LoRA that is applied"):
        world.fused(a, terms=terms("castle"))
    assert torch.equal(sampled(world.fused(a, (b[0], 0), terms=terms("b", "0-0.5"))), sampled(world.fused(a)))


@pytest.mark.parametrize("mode", ["sum", "energy", "composite"])
def test_masks_of_ones_and_zeros_are_exact(world, mode):
    a, b = two(world)
    ones, zeros = torch.ones(1, 64, 64), torch.zeros(64, 64)
    plain = sampled(world.fused(a, b, mode=mode))
    assert torch.equal(sampled(world.fused(a, b, mode=mode, terms=terms(mask=ones))), plain)
    assert torch.equal(sampled(world.fused(a, b, mode=mode, terms=terms(mask=zeros))), sampled(world.model))


def test_two_loras_in_two_halves_of_one_forward(world):
    a, b = two(world)
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    both = terms("b", mask=1 - left, before=terms("a", mask=left))
    model, _, report = world.apply(a, b, mode="sum", terms=both)
    assert report.count("in 50% of the picture") == 2
    calls = calls_of(model, 2)
    assert len(calls) == len(calls_of(world.model, 2))  # no pass more than without
    weight, bias = world.state[FC1 + ".weight"].double(), world.state[FC1 + ".bias"].double()
    side = torch.tensor([True, False]).repeat(2)  # 4 × 4 latent pixels are 2 × 2 tokens
    for x, out in calls:
        for tokens, name in ((side, a[0]), (~side, b[0])):
            wanted = x[:, tokens] @ (weight + tiny_delta(world, name)).T + bias
            assert difference(out[:, tokens], wanted) < 1e-4
    context = [c for c in context_calls(model)]
    from methods_world import delta

    summed = sum(delta(world, name, CONTEXT_FC1) for name, _ in (a, b))
    weight, bias = world.state[CONTEXT_FC1 + ".weight"].double(), world.state[CONTEXT_FC1 + ".bias"].double()
    for x, out in context:
        assert difference(out, x @ (weight + 0.5 * summed).T + bias) < 1e-4


def context_calls(model):
    calls, module = [], model.model.get_submodule("diffusion_model." + CONTEXT_FC1)
    handle = module.register_forward_hook(lambda _, args, out: calls.append((args[0].double(), out.double())))
    try:
        tiny_models.sample(model, steps=1)
    finally:
        handle.remove()
    return calls


@pytest.mark.parametrize("mode", ["ties", "np"])
def test_merged_modes_leave_passing_loras_beside_them(world, mode):
    a, b = two(world)
    c = (world.lora("c.safetensors", seed=3), 1.0)
    model, _, report = world.apply(a, b, c, mode=mode, terms=terms("c", "0: 0"))
    assert f"kept beside mode {mode}, which knows neither time nor place" in report and f"mode: {mode}" in report
    merged = sampled(world.fused(a, b, mode=mode))
    assert difference(sampled(model), merged) < 5e-6  # 3 steps: products of other widths round otherwise
    assert difference(sampled(world.fused(a, b, c, mode=mode, terms=terms("c", "0: 1"))), merged) > 1e-3


def test_a_unet_with_convolutions(comfy, tmp_path, monkeypatch):
    from apply_world import World

    world = World(tmp_path, tiny_models.sd15_state(), tiny_models.load(tiny_models.sd15_state()), monkeypatch)
    a = (world.lora("a.safetensors", contains="input_blocks", seed=1, scale=0.02), 1.0)
    plain = sampled(world.fused(a, mode="sum"))
    assert torch.equal(sampled(world.fused(a, mode="sum", terms=terms(mask=torch.ones(64, 64)))), plain)
    half = torch.zeros(64, 64)
    half[:, :32] = 1
    conv, kept = "input_blocks.1.0.in_layers.2", []
    masked = world.fused(a, mode="sum", terms=terms(mask=half))
    module = masked.model.get_submodule("diffusion_model." + conv)
    handle = module.register_forward_hook(lambda _, args, out: kept.append((args[0], out)))
    sampled(masked)
    handle.remove()
    for x, out in kept:
        added = out - torch.nn.functional.conv2d(x, module.weight, module.bias, padding=1)
        assert added[..., 4:].abs().max() < 1e-5 < 1e-3 < added[..., :4].abs().max()


def test_a_conditioning_with_an_area_of_its_own_gets_the_mean(world):
    """The model is run on a part of the picture, and nobody tells which: the mask must not be laid over that part."""
    import comfy.sample

    a, _ = two(world)
    left = torch.zeros(64, 64)
    left[:, :32] = 1
    noise = torch.randn(1, 16, 4, 8, generator=torch.Generator().manual_seed(0))
    words = tiny_models.conditioning(11)
    outs = []
    for mask, area in ((left, True), (torch.full((64, 64), 0.5), True), (left, False), (1 - left, False)):
        cond = [[words[0][0], {**words[0][1], **({"area": (4, 4, 0, 4)} if area else {})}]]
        model = world.fused(a, mode="sum", terms=terms(mask=mask))
        outs.append(
            comfy.sample.sample(model, noise, 2, 1.0, "euler", "simple", cond, cond, torch.zeros_like(noise), seed=0,
                                disable_pbar=True)
        )  # fmt: skip
    assert torch.equal(outs[0], outs[1])
    assert difference(outs[2], outs[3]) > 1e-3


def test_a_model_whose_layout_nobody_knows_takes_no_mask(world, monkeypatch):
    a, _ = two(world)
    monkeypatch.setattr(pack_module("nodes.bridge_place"), "PLACED", ("flux",))
    with pytest.raises(Exception, match=r"mask cannot be placed on a model of family sd3.*flux"):
        world.fused(a, terms=terms(mask=torch.ones(8, 8)))
    assert world.fused(a, terms=terms(schedule="0-0.5")) is not world.model


def test_a_batch_of_masks_is_refused():
    with pytest.raises(Exception, match="batch of 2"):
        terms(mask=torch.ones(2, 8, 8))


def test_a_lora_with_the_norms_of_a_few_step_one_is_named_in_the_report(world):
    """By its norms alone on the demo base; elsewhere it is a hint."""
    from safetensors.torch import load_file

    path = world.loras / world.lora("quiet.safetensors", seed=4)
    tensors = load_file(path)
    loud = {key: value * (4.0 if ".x_block." in key and "lora_up" in key else 1.0) for key, value in tensors.items()}
    report = world.apply((world.file("loud.safetensors", loud), 1.0))[2]
    assert "as few-step LoRAs do" in report and "few-step" not in world.apply(("quiet.safetensors", 1.0))[2]
