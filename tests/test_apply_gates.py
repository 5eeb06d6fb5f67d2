"""Proves which gate serves a model: the right family, the right layers, the right base; and that a damaged file is
never passed over without a word."""

from __future__ import annotations

import json
import logging

import pytest
import tiny_models
import torch
from apply_world import difference, sd3_fixtures, two
from comfy_local import pack_module
from reference_fusion import random_vectors

from autolora_core.fusion.base_print import base_fingerprint

FC1 = "joint_blocks.0.x_block.mlp.fc1"
OTHER_BASE = "warning: gate.safetensors was trained on another base model of the same shape"
state, world = sd3_fixtures(64)


@pytest.fixture
def errors(comfy):
    return pack_module("autolora_core.errors")


def node() -> type:
    return pack_module("nodes.gated_apply").AutoLoRAGatedApply


def test_auto_says_why_it_sums(world):
    assert "mode: sum (no gate for a model of family sd3)" in world.apply(*two(world))[2]
    world.gate({FC1: random_vectors(256, 0)}, family="flux")
    assert "mode: sum (no gate for a model of family sd3)" in world.apply(*two(world))[2]
    world.gate({FC1: random_vectors(256, 0)}, "sd3.safetensors")
    assert "mode: sum (1 LoRA to fuse; sd3.safetensors is for 2 or more)" in world.apply(two(world)[0])[2]
    assert "mode: gate (sd3.safetensors)" in world.apply(*two(world))[2]
    assert "mode: sum (asked for)" in world.apply(*two(world), mode="sum")[2]


def test_more_loras_than_trained_with_is_said(world):
    world.gate({FC1: random_vectors(256, 0)}, k_range=(1, 1))
    assert "trained with at most 1 at once" in world.apply(*two(world))[2]


def test_gate_mode_without_a_fitting_gate_is_an_error(world, errors):
    with pytest.raises(errors.GateError, match="no gate for a model of family sd3"):
        world.apply(*two(world), mode="gate")
    world.gate({FC1: random_vectors(256, 0)}, "other.safetensors", family="flux")
    with pytest.raises(errors.GateError, match="for flux, the model is sd3"):
        world.apply(*two(world), gate="other.safetensors")
    with pytest.raises(errors.GateError, match="nowhere.safetensors"):
        world.apply(*two(world), gate="nowhere.safetensors")


def test_a_gate_of_the_wrong_width_is_an_error(world, errors):
    world.gate({FC1: random_vectors(255, 0)})
    with pytest.raises(errors.GateError, match=f"255 channels for {FC1}"):
        world.apply(*two(world))


def test_a_few_step_lora_is_added_outside_the_gate(world):
    world.gate({FC1: random_vectors(256, 0)})
    pair, turbo = two(world), (world.lora("flux-turbo-8steps.safetensors", seed=3), 0.5)
    model, _, report = world.apply(*pair, turbo)
    assert "kept additive, outside the gate: the file name says 'turbo'" in report
    as_patch = world.apply(*pair, model=world.model)[0]
    assert difference(tiny_models.sample(model), tiny_models.sample(as_patch)) > 1e-3
    alone = world.apply(turbo)
    assert "no LoRA for a gate" in alone[2]
    assert difference(tiny_models.sample(alone[0]), tiny_models.sample(world.stock(turbo))) <= 1e-4


def test_a_layer_the_model_does_not_have_is_an_error_even_where_no_lora_speaks_of_it(world, errors):
    elsewhere = "joint_blocks.9.x_block.mlp.fc1"
    world.gate({FC1: random_vectors(256, 0), elsewhere: random_vectors(256, 1)})
    with pytest.raises(errors.GateError, match=f"256 channels for {elsewhere}.*no such layer.*gate.safetensors"):
        world.apply(*two(world))
    assert "mode: sum" in world.apply(two(world)[0])[2], "one LoRA needs no gate"


def test_slices_must_lie_inside_the_layer(world, errors):
    qkv = "joint_blocks.0.x_block.attn.qkv"
    world.gate({f"{qkv}[128:192]": random_vectors(64, 0)})
    assert "mode: gate" in world.apply(*two(world))[2]
    world.gate({f"{qkv}[192:256]": random_vectors(64, 0)})
    with pytest.raises(errors.GateError, match="channels 192 to 256"):
        world.apply(*two(world))


def test_auto_takes_the_first_gate_whose_layers_are_the_models(world):
    world.gate({FC1: random_vectors(512, 0)}, "a large one.safetensors")
    world.gate({FC1: random_vectors(256, 0)}, "medium.safetensors")
    assert "mode: gate (medium.safetensors)" in world.apply(*two(world))[2]


