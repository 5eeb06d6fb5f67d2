"""Proves that fused LoRAs live safely in real ComfyUI: nothing leaks, everything stacks, memory may move at any time.

Every picture here is two steps of ComfyUI's own sampler on a tiny SD3 with random weights.
"""

from __future__ import annotations

import gc

import pytest
import tiny_models
import torch
from apply_world import World, difference, layer_calls, lora_delta, untouched
from comfy_local import pack_module
from reference_fusion import gated_sum_ref, random_vectors

EXACT = 1e-4  # sums of float32 products in another order; activations here are of order 1


@pytest.fixture(scope="module")
def state(comfy):
    return tiny_models.sd3_state(128)


@pytest.fixture
def world(comfy, tmp_path, monkeypatch, state):
    import comfy.model_management

    world = World(tmp_path, state, tiny_models.load(state), monkeypatch)
    world.a, world.b = world.lora("a.safetensors", seed=1), world.lora("b.safetensors", "x_block", seed=2, rank=2)
    names = [name.removeprefix("diffusion_model.") for name in tiny_models.linear_layers(state, "joint_blocks")]
    world.names = names
    world.gate({name: random_vectors(state[name + ".weight"].shape[0], n) for n, name in enumerate(names)})
    yield world
    comfy.model_management.unload_all_models()


def test_base_is_bit_identical_after_fused(world):
    before = tiny_models.sample(world.model)
    fused = tiny_models.sample(world.fused((world.a, 1.0), (world.b, 0.7)))
    assert difference(before, fused) > 0.05
    assert tiny_models.sample(world.model).equal(before)
    assert untouched(world.model)


@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
def test_one_lora_in_sum_mode_is_the_stock_loader(world, strength):
    fused = tiny_models.sample(world.fused((world.a, strength), mode="sum"))
    assert difference(fused, tiny_models.sample(world.stock((world.a, strength)))) <= EXACT
    assert difference(fused, tiny_models.sample(world.model)) > 0.05


def test_sum_of_two_is_the_stock_chain(world):
    stack = ((world.a, 0.8), (world.b, 1.2))
    fused = tiny_models.sample(world.fused(*stack, mode="sum"))
    assert difference(fused, tiny_models.sample(world.stock(*stack))) <= EXACT


def test_every_gated_layer_puts_out_what_the_formula_says(world):
    model, _, report = world.apply((world.a, 0.9), (world.b, 1.3), mode="gate")
    assert f"gate on {len(world.names)} of {len(world.names)}" in report
    for name, (x, out) in layer_calls(model, world.names).items():
        x = x.reshape(-1, x.shape[-1])[:3].double()
        weight, bias = world.state[name + ".weight"].double(), world.state[name + ".bias"].double()
        branches = [0.9 * x @ lora_delta(world.loras / world.a, "diffusion_model." + name).T]
        if "x_block" in name:
            branches.append(1.3 * x @ lora_delta(world.loras / world.b, "diffusion_model." + name).T)
        vectors = random_vectors(weight.shape[0], world.names.index(name))
        expected = gated_sum_ref(x @ weight.T + bias, branches, vectors)
        assert difference(out.reshape(-1, out.shape[-1])[:3].double(), expected) <= EXACT, name


def test_identity_gate_is_the_sum(world):
    from autolora_core.fusion.gate import GateVectors

    channels = {name: world.state[name + ".weight"].shape[0] for name in world.names}
    world.gate({name: GateVectors.identity(d) for name, d in channels.items()}, "identity.safetensors")
    gated = world.fused((world.a, 1.0), (world.b, 0.5), mode="gate", gate="identity.safetensors")
    summed = world.fused((world.a, 1.0), (world.b, 0.5), mode="sum")
    assert difference(tiny_models.sample(gated), tiny_models.sample(summed)) <= EXACT


def test_two_fused_nodes_in_both_orders(world):
    one_two = world.fused((world.b, 0.7), mode="sum", model=world.fused((world.a, 1.0), mode="sum"))
    two_one = world.fused((world.a, 1.0), mode="sum", model=world.fused((world.b, 0.7), mode="sum"))
    together = tiny_models.sample(world.fused((world.a, 1.0), (world.b, 0.7), mode="sum"))
    for model in (one_two, two_one, one_two):
        assert difference(tiny_models.sample(model), together) <= EXACT
    base = tiny_models.sample(world.model)
    assert untouched(world.model)
    assert difference(base, together) > 0.05


def test_fused_and_stock_in_both_orders_are_bit_equal(world):
    first = world.stock((world.b, 0.7), model=world.fused((world.a, 1.0), mode="gate"))
    second = world.fused((world.a, 1.0), mode="gate", model=world.stock((world.b, 0.7)))
    one, two = tiny_models.sample(first), tiny_models.sample(second)
    assert one.equal(two)
    assert tiny_models.sample(first).equal(one)
    assert difference(one, tiny_models.sample(world.fused((world.a, 1.0), mode="gate"))) > 0.01


def test_deleting_a_clone_that_was_never_loaded(world):
    model = world.fused((world.a, 1.0), (world.b, 0.7))
    before = tiny_models.sample(model)
    clone = model.clone()
    clone.detach()  # what the clone's finaliser does
    del clone
    gc.collect()
    assert tiny_models.sample(model).equal(before)


