"""Proves the node's promises to its user: inputs of every shape, clear refusals, a report that tells what was done."""

from __future__ import annotations

import os

import pytest
import tiny_models
import torch
from apply_world import clip_fixtures, difference, sd3_fixtures, two
from comfy_local import pack_module

FC1 = "joint_blocks.0.x_block.mlp.fc1"


state, world = sd3_fixtures(64)
errors, clip = clip_fixtures()


def node():
    return pack_module("nodes.gated_apply").AutoLoRAGatedApply()


def lora_layers(prefix: str, out: int, n_in: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(4, n_in, generator=generator), torch.randn(out, 4, generator=generator)
    return {f"{prefix}.lora_down.weight": down * 0.3, f"{prefix}.lora_up.weight": up * 0.3}


def test_a_file_in_both_selection_and_stack_is_used_once_with_the_selections_strength(world):
    """Retrieve gives its picks both ways: whoever wires both must not get them twice."""
    name = world.lora(os.path.join("sub", "a.safetensors"), seed=1)
    selection = {"format": "autolora-selection/1", "picks": [{"name": name, "strength": 0.5}]}
    stack = [("sub\\a.safetensors", 0.25, 0.75), ("None", 1.0, 1.0)]
    model, _, report = node().apply(world.model, selection=selection, lora_stack=stack)
    assert "× 0.5 (selection)" in report and report.count("safetensors") == 1
    assert "in the stack too (× 0.25, text encoder 0.75): used once, with the selection's strength" in report
    assert difference(tiny_models.sample(model), tiny_models.sample(world.stock((name, 0.5)))) <= 1e-4


def test_a_file_twice_in_a_stack_adds_up_and_says_so(world):
    name = world.lora("a.safetensors", seed=1)
    model, _, report = world.apply((name, 0.5), (name, 0.25))
    assert "× 0.75 (stack)" in report and "named 2 times in the stack: the strengths are added (0.5 and 0.25)" in report
    assert difference(tiny_models.sample(model), tiny_models.sample(world.stock((name, 0.75)))) <= 1e-4


def test_a_file_named_by_two_spellings_cancels_out(world):
    world.lora(os.path.join("sub", "a.safetensors"), seed=1)
    model, _, report = world.apply(("sub/a.safetensors", 0.5), ("sub\\a.safetensors", -0.5))
    assert model is world.model and "strength 0, absent" in report and "added (0.5 and -0.5)" in report


def test_a_missing_file_is_named(world, errors):
    with pytest.raises(errors.SelectionError, match="gone.safetensors"):
        world.apply(("gone.safetensors", 1.0))


def test_missing_file_with_strength_0_is_still_named(world, errors):
    with pytest.raises(errors.SelectionError, match="gone.safetensors"):
        world.apply(("gone.safetensors", 0.0))


def test_zero_matching_layers_tell_both_families(world, errors):
    tensors = lora_layers("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072)
    name = world.file("flux.safetensors", tensors)
    with pytest.raises(errors.FamilyError, match=r"flux\.safetensors.*made for flux.*model is sd3") as caught:
        world.apply((name, 1.0))
    assert str(world.loras / name) in str(caught.value)


def test_a_wrong_base_is_refused_by_its_header_though_some_layers_match(world, errors, monkeypatch):
    """Before a tensor of any LoRA is read, the right ones included."""
    import comfy.utils

    right = world.lora("right.safetensors")
    tensors = lora_layers(f"diffusion_model.{FC1}", 256, 64)
    wrong = world.file("wrong.safetensors", tensors | lora_layers("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072))
    # Most telling is a layer that the model has, so it is used, and the other one named.
    assert "2 keys not understood: lora_unet_double_blocks_0_img_attn_qkv" in world.apply((wrong, 1.0))[2]
    large = lora_layers("diffusion_model.joint_blocks.0.context_block.attn.qkv", 7296, 2432)
    large = world.file("large.safetensors", large)
    file = pack_module("autolora_core.lora.file").LoraFile
    for owner, name in ((comfy.utils, "load_torch_file"), (file, "check_values")):
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: pytest.fail("tensors were read"))
    with pytest.raises(errors.FamilyError, match=r"large\.safetensors.*width 2432 large.*has width 64"):
        world.apply((right, 1.0), (large, 1.0))


def test_near_families_are_told_and_never_block(world):
    layers = lora_layers(f"diffusion_model.{FC1}", 256, 64)
    one = world.file("one.safetensors", layers, {"modelspec.architecture": "stable-diffusion-3.5-large/lora"})
    two = world.file("two.safetensors", {key: value * 2 for key, value in layers.items()}, {"baseModel": "SD 3"})
    report = world.apply((one, 1.0))[2]
    assert "made for sd3 3.5 large (modelspec.architecture = 'stable-diffusion-3.5-large/lora')" in report
    assert "which sd3 this model is: not shown by its layers" in report and "used together" not in report
    assert "3.5 large (1), 3 medium (1)" in world.apply((one, 1.0), (two, 1.0))[2]


def test_some_missing_layers_are_listed(world):
    tensors = lora_layers(f"diffusion_model.{FC1}", 256, 64)
    tensors |= lora_layers("diffusion_model.joint_blocks.7.x_block.mlp.fc1", 256, 64)
    _, _, report = world.apply((world.file("deep.safetensors", tensors), 1.0))
    assert "1 of 2 layers" in report and "not in this model: joint_blocks.7.x_block.mlp.fc1" in report


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"\x80\x04\x95pickle"])
def test_files_that_are_no_safetensors_are_refused(world, errors, content):
    (world.loras / "bad.safetensors").write_bytes(content)
    with pytest.raises(errors.FileFormatError, match="bad.safetensors"):
        world.apply(("bad.safetensors", 1.0))


def test_broken_values_are_refused(world, errors):
    tensors = lora_layers(f"diffusion_model.{FC1}", 256, 64)
    tensors[f"diffusion_model.{FC1}.lora_up.weight"][3, 1] = float("nan")
    with pytest.raises(errors.LoraError, match=f"nan.safetensors.*{FC1}|{FC1}.*nan.safetensors"):
        world.apply((world.file("nan.safetensors", tensors), 1.0))


def test_an_all_zero_lora_changes_nothing_and_says_so(world):
    tensors = {key: value * 0 for key, value in lora_layers(f"diffusion_model.{FC1}", 256, 64).items()}
    model, _, report = world.apply((world.file("zero.safetensors", tensors), 1.0))
    assert model is world.model and "changes nothing" in report


def test_a_zero_layer_gets_no_branch(world):
    tensors = lora_layers(f"diffusion_model.{FC1}", 256, 64)
    tensors |= lora_layers("diffusion_model.joint_blocks.0.x_block.mlp.fc2", 64, 256)
    tensors["diffusion_model.joint_blocks.0.x_block.mlp.fc2.lora_up.weight"] *= 0
    model, _, report = world.apply((world.file("half.safetensors", tensors), 1.0))
    assert model.get_additional_models()[0].model.names == (FC1,)
    assert "2 of 2 layers" in report and "the update is zero in 1 layer" in report.splitlines()[-1]


def test_text_encoder_half_equals_the_stock_loader(world, clip):
    import comfy.sd

    tensors = lora_layers(f"diffusion_model.{FC1}", 256, 64)
    tensors |= lora_layers("lora_te_text_model_encoder_layers_0_mlp_fc1", 128, 64, seed=1)
    name = world.file("both.safetensors", tensors)
    before = clip.encode("an otter")
    _, fused, report = node().apply(world.model, clip=clip, lora_stack=[(name, 1.0, 0.6)])
    _, stock = comfy.sd.load_lora_for_models(None, clip, tensors, 0, 0.6)
    assert "1 of 1 layer; 1 text encoder layer × 0.6" in report
    assert fused.encode("an otter").equal(stock.encode("an otter"))
    assert difference(fused.encode("an otter"), before) > 1e-3
    assert clip.encode("an otter").equal(before)


def test_clip_strength_0_returns_the_clip_itself(world, clip):
    tensors = lora_layers("lora_te_text_model_encoder_layers_0_mlp_fc1", 128, 64)
    name = world.file("te.safetensors", tensors | lora_layers(f"diffusion_model.{FC1}", 256, 64))
    assert node().apply(world.model, clip=clip, lora_stack=[(name, 1.0, 0.0)])[1] is clip


def test_a_text_encoder_only_file_needs_a_clip(world, clip, errors):
    name = world.file("te.safetensors", lora_layers("lora_te_text_model_encoder_layers_0_mlp_fc1", 128, 64))
    with pytest.raises(errors.NothingMatchesError, match="no CLIP is connected"):
        world.apply((name, 1.0))
    model, fused, report = node().apply(world.model, clip=clip, lora_stack=[(name, 1.0, 1.0)])
    assert model is world.model and fused is not clip and "1 text encoder layer × 1" in report


def test_metadata_is_noted_where_comfyuis_own_nodes_look(world, clip):
    """Newer ComfyUI's loader notes it on both, and its nodes for IC-LoRAs read it; the last file with any counts."""
    tensors = lora_layers(f"diffusion_model.{FC1}", 256, 64)
    tensors |= lora_layers("lora_te_text_model_encoder_layers_0_mlp_fc1", 128, 64, seed=1)
    a = world.file("a.safetensors", tensors, {"reference_downscale_factor": "2"})
    b = world.file("b.safetensors", lora_layers(f"diffusion_model.{FC1}", 256, 64, seed=2))
    model, fused, _ = node().apply(world.model, clip=clip, lora_stack=[(a, 1.0, 1.0), (b, 1.0, 1.0)])
    for patcher in (model, fused.patcher):
        assert patcher.get_attachment("lora_metadata") == {"reference_downscale_factor": "2"}
    plain = node().apply(world.model, lora_stack=[(b, 1.0, 1.0)])[0]
    assert plain.get_attachment("lora_metadata") is None and world.model.get_attachment("lora_metadata") is None


def test_strength_multiplies(world):
    (a, _), (b, _) = two(world)
    one = tiny_models.sample(world.fused((a, 1.0), (b, 0.5), strength=0.5, mode="sum"))
    assert difference(one, tiny_models.sample(world.stock((a, 0.5), (b, 0.25)))) <= 1e-4


def test_every_input_and_output_has_a_tooltip(world):
    kind = type(node())
    inputs = kind.INPUT_TYPES()
    settings = [spec[1] for part in ("required", "optional") for spec in inputs[part].values()]
    assert all(len(one["tooltip"]) > 20 for one in settings)
    assert len(kind.OUTPUT_TOOLTIPS) == len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES)
    sockets, settings = ["clip", "selection", "lora_stack"], ["density", "mu", "swap_roles", "interval", "terms"]
    assert list(inputs["optional"]) == [*sockets, *settings, "record"]  # new at the end: saved workflows count


def test_the_given_model_and_stack_are_not_changed(world):
    (a, _), (b, _) = two(world)
    stack = [(a, 1.0, 1.0), (b, 1.0, 1.0)]
    patches, injections = dict(world.model.patches), dict(world.model.injections)
    options = repr(world.model.model_options)
    node().apply(world.model, lora_stack=stack)
    assert stack == [(a, 1.0, 1.0), (b, 1.0, 1.0)]
    assert (world.model.patches, world.model.injections) == (patches, injections)
    assert repr(world.model.model_options) == options and not world.model.get_additional_models()
