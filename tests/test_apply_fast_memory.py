"""Proves that the factors of fused layers are stored once, stream as ComfyUI's own do, and cost little memory."""

from __future__ import annotations

import fast_layers as fl
import tiny_models
import torch
from apply_world import World
from comfy_local import pack_module
from reference_fusion import random_vectors

from autolora_core.fusion.fast.in_place import BUFFERS, tokens_at_once
from benchmarks.apply.memory import peak_bytes


def test_only_what_is_nobody_elses_is_written_over(comfy):
    layer, given = fl.layer(fl.three(), {"layer": fl.gate()}), fl.inputs()
    with torch.inference_mode():
        y0 = given.y0.clone()
        out = layer(given.x, given.y0)
        assert given.y0.equal(y0) and out.data_ptr() != given.y0.data_ptr()
        over = layer(given.x, y0, True)
        assert over.data_ptr() == y0.data_ptr() and over.equal(out)
        strided = given.y0.transpose(0, 1).contiguous().transpose(0, 1)
        assert layer(given.x, strided, True).equal(out) and strided.equal(given.y0)


def test_a_layer_that_another_pack_answers_for_keeps_its_output(comfy):
    FusedForward = pack_module("nodes.bridge_inject").FusedForward
    base = fl.base_layer()
    ours = FusedForward(base, fl.layer(fl.three(), None))
    base.forward = ours.run
    on_top = FusedForward(base, fl.layer(fl.three(), None))
    kept = torch.ones(1, 2, fl.OUT)
    base.forward = lambda x: kept
    foreign = FusedForward(base, fl.layer(fl.three(), {"layer": fl.gate()}))
    assert ours.fresh and on_top.fresh and not foreign.fresh
    with torch.inference_mode():
        assert not foreign.run(fl.random(1, 2, fl.N_IN, seed=1)).equal(kept) and kept.equal(torch.ones_like(kept))


def test_factors_are_stored_once_and_in_what_the_model_computes_in(comfy):
    ranks = [16, 16, 48]  # as filled up
    layer = fl.layer(fl.three(), {"layer": fl.gate()}, torch.bfloat16)
    halves = sum(ranks) * (fl.N_IN + fl.OUT) * 2
    numbers = 4 * (80 + 80 * 48 + 16 + 5 * fl.OUT)
    assert sum(p.nbytes for p in layer.parameters()) == halves + numbers
    weight = layer.factors.down.weight
    assert pack_module("nodes.bridge_packed").weight_of(layer.factors.down, weight) is weight  # nothing is cast


def test_memory_is_a_quarter_of_one_branch_output(comfy):
    """Counted by PyTorch's allocator, against a sum by hand, at SDXL's most common width, three LoRAs of rank 16."""
    tokens, width, columns, threads = 4096, 640, 48, torch.get_num_threads()
    factors = [{"down": fl.random(16, width, seed=n), "up": fl.random(width, 16, seed=n)} for n in range(3)]
    branches = [fl.branch(n, 16, **own) for n, own in enumerate(factors)]
    build = pack_module("autolora_core.fusion.plan").build_plan
    plan = build(branches, {"layer": width}, {"layer": fl.gate(width)}).modules["layer"]
    layer = pack_module("nodes.bridge_bank").FusionLayer(plan, fl.base_layer())
    x, y0 = (fl.random(1, tokens, width, seed=seed) for seed in (3, 4))
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            layer(x, y0, True)
            peak = peak_bytes(lambda: layer(x, y0, True))
        buffers = BUFFERS * tokens_at_once(width) * width
    finally:
        torch.set_num_threads(threads)
    # Hidden parts; two numbers a LoRA; what a piece is worked on in; the factors, a row a rank.
    by_hand = 4 * (tokens * (columns + 3 * 2) + buffers + columns * width)
    assert 4 * tokens * columns < peak < 1.05 * by_hand and peak < 0.25 * 4 * tokens * width
    assert 4 * buffers < 2 << 20  # however many tokens there are


def sampled_world(tmp_path, monkeypatch):
    """A tiny SD3, two LoRAs on all of its layers, and a gate for one of them."""
    state = tiny_models.sd3_state(64)
    world = World(tmp_path, state, tiny_models.load(state), monkeypatch)
    world.lora("a.safetensors", seed=1)
    world.lora("b.safetensors", seed=2, rank=3)
    world.gate({"joint_blocks.0.x_block.mlp.fc1": random_vectors(256, 1)})
    return world


def test_partial_loading_streams_the_same_factors(comfy, tmp_path, monkeypatch):
    import comfy.model_management as management

    ran = fl.count_calls(monkeypatch)
    world = sampled_world(tmp_path, monkeypatch)
    model = world.fused(("a.safetensors", 1.0), ("b.safetensors", 0.7), mode="gate")
    whole, calls = tiny_models.sample(model), len(ran)
    management.unload_all_models()
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    part = tiny_models.sample(model)
    assert model.get_additional_models()[0].model.model_lowvram and len(ran) == 2 * calls > 0
    assert (part - whole).abs().max() <= 1e-6
    management.unload_all_models()


def test_another_strength_measures_nothing_again(comfy, tmp_path, monkeypatch):
    packed, core = pack_module("nodes.bridge_packed"), pack_module("autolora_core.fusion.fast.packed")
    world, calls, real = sampled_world(tmp_path, monkeypatch), [], core.moments_of
    monkeypatch.setattr(packed, "_measured", type(packed._measured)())
    monkeypatch.setattr(core, "moments_of", lambda up: (calls.append(1), real(up))[1])

    def loud(strength):
        model = world.fused(("a.safetensors", strength), ("b.safetensors", 0.7), mode="gate")
        return model, len(calls)

    _, first = loud(1.0)
    again, second = loud(0.4)
    assert first == second == 2  # of one gated layer, two LoRAs
    world.lora("b.safetensors", seed=3, rank=3)
    changed, third = loud(0.4)
    assert third == 4
    fresh = tiny_models.sample(changed)
    packed._measured.clear()
    assert fresh.equal(tiny_models.sample(loud(0.4)[0])) and not fresh.equal(tiny_models.sample(again))


def test_what_is_kept_of_gated_spans_is_bounded(comfy, monkeypatch):
    packed = pack_module("nodes.bridge_packed")
    monkeypatch.setattr(packed, "_measured", type(packed._measured)())
    monkeypatch.setattr(packed, "MOST_KEPT", 3 * 4 * (16 + 16 * 16))
    build = pack_module("autolora_core.fusion.plan").build_plan
    plan = build([fl.branch(0, 4)], {"layer": fl.OUT}, {"layer": fl.gate()}).modules["layer"]
    for number in range(5):
        packed.Factors(plan, torch.float32, {0: ("file", number)})
    assert [key[-1][0] for key in packed._measured] == [("file", number) for number in (2, 3, 4)]