# -- trained on which base ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_gate_of_another_base_of_the_same_shape_is_used_with_a_warning(world, state, dtype):
    """The very base, in whatever precision it is loaded, gets no warning; another one does."""
    model = world.model if dtype is None else tiny_models.load(state, dtype=dtype)
    for tensors, warned in ((state, False), (tiny_models.sd3_state(64, seed=4), True)):
        world.gate({FC1: random_vectors(256, 0)}, base_fingerprint=base_fingerprint(tensors))
        report = world.apply(*two(world), model=model)[2]
        assert "mode: gate (gate.safetensors)" in report
        assert (OTHER_BASE in report) == warned


def test_a_gate_that_does_not_say_its_base_is_used_without_a_word(world):
    world.gate({FC1: random_vectors(256, 0)}, base_sha256="ab" * 32)
    assert "warning" not in world.apply(*two(world))[2]


def test_stock_loras_before_do_not_make_another_base(world, state):
    """A LoRA with a bias entry, merged into the weights in memory."""
    world.gate({FC1: random_vectors(256, 0)}, base_fingerprint=base_fingerprint(state))
    name = world.file("bias.safetensors", {f"diffusion_model.{FC1}.diff_b": torch.ones(256)})
    patched = world.stock((name, 1.0))
    import comfy.model_management

    comfy.model_management.load_models_gpu([patched])
    moved = patched.model.diffusion_model.get_submodule(FC1).bias - state[f"{FC1}.bias"]
    assert moved.abs().max() > 0.9
    assert "warning" not in world.apply(*two(world), model=patched)[2]


def test_an_unreadable_fingerprint_is_an_error_naming_the_file(world, errors):
    for text in ("{", "[1]", json.dumps({"x": ["a"]})):
        world.gate({FC1: random_vectors(256, 0)}, metadata={"base_fingerprint": text})
        with pytest.raises(errors.GateError, match="gate.safetensors.*base_fingerprint|base_fingerprint.*gate.safe"):
            world.apply(*two(world), gate="gate.safetensors")


# -- damaged files -----------------------------------------------------------------------------------------------------

BROKEN = {
    "empty": lambda whole: b"",
    "page": lambda whole: b"<!DOCTYPE html><html></html>",
    "cut off": lambda whole: whole[:-40],
    "half a header": lambda whole: whole[:60],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_gate_stays_in_the_menu_and_choosing_it_says_what_to_do(world, errors, caplog, kind):
    path = world.gates / world.gate({FC1: random_vectors(256, 0)})
    path.write_bytes(BROKEN[kind](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):  # menus are built often
            assert node().INPUT_TYPES()["required"]["gate"][0] == ["auto", "gate.safetensors"]
    assert caplog.text.count("gate.safetensors cannot be used as a gate") == 1
    with pytest.raises(errors.GateError, match="gate.safetensors.*What to do: (download|train)"):
        world.apply(*two(world), gate="gate.safetensors")
    assert "warning: gate.safetensors was passed over" in world.apply(*two(world))[2]
    with pytest.raises(errors.GateError, match="no gate for a model of family sd3; gate.safetensors was passed over"):
        world.apply(*two(world), mode="gate")


def test_a_damaged_gate_for_another_family_is_no_ones_business(world):
    path = world.gates / world.gate({FC1: random_vectors(256, 0)}, family="flux")
    path.write_bytes(path.read_bytes()[:-40])
    assert "warning" not in world.apply(*two(world))[2]


def test_a_later_format_is_listed_and_said(world, errors):
    world.gate({FC1: random_vectors(256, 0)}, metadata={"format": "autolora-gate/9"})
    assert "gate.safetensors" in node().INPUT_TYPES()["required"]["gate"][0]
    assert "its format is autolora-gate/9" in world.apply(*two(world))[2]


def test_a_dangling_link_and_a_folder_do_not_break_the_menu(world, errors):
    (world.gates / "link.safetensors").symlink_to(world.folder / "gone.safetensors")
    (world.gates / "folder.safetensors").mkdir()
    assert node().INPUT_TYPES()["required"]["gate"][0] == ["auto", "link.safetensors"]
    assert node().IS_CHANGED() == node().IS_CHANGED()
    with pytest.raises(errors.GateError, match="link.safetensors"):
        world.apply(*two(world), gate="link.safetensors")


def test_other_files_are_no_gates_whole_or_cut_off(world):
    from safetensors.torch import save_file

    path = world.gates / "encoder.safetensors"
    save_file({"X": torch.ones(9)}, path, {"format": "autolora-encoder/1"})
    assert node().INPUT_TYPES()["required"]["gate"][0] == ["auto"]
    path.write_bytes(path.read_bytes()[:-8])
    assert node().INPUT_TYPES()["required"]["gate"][0] == ["auto"]


def test_the_fingerprint_of_the_folder_follows_its_gates(world):
    before = node().IS_CHANGED()
    world.gate({FC1: random_vectors(256, 0)})
    assert node().IS_CHANGED() != before