def test_a_clone_that_is_deleted_in_the_middle_of_sampling(world):
    """A clone of a loaded model believes that it is injected, and ejects when Python gets round to deleting it."""
    model = world.fused((world.a, 1.0), (world.b, 0.7))
    before = tiny_models.sample(model)
    clones = [model.clone(), model.clone()]
    assert clones[0].is_injected

    def drop(step, *_):
        clones.pop().detach(unpatch_all=False)  # what its finaliser does

    assert tiny_models.sample(model, callback=drop).equal(before) and not clones
    assert tiny_models.sample(world.model).equal(tiny_models.sample(world.model)) and untouched(world.model)


def test_clones_share_the_factors(world):
    model = world.fused((world.a, 1.0))
    clone = model.clone()
    (one,), (two,) = model.get_additional_models(), clone.get_additional_models()
    assert one is not two and one.model is two.model
    assert one.model_size() == sum(p.numel() * p.element_size() for p in one.model.parameters()) > 0
    assert tiny_models.sample(clone).equal(tiny_models.sample(model))


@pytest.mark.parametrize("how", ["unload_all_models", "free_memory", "detach"])
def test_unloaded_and_run_again(world, how):
    import comfy.model_management as management

    model = world.fused((world.a, 1.0), (world.b, 0.7))
    before = tiny_models.sample(model)
    if how == "unload_all_models":
        management.unload_all_models()
    elif how == "free_memory":
        management.free_memory(1e30, model.load_device)
    else:
        model.detach()
    assert untouched(world.model)
    assert tiny_models.sample(model).equal(before)


def test_partial_load_makes_no_difference(world, monkeypatch):
    import comfy.model_management as management

    model = world.fused((world.a, 1.0), (world.b, 0.7), mode="gate", model=world.stock((world.b, 0.3)))
    full = tiny_models.sample(model)
    management.unload_all_models()
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    partial = tiny_models.sample(model)
    assert model.model.model_lowvram and model.model.lowvram_patch_counter > 0
    assert model.get_additional_models()[0].model.model_lowvram
    assert difference(partial, full) <= 1e-6


def test_batch_of_two_is_two_singles(world):
    model = world.fused((world.a, 1.0), (world.b, 0.7), mode="gate")
    both = tiny_models.sample(model, batch=2)
    singles = torch.cat([tiny_models.sample(model, seed=0), tiny_models.sample(model, seed=1)])
    assert difference(both, singles) <= EXACT


def test_cfg_1_runs_the_prompt_alone(world):
    model = world.fused((world.a, 1.0), (world.b, 0.7), mode="gate")
    calls = layer_calls(model, ["joint_blocks.0.x_block.attn.qkv"], cfg=1.0)
    assert calls["joint_blocks.0.x_block.attn.qkv"][0].shape[0] == 1
    guided = layer_calls(model, ["joint_blocks.0.x_block.attn.qkv"], cfg=3.0)
    assert guided["joint_blocks.0.x_block.attn.qkv"][0].shape[0] == 2
    assert difference(tiny_models.sample(model, cfg=1.0), tiny_models.sample(world.model, cfg=1.0)) > 0.02


def test_nothing_to_apply_returns_the_model_itself(world):
    for stack, inputs in (((), {}), (((world.a, 0.0),), {}), (((world.a, 1.0),), {"strength": 0.0})):
        model, clip, report = world.apply(*stack, **inputs)
        assert model is world.model and clip is None
        assert "mode: sum" in report
    assert world.fused((world.a, 0.5), (world.a, -0.5)) is world.model


def test_a_layer_without_gate_is_summed(world):
    world.gate({"joint_blocks.0.x_block.mlp.fc1": random_vectors(512, 1)}, "small.safetensors")
    model, _, report = world.apply((world.a, 1.0), mode="gate", gate="small.safetensors")
    assert f"gate on 1 of {len(world.names)} layers; the other {len(world.names) - 1} are summed" in report
    name = "joint_blocks.1.x_block.mlp.fc2"
    x, out = layer_calls(model, [name])[name]
    weight, bias = world.state[name + ".weight"].double(), world.state[name + ".bias"].double()
    expected = x.double() @ (weight + lora_delta(world.loras / world.a, "diffusion_model." + name)).T + bias
    assert difference(out.double(), expected) <= EXACT


def test_bypass_loader_before_and_after(world):
    """Newer ComfyUI has a loader that injects too; where it is absent there is nothing that could collide."""
    import comfy.utils

    bypass = pack_module("nodes.bridge_features").bypass_loader()
    if bypass is None:
        assert not hasattr(comfy.weight_adapter, "BypassInjectionManager")
        return

    def stock_bypass(model):
        return bypass(model, None, comfy.utils.load_torch_file(str(world.loras / world.b), safe_load=True), 0.7, 0)[0]

    before = world.fused((world.a, 1.0), mode="sum", model=stock_bypass(world.model))
    after = stock_bypass(world.fused((world.a, 1.0), mode="sum"))
    together = tiny_models.sample(world.stock((world.a, 1.0), (world.b, 0.7)))
    for model in (before, after, before, after):
        assert difference(tiny_models.sample(model), together) <= EXACT
    base = tiny_models.sample(world.model)
    assert difference(base, together) > 0.05
    assert tiny_models.sample(world.model).equal(base)
