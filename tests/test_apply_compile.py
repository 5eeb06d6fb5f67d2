"""Proves that ComfyUI's torch.compile node and fused LoRAs work together, whichever comes first.

The eager backend checks what matters here, dynamo's capture and guards, without a compiler.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_models
import torch
from apply_world import World, difference
from comfy_local import pack_module
from reference_fusion import random_vectors

EXACT = 1e-4


@pytest.fixture
def world(comfy, tmp_path, monkeypatch):
    import comfy.model_management

    state = tiny_models.sd3_state(64)
    world = World(tmp_path, state, tiny_models.load(state), monkeypatch)
    world.lora("a.safetensors", seed=1)
    world.lora("b.safetensors", "x_block", seed=2, rank=2)
    layer = "joint_blocks.0.x_block."
    world.gate({layer + "attn.qkv": random_vectors(192, 0), layer + "mlp.fc1": random_vectors(256, 1)})
    yield world
    comfy.model_management.unload_all_models()
    torch.compiler.reset()


def compiled(model):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = model.clone()
    set_torch_compile_wrapper(model=model, backend="eager")
    return model


@pytest.mark.slow
def test_fused_after_compiling_and_back(world):
    """The graph of the base was compiled first; fusing later must not be ignored, nor stay."""
    model = compiled(world.model)
    base = tiny_models.sample(model)
    stack = (("a.safetensors", 1.0), ("b.safetensors", 0.7))
    eager = tiny_models.sample(world.fused(*stack, mode="gate"))
    fused = world.fused(*stack, mode="gate", model=model)
    assert difference(tiny_models.sample(fused), eager) <= EXACT
    assert difference(base, eager) > 0.02
    assert difference(tiny_models.sample(model), base) <= EXACT
    assert difference(tiny_models.sample(fused), eager) <= EXACT


@pytest.mark.slow
def test_compiled_after_fusing(world):
    fused = world.fused(("a.safetensors", 1.0), ("b.safetensors", 0.7), mode="gate")
    eager = tiny_models.sample(fused)
    model = compiled(fused)
    assert difference(tiny_models.sample(model), eager) <= EXACT
    assert difference(tiny_models.sample(compiled(world.model)), tiny_models.sample(world.model)) <= EXACT
    assert difference(tiny_models.sample(model), eager) <= EXACT


def test_the_fused_layer_is_one_graph(world):
    """No graph break: nothing in the fused path depends on a tensor's value."""
    fused = world.fused(("a.safetensors", 1.0), ("b.safetensors", 0.7), mode="gate")
    bank = fused.get_additional_models()[0].model
    for name, layer in zip(bank.names, bank.layers, strict=True):
        base = world.model.model.diffusion_model.get_submodule(name)
        x = torch.randn(2, 3, base.in_features)
        broken = torch._dynamo.explain(layer)(x, base(x)).graph_break_count
        assert broken == 0, name


@pytest.mark.parametrize("mode", ["sum", "gate", "energy"])
def test_neither_a_strength_nor_an_injection_is_another_graph(world, mode):
    """ComfyUI ejects and injects at every sampling, and another strength is another run of the node."""
    from torch._dynamo.testing import CompileCounter

    module = world.model.model.get_submodule("diffusion_model.joint_blocks.0.x_block.mlp.fc1")
    counter, x, outs = CompileCounter(), torch.randn(1, 3, module.in_features), []
    compiled_layer = torch.compile(module, backend=counter)
    with torch.inference_mode():
        base = compiled_layer(x)
        for strength in (1.0, 1.0, 0.5, 0.2, -0.4):
            fused = world.fused(("a.safetensors", strength), ("b.safetensors", 0.7 * strength), mode=mode)
            fused.inject_model()
            outs.append(compiled_layer(x))
            assert difference(outs[-1], module(x)) <= EXACT
            fused.eject_model()
            assert compiled_layer(x).equal(base)
    assert counter.frame_count == 2
    assert outs[0].equal(outs[1]) and difference(outs[0], outs[2]) > 1e-2


@pytest.mark.parametrize(("mode", "graphs"), [("switch", 2), ("composite", 2), ("gate", 1)])
def test_a_layer_has_few_graphs_however_many_steps(world, mode, graphs):
    """One a LoRA that is alone on, one for a gate that moves with the sampling: beyond eight torch gives up on
    compiling, so steps must not make any."""
    from torch._dynamo.testing import CompileCounter

    roles = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(5)) * 0.5
    layer_gate = {"joint_blocks.0.x_block.mlp.fc1": replace(random_vectors(256, 1), roles=roles)}
    world.gate(layer_gate, "timed.safetensors")
    gate = "timed.safetensors" if mode == "gate" else "auto"
    fused = world.fused(("a.safetensors", 1.0), ("b.safetensors", 0.7), mode=mode, gate=gate)
    bank, counter = fused.get_additional_models()[0].model, CompileCounter()
    name = "joint_blocks.0.x_block.mlp.fc1"  # both LoRAs are on it
    layer, base = bank.layers[bank.names.index(name)], world.model.model.diffusion_model.get_submodule(name)
    compiled_layer = torch.compile(layer, backend=counter)
    (wrapper,) = [one for keyed in fused.wrappers.values() for those in keyed.values() for one in those]
    x = torch.randn(1, 3, base.in_features)
    gaps, outs = [], []

    def executor(*_):
        outs.append(compiled_layer(x, base(x)))
        gaps.append(difference(outs[-1], layer(x, base(x))))
        return outs[-1]

    schedule = torch.linspace(1, 0, 13)
    with torch.inference_mode():
        for sigma in schedule[:-1]:
            wrapper(executor, x, sigma[None], transformer_options={"sample_sigmas": schedule})
    assert counter.frame_count == graphs and max(gaps) <= EXACT and difference(outs[0], outs[-1]) > 1e-3


def test_schedule_and_mask_make_no_graph_a_step(world):
    from torch._dynamo.testing import CompileCounter

    core = pack_module("autolora_core.fusion.terms")
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    term = core.Term("a.safetensors", core.Schedule.parse("0: 1, 0.5: 0.5, 0.5: 0"), None, mask)
    fused = world.fused(("a.safetensors", 1.0), ("b.safetensors", 0.7), mode="sum", terms=(term,))
    bank, counter = fused.get_additional_models()[0].model, CompileCounter()
    name = "joint_blocks.0.x_block.mlp.fc1"
    layer, base = bank.layers[bank.names.index(name)], world.model.model.diffusion_model.get_submodule(name)
    compiled_layer = torch.compile(layer, backend=counter)
    (wrapper,) = [one for those in fused.wrappers["apply_model"].values() for one in those]
    tokens, gaps, outs = torch.randn(1, 4, base.in_features), [], []

    def executor(*_):
        outs.append(compiled_layer(tokens, base(tokens)))
        gaps.append(difference(outs[-1], layer(tokens, base(tokens))))
        return outs[-1]

    levels = torch.linspace(1, 0, 13)
    with torch.inference_mode():
        for sigma in levels[:-1]:
            wrapper(executor, torch.zeros(1, 16, 4, 4), sigma[None], transformer_options={"sample_sigmas": levels})
    assert counter.frame_count == 1 and max(gaps) <= EXACT
    assert difference(outs[0][:, ::2], outs[5][:, ::2]) > 1e-3 and difference(outs[0][:, 1::2], outs[5][:, 1::2]) == 0
