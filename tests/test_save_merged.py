"""Proves that a merged LoRA, read by stock ComfyUI, changes the weights as the Apply node changes the model.

The patched weights of the whole network are compared, and one sampled latent for each static mode.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import tiny_models
import torch
from apply_world import World, clip_fixtures, difference, lora_delta, sd3_fixtures, two
from comfy_local import pack_module
from merged_world import gap, layer, listed, metadata, normal, patched, save, tensors
from methods_world import FC1, methods_fixtures, picked, selection
from reference_fusion import random_vectors

ROUNDING = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
STATIC = ("sum", "ties", "dare", "magnitude", "np", "ssr")
QKV = "joint_blocks.0.context_block.attn.qkv"
state, world = sd3_fixtures(64)
clip, routers_elsewhere = methods_fixtures()
errors, clip_l = clip_fixtures()


@pytest.mark.parametrize("dtype", ROUNDING)
def test_sum_is_the_chain_of_stock_loaders(world, dtype):
    (a, _), (b, _) = two(world)
    name, report = save(world, (a, 0.8), (b, -0.5), dtype=dtype)
    assert name == os.path.join("made", "mix.safetensors") and name in listed()
    made, wanted = patched(world.stock((name, 1.0))), patched(world.stock((a, 0.8), (b, -0.5)))
    assert gap(made, wanted) <= ROUNDING[dtype]
    assert f"{dtype}" in report and "of low rank (8)" in report and "mode: sum" in report
    kinds = {key.rsplit(".lora_")[-1].rsplit(".", 1)[-1] for key in tensors(world, name)}
    assert kinds <= {"weight", "alpha", "diff"}


@pytest.mark.parametrize("mode", STATIC)
def test_every_static_mode_samples_as_the_apply_node_does(world, clip, mode):
    stack = two(world)
    fused, _, told = world.apply(*stack, mode=mode, clip=clip)
    name, report = save(world, *stack, mode=mode, clip=clip)
    made = world.stock((name, 1.0))
    one, other, base = (tiny_models.sample(model) for model in (made, fused, world.model))
    assert difference(one, other) <= 1e-4 and difference(one, base) > 0.01
    assert f"mode: {mode}" in report and f"mode: {mode}" in told
    if mode in ("ties", "dare", "magnitude"):
        assert gap(patched(made), patched(fused)) <= 1e-6
        assert "stored densely" in report and "low rank" not in report


@pytest.mark.parametrize("mode", ["auto", "energy", "ties", "klora", "switch", "composite", "ssr"])
def test_one_lora_in_every_mode_is_that_lora(world, clip, mode):
    (a, _), (b, _) = two(world)
    world.gate({FC1: random_vectors(256, 0)})
    name, _ = save(world, (a, 0.7), (b, 0.0), mode=mode, clip=clip)
    assert gap(patched(world.stock((name, 1.0))), patched(world.stock((a, 0.7)))) <= 1e-6


def flat(channels: int, seed: int = 0, **more):
    zero = torch.zeros(channels)
    return replace(random_vectors(channels, seed), weight_lora=zero, weight_cross=zero, weight_base=None, **more)


@pytest.mark.parametrize("mode", ["auto", "gate"])
def test_a_flat_gate_is_saved_exactly(world, mode):
    (a, _), (b, _) = two(world)
    roles = normal(2, 2, 2, seed=5)
    roles[..., 1] = 0
    gate = world.gate({FC1: flat(256, roles=roles, power=0.5), f"{QKV}[0:64]": flat(64, 1)})
    chosen = selection(picked(a, "subject"), {**picked(b, "style"), "score": 0.4, "parts": {"text": 0.4}})
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    fused, _, _ = node.apply(world.model, mode, selection=chosen)
    name, report = save(world, mode=mode, selection=chosen, lora_stack=None)
    made = world.stock((name, 1.0))
    one, other = tiny_models.sample(made), tiny_models.sample(fused)
    assert difference(one, other) <= 1e-4 < 0.01 < difference(one, tiny_models.sample(world.stock((a, 1.0), (b, 0.4))))
    assert "gate on 2 of" in report and "a factor for each channel" in report and "hardly asks" in report
    found = metadata(world, name)
    assert json.loads(found["autolora.merged"])["gate"] == gate


@pytest.mark.parametrize("mode", ["energy", "klora", "switch", "composite"])
def test_moving_modes_are_refused(world, errors, mode):
    with pytest.raises(errors.SelectionError, match=f"mode '{mode}' cannot be saved"):
        save(world, *two(world), mode=mode)
    assert not (world.loras / "made").exists()


@pytest.mark.parametrize("mode", ["auto", "gate"])
@pytest.mark.parametrize("kind", ["looks", "moves"])
def test_other_gates_are_refused(world, errors, mode, kind):
    vectors = random_vectors(256, 0) if kind == "looks" else flat(256, roles=normal(2, 2, 2))
    gate = world.gate({FC1: vectors})
    with pytest.raises(errors.GateError, match=f"at {FC1} it {kind}.*{gate}"):
        save(world, *two(world), mode=mode)
    assert not (world.loras / "made").exists()


def test_few_step_loras_are_part_of_the_sum(world):
    stack = (*two(world), (world.lora("sd3_turbo_4steps.safetensors", seed=5), 1.0))
    world.gate({FC1: flat(256)})
    for mode in ("gate", "ties", "np"):
        name, report = save(world, *stack, mode=mode, name=mode)
        fused = world.fused(*stack, mode=mode)
        assert difference(tiny_models.sample(world.stock((name, 1.0))), tiny_models.sample(fused)) <= 1e-4
        assert "kept additive" in report


def test_slices_of_a_fused_layer(world):
    """q and v of diffusers files, k from a fused one: one low-rank pair, zero on the rows nobody has."""
    key = "transformer.transformer_blocks.0.attn.to_{}"
    split = {f"{key.format(part)}.lora_{side}.weight": normal(*shape, seed=number)
             for number, (part, side, shape) in enumerate(
                 (p, s, (2, 64) if s == "A" else (64, 2)) for p in "qv" for s in "AB")}  # fmt: skip
    a = world.file("split.safetensors", split)
    b = world.file("fused.safetensors", layer("diffusion_model.joint_blocks.0.x_block.attn.qkv", 192, 64))
    name, _ = save(world, (a, 0.9), (b, 0.4))
    own = tensors(world, name)
    assert {key.rsplit(".", 2)[-1] for key in own} == {"weight", "alpha"}
    assert own["diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_up.weight"].shape == (192, 7)
    assert gap(patched(world.stock((name, 1.0))), patched(world.stock((a, 0.9), (b, 0.4)))) <= 1e-6


def test_lokr_loha_and_differences(world):
    key = f"diffusion_model.{FC1}"
    lokr = {f"{key}.lokr_w1": normal(8, 4), f"{key}.lokr_w2": normal(32, 16, seed=1)}
    names = [f"{key}.hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")]
    loha = dict(zip(names, (normal(256, 2), normal(2, 64), normal(256, 2), normal(2, 64)), strict=True))
    other = layer(key, 256, 64) | {f"{key}.diff_b": normal(256)}
    norm = {"diffusion_model.joint_blocks.0.x_block.attn.ln_q.diff": normal(64, seed=4)}
    files = {"lokr": lokr, "loha": loha, "diff": {f"{key}.diff": normal(256, 64, seed=3)}, "other": other | norm}
    names = [world.file(f"{name}.safetensors", file) for name, file in files.items()]
    alone, report = save(world, (names[0], 0.6), name="alone")
    assert set(tensors(world, alone)) == {f"{key}.lokr_w1", f"{key}.lokr_w2"} and f"as LoKr: {FC1}" in report
    assert gap(patched(world.stock((alone, 1.0))), patched(world.stock((names[0], 0.6)))) <= 1e-6
    stack = [(name, 0.3 * number - 1) for number, name in enumerate(names)]
    name, report = save(world, *stack)
    made = patched(world.stock((name, 1.0)))
    assert gap(made, patched(world.stock(*stack))) <= 1e-6
    assert f"{key}.bias" in made and "diffusion_model.joint_blocks.0.x_block.attn.ln_q.weight" in made
    assert f"3 weights stored densely: {FC1}" in report


def test_convolutions_of_a_unet(comfy, tmp_path, monkeypatch):
    """LoRA, Tucker LoCon, conv LoHa and LoKr at once, against the stock loader."""
    unet = tiny_models.sd15_state()
    world = World(tmp_path, unet, tiny_models.load(unet), monkeypatch)
    a = world.lora("a.safetensors", "input_blocks.1.", rank=2)
    conv, skip = "lora_unet_input_blocks_1_0_in_layers_2", "lora_unet_output_blocks_0_0_skip_connection"
    tucker = {"lora_down.weight": (3, 320, 1, 1), "lora_up.weight": (320, 3, 1, 1), "lora_mid.weight": (3, 3, 3, 3)}
    kron = {"lokr_w1": (8, 16), "lokr_w2_a": (40, 3), "lokr_w2_b": (3, 40)}
    odd = {f"{conv}.{part}": normal(*shape, seed=n) for n, (part, shape) in enumerate(tucker.items())}
    odd |= {f"{skip}.{part}": normal(*shape, seed=n) for n, (part, shape) in enumerate(kron.items())}
    b = world.file("b.safetensors", odd)
    name, report = save(world, (a, 1.0), (b, 0.5))
    own = tensors(world, name)
    down = own["diffusion_model.input_blocks.1.0.in_layers.2.lora_down.weight"]
    assert down.shape == (5, 320, 3, 3)
    assert gap(patched(world.stock((name, 1.0))), patched(world.stock((a, 1.0), (b, 0.5)))) <= 1e-6
    assert "1 layer as LoKr: output_blocks.0.0.skip_connection" in report


def test_the_text_encoders_half(world, clip_l):
    import comfy.sd
    import comfy.utils

    te = "lora_te_text_model_encoder_layers_0_"
    bias = {f"{te}mlp_fc1.diff_b": normal(128)}
    a = world.file("a.safetensors", layer(f"diffusion_model.{FC1}", 256, 64) | layer(f"{te}mlp_fc1", 128, 64) | bias)
    b = world.file("b.safetensors", layer(f"{te}mlp_fc1", 128, 64, 7) | layer(f"{te}self_attn_q_proj", 64, 64, 9))
    name, report = save(world, lora_stack=[(a, 1.0, 0.6), (b, 1.0, -0.4)], clip=clip_l)
    wanted = clip_l
    for file, strength in ((a, 0.6), (b, -0.4)):
        stored = comfy.utils.load_torch_file(str(world.loras / file), safe_load=True)
        _, wanted = comfy.sd.load_lora_for_models(None, wanted, stored, 0, strength)
    stored = comfy.utils.load_torch_file(str(world.loras / name), safe_load=True)
    model, made = comfy.sd.load_lora_for_models(world.model, clip_l, stored, 1, 1)
    assert gap(patched(made), patched(wanted)) <= 1e-6
    assert difference(made.encode("an otter"), wanted.encode("an otter")) <= 1e-5
    assert gap(patched(model), patched(world.stock((a, 1.0)))) <= 1e-6
    assert stored["text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight"].shape[1] == 6
    without, report = save(world, (a, 1.0))
    assert not any(key.startswith("text_encoders") for key in tensors(world, without))
    assert "its text half is left out, no CLIP is connected: clip_l 1 layer" in report


def test_the_update_in_numbers(world):
    """One layer, without ComfyUI's help: Σ strength·alpha/rank·up·down."""
    (a, _), (b, _) = two(world)
    own = tensors(world, save(world, (a, 0.8), (b, 0.5))[0])
    key = f"diffusion_model.{FC1}"
    made = own[f"{key}.lora_up.weight"].double() @ own[f"{key}.lora_down.weight"].double()
    wanted = 0.8 * lora_delta(world.loras / a, key) + 0.5 * lora_delta(world.loras / b, key)
    assert difference(made, wanted) <= 1e-6 and float(own[f"{key}.alpha"]) == 8


def test_strengths_by_block_are_saved_and_time_and_place_refused(world):
    a, b = two(world)
    say = pack_module("nodes.time_and_place").AutoLoRATimeAndPlace().say
    name, _ = save(world, a, b, terms=say("a", blocks="*.attn*: 0, *.mlp*: 0.5")[0])
    made, whole, alone = (patched(world.stock(*stack)) for stack in (((name, 1.0),), (a, b), (b,)))
    for key, wanted in whole.items():
        share = 0.0 if ".attn" in key else 0.5 if ".mlp" in key else 1.0
        assert gap({key: made[key]}, {key: alone[key] + share * (wanted - alone[key])}) <= 1e-5, key
    for terms in (say("a", "0-0.5")[0], say("a", mask=torch.ones(8, 8))[0]):
        with pytest.raises(Exception, match=r"a\.safetensors is on for a while or in a place only"):
            save(world, a, b, terms=terms)
