"""Proves that a gate which knows roles, time and who is asked for does in real ComfyUI what its formula says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_models
import torch
from apply_world import World, difference, sd3_fixtures
from comfy_local import pack_module
from methods_world import EXACT, FC1, delta, picked, selection, two
from reference_fusion import gated_sum_ref, random_vectors

state, world = sd3_fixtures(64)


def tilted(world: World):
    roles = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(5)) * 0.5
    channels = world.state[FC1 + ".weight"].shape[0]
    vectors = replace(random_vectors(channels, 0), roles=roles, power=0.5)
    world.gate({FC1: vectors}, "tilted.safetensors")
    return vectors


def expected(world: World, vectors, x, loras, count: float, u: float) -> torch.Tensor:
    """``loras``: (name, role, how far it is asked for)."""
    weight, bias = world.state[FC1 + ".weight"].double(), world.state[FC1 + ".bias"].double()
    y0 = x @ weight.T + bias
    out = y0
    for name, role, asked in loras:
        table = vectors.roles[("subject", "style").index(role)].double()
        shift, gain = table[:, 0] + (2 * u - 1) * table[:, 1]
        moved = replace(vectors, bias=vectors.bias + float(shift))
        passed = gated_sum_ref(y0, [asked * (x @ delta(world, name, FC1).T)], moved) - y0
        out = out + torch.exp(gain) * (2 / count) ** vectors.power * passed
    return out


def calls_of(model, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    calls = []
    module = model.model.get_submodule("diffusion_model." + FC1)
    handle = module.register_forward_hook(lambda _, args, out: calls.append((args[0].double(), out.double())))
    try:
        tiny_models.sample(model, steps=steps)
    finally:
        handle.remove()
    return calls


def rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])[:3]


@pytest.mark.parametrize("asked", [1.0, 0.4])
def test_roles_time_and_number_in_a_sampled_model(world, asked):
    (a, _), (b, _) = two(world)
    vectors = tilted(world)
    one, other = picked(a, "subject"), {**picked(b, "style"), "score": asked, "parts": {"text": asked}}
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    model, _, report = node.apply(world.model, "gate", "tilted.safetensors", selection=selection(one, other))
    assert ("hardly asks" in report) == (asked < 1)
    calls = calls_of(model, 4)
    assert len(calls) == 4
    for step, (x, out) in enumerate(calls):
        loras = [(a, "subject", 1.0), (b, "style", asked)]
        wanted = expected(world, vectors, rows(x), loras, 1 + asked, step / 4)
        assert difference(rows(out), wanted) <= EXACT, step
    clone = calls_of(world.model, 2)
    assert difference(rows(clone[0][1]), rows(calls[0][1])) > 1e-3


def test_the_mode_of_a_pick_that_nobody_asks_for_is_one_lora(world):
    """A pick whose words are wholly elsewhere is left out: the other one meets nobody."""
    (a, _), (b, _) = two(world)
    vectors = tilted(world)
    chosen = selection(picked(a, "subject"), {**picked(b, "style"), "score": 0.0, "parts": {"text": 0.0}})
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    model, _, _ = node.apply(world.model, "gate", "tilted.safetensors", selection=chosen)
    x, out = calls_of(model, 2)[1]
    assert difference(rows(out), expected(world, vectors, rows(x), [(a, "subject", 1.0)], 1, 0.5)) <= EXACT


@pytest.mark.parametrize("mode", ["auto", "sum"])
def test_without_a_gate_only_auto_asks_who_is_wanted(world, mode):
    (a, _), (b, _) = two(world)
    chosen = selection(picked(a, "subject"), {**picked(b, "style"), "score": 0.4, "parts": {"text": 0.4}})
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    model, _, report = node.apply(world.model, mode, selection=chosen)
    assert "mode: sum" in report and ("hardly asks" in report) == (mode == "auto")
    x, out = calls_of(model, 2)[0]
    weight, bias = world.state[FC1 + ".weight"].double(), world.state[FC1 + ".bias"].double()
    quiet = 0.4 if mode == "auto" else 1.0
    update = delta(world, a, FC1) + quiet * delta(world, b, FC1)
    assert difference(rows(out), rows(x) @ (weight + update).T + bias) <= EXACT


def test_auto_takes_the_one_that_is_left_as_the_stock_loader_does(world):
    (a, _), (b, _) = two(world)
    tilted(world)
    chosen = selection(picked(a, "subject"), {**picked(b, "style"), "score": 0.0, "parts": {"text": 0.0}})
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    model, _, report = node.apply(world.model, "auto", "auto", selection=chosen)
    assert "mode: sum (1 LoRA to fuse" in report
    assert difference(tiny_models.sample(model), tiny_models.sample(world.stock((a, 1.0)))) <= EXACT
