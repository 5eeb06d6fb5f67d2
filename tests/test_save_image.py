"""Proves that a saved picture tells in its own data which LoRAs made it, by the files' own hashes and without paths."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re

import pytest
import tiny_models
import torch
from apply_world import clip_fixtures, difference, sd3_fixtures, two
from comfy_local import ROOT, pack_module
from PIL import Image
from reference_fusion import random_vectors

FC1 = "joint_blocks.0.x_block.mlp.fc1"
NODES = {"save_image": ("AutoLoRASaveImage",), "lora_text": ("AutoLoRAStackFromText", "AutoLoRAStackToText")}

state, world = sd3_fixtures(64)
errors, clip = clip_fixtures()


@pytest.fixture
def output(world, tmp_path, monkeypatch):
    import folder_paths

    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    return folder


def save(**inputs):
    images = torch.rand(2, 32, 48, 3, generator=torch.Generator().manual_seed(1))
    return pack_module("nodes.save_image").AutoLoRASaveImage().save(images, "sub/x", **inputs), images


def told(output, name="sub/x_00001_.png"):
    info = Image.open(output / name).info
    return info["parameters"], json.loads(info["autolora"]), info


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pictures_carry_what_apply_did(world, output):
    (a, _), (b, _) = two(world)
    model, _, report = world.apply((a, 0.5), (b, 1.0), strength=0.5, mode="energy")
    out, images = save(model=model, positive="a fox", negative="bad", seed=4, settings="Steps: 2")
    text, whole, info = told(output)
    digests = {name: sha256(world.loras / name) for name in (a, b)}
    assert text.split("\n")[:2] == ["a fox <lora:a:0.25> <lora:b:0.5>", "Negative prompt: bad"]
    for part in ("Seed: 4", "Size: 48x32", "Steps: 2", f'"lora:a": "{digests[a][:10]}"', "Version: ComfyUI"):
        assert part in text
    assert text.split("\n")[2].startswith("Steps: 2, ")
    (applied,) = whole["applied"]
    assert whole["format"] == "autolora-image/1" and whole["other_loras"] == []
    assert applied["mode"] == "energy" and applied["family"] == "sd3" and applied["report"] == report
    assert applied["settings"]["interval"] == 1 and "prompt" not in applied
    for lora, (name, strength) in zip(applied["loras"], ((a, 0.25), (b, 0.5)), strict=True):
        assert (lora["name"], lora["strength"], lora["clip_strength"]) == (name, strength, strength)
        assert lora["hashes"]["sha256"] == digests[name] and lora["hashes"]["autov2"] == digests[name][:10]
        assert len(lora["hashes"]["autov3"]) == 12 and f"{name[0]}: {lora['hashes']['autov3']}" in text
    assert str(world.folder) not in json.dumps(info)
    assert out["result"][0] == text and json.loads(out["result"][1]) == whole
    assert [one["filename"] for one in out["ui"]["images"]] == ["x_00001_.png", "x_00002_.png"]
    second = torch.tensor(list(Image.open(output / "sub/x_00002_.png").tobytes()), dtype=torch.float32)
    assert (second.reshape(32, 48, 3) / 255 - images[1]).abs().max() <= 1 / 255


def test_two_apply_nodes_are_both_told_and_alike_ones_too(world, output):
    (a, _), (b, _) = two(world)
    once = world.fused((a, 0.5), mode="sum")
    twice = world.fused((a, 0.5), mode="sum", model=once)
    save(model=world.fused((b, 1.0), mode="sum", model=twice))
    text, whole, _ = told(output)
    assert [[lora["name"] for lora in one["loras"]] for one in whole["applied"]] == [[a], [a], [b]]
    assert text.startswith("<lora:a:1.0> <lora:b:1.0>")
    assert once.get_attachment("autolora_used") != twice.get_attachment("autolora_used")
    assert world.model.get_attachment("autolora_used") is None


def test_the_note_stays_with_clones_and_changes_no_picture(world):
    (a, _), _ = two(world)
    fused = world.fused((a, 1.0))
    clone = fused.clone()
    assert clone.get_attachment("autolora_used") == fused.get_attachment("autolora_used")
    assert difference(tiny_models.sample(clone), tiny_models.sample(world.stock((a, 1.0)))) <= 1e-4


def test_the_gate_is_named_and_hashed(world, output):
    (a, _), (b, _) = two(world)
    world.gate({FC1: random_vectors(256, 0)}, name="g.safetensors")
    save(model=world.fused((a, 1.0), (b, 1.0), mode="gate"))
    _, whole, _ = told(output)
    (applied,) = whole["applied"]
    assert applied["mode"] == "gate" and applied["gate"] == "g.safetensors" and "settings" not in applied
    assert applied["gate_sha256"] == sha256(world.gates / "g.safetensors")


def test_text_encoder_loras_are_told_through_the_clip(world, clip, output):
    layer = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.randn(4, 64),
             "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.randn(128, 4)}  # fmt: skip
    name = world.file("te.safetensors", layer)
    (a, _), _ = two(world)
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    model, fused, _ = node.apply(world.model, clip=clip, lora_stack=[(name, 1.0, 0.5), (a, 1.0, 1.0)])
    save(model=model, clip=fused)
    _, whole, _ = told(output)
    assert [lora["name"] for one in whole["applied"] for lora in one["loras"]] == [name, a]  # one node, told once
    only, fused, _ = node.apply(world.model, clip=clip, lora_stack=[(name, 1.0, 0.5)])
    assert only is world.model
    save(model=only, clip=fused)
    assert told(output, "sub/x_00003_.png")[1]["applied"][0]["loras"][0]["clip_layers"] == 1


def test_the_files_own_hash_is_told_and_a_changed_file_has_none(world, output):
    """Whatever a selection or a header says, by hand or of a file that has been replaced since."""
    from safetensors.torch import load_file

    world.lora("plain.safetensors", seed=1)
    name = world.file("a.safetensors", load_file(world.loras / "plain.safetensors"), {"sshs_model_hash": "ab" * 32})
    pick = {"name": name, "strength": 1.0, "role": "style", "triggers": ["tok"], "hash": "cd" * 32}
    selection = {"format": "autolora-selection/1", "prompt": "a fox", "picks": [pick]}
    model, _, _ = pack_module("nodes.gated_apply").AutoLoRAGatedApply().apply(world.model, selection=selection)
    graph = graph_of(world, name)
    del graph["3"]
    graph["4"]["inputs"]["model"] = ["2", 0]
    save(model=model, prompt=graph, unique_id="7")
    text, whole, _ = told(output)
    digest, short = sha256(world.loras / name), autov3_of(world.loras / name)
    assert f'Lora hashes: "a: {short}"' in text and digest[:10] in text and "abababababab" not in text
    (lora,), (other,) = whole["applied"][0]["loras"], whole["other_loras"]
    assert lora["hashes"] == other["hashes"] == {"sha256": digest, "autov2": digest[:10], "autov3": short}
    assert (lora["role"], lora["triggers"], lora["origin"]) == ("style", ["tok"], "selection")
    assert whole["applied"][0]["prompt"] == "a fox"

    world.lora(name, seed=3, rank=2)
    out, _ = save(model=model)
    assert f"{name} has changed since it was applied" in out["ui"]["text"][0]
    assert told(output, "sub/x_00003_.png")[1]["applied"][0]["loras"][0]["hashes"] == {}


def autov3_of(path):
    data = path.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:12]


def test_files_outside_the_loras_folders_are_told_without_their_place(world, output):
    world.lora(os.path.join("..", "elsewhere.safetensors"), seed=2)
    (a, _), _ = two(world)
    outside = str(world.folder / "elsewhere.safetensors")
    term = pack_module("autolora_core.fusion.terms").Term(outside)
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    model, _, report = node.apply(world.model, lora_stack=[(outside, 1.0, 1.0)], terms=(term,))
    assert "- elsewhere.safetensors × 1 (stack)" in report
    graph = graph_of(world, outside)
    graph["3"]["inputs"]["lora_name"] = "C:\\Users\\me\\gone.safetensors"
    save(model=model, prompt=graph, unique_id="7")
    text, whole, _ = told(output)
    assert str(world.folder) not in text + json.dumps(whole) and "Users" not in text + json.dumps(whole)
    assert whole["applied"][0]["loras"][0]["name"] == "elsewhere.safetensors"
    assert [one["name"] for one in whole["other_loras"]] == ["elsewhere.safetensors", "gone.safetensors"]
    digest = sha256(world.folder / "elsewhere.safetensors")
    assert whole["other_loras"][0]["hashes"]["sha256"] == digest


def test_only_lora_files_are_reached_by_a_whole_path(world, errors, output, tmp_path):
    secret, false = tmp_path / "secret.txt", tmp_path / "false.safetensors"
    secret.write_bytes(b"key")
    false.write_bytes(b"key")
    with pytest.raises(errors.SelectionError, match="secret.txt is not in any of ComfyUI's loras folders"):
        world.apply((str(secret), 1.0))
    graph = graph_of(world, str(false))
    graph["3"]["inputs"]["lora_name"] = str(secret)
    out, _ = save(prompt=graph, unique_id="7")
    _, whole, _ = told(output)
    assert [one["hashes"] for one in whole["other_loras"]] == [{}, {}]
    assert out["ui"]["text"][0].count("cannot be hashed") == 2


def test_hashing_can_be_cancelled(world, output):
    import comfy.model_management as management

    (a, _), _ = two(world)
    model = world.fused((a, 1.0))
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        save(model=model)
    assert not list(output.rglob("*.png"))


def graph_of(world, a):
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny.safetensors"}},
        "2": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["1", 0], "lora_name": a,
              "strength_model": 0.5}},
        "3": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["2", 0], "lora_name": "gone.safetensors",
              "strength_model": 1.0}},
        "4": {"class_type": "AutoLoRAGatedApply", "inputs": {"model": ["3", 0]}},
        "5": {"class_type": "KSampler", "inputs": {"model": ["4", 0], "positive": ["6", 0], "negative": ["6", 0],
              "seed": 8, "steps": 3, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a hill", "clip": ["1", 0]}},
        "7": {"class_type": "AutoLoRASaveImage", "inputs": {"images": ["5", 0]}},
    }  # fmt: skip


def test_stock_loaders_are_told_from_the_graph(world, output):
    (a, _), (b, _) = two(world)
    graph = graph_of(world, a)
    model = world.fused((a, 0.25), (b, 1.0), mode="sum")
    workflow = {"nodes": []}
    out, _ = save(model=model, prompt=copy.deepcopy(graph), extra_pnginfo={"workflow": workflow}, unique_id="7")
    text, whole, info = told(output)
    assert text.startswith("a hill <lora:a:0.75> <lora:gone:1.0> <lora:b:1.0>\nNegative prompt: a hill\nSteps: 3, ")
    assert "Sampler: Euler, Schedule type: Simple, CFG scale: 2.5, Seed: 8, Size: 48x32, Model: tiny, " in text
    first, second = whole["other_loras"]
    assert first["hashes"]["sha256"] == sha256(world.loras / a) and first["node"] == "2" and second["hashes"] == {}
    assert "gone.safetensors, which node 3 loads, cannot be hashed" in out["ui"]["text"][0]
    assert json.loads(info["prompt"]) == graph and json.loads(info["workflow"]) == workflow


def test_what_the_graph_does_not_tell_is_noted(world, output):
    (a, _), _ = two(world)
    graph = graph_of(world, a)
    graph["3"]["inputs"] |= {"lora_name": ["8", 0]}
    graph["8"] = {"class_type": "Any Pack's File Picker", "inputs": {"row": 3}}
    graph["9"] = {"class_type": "Any Switch", "inputs": {"any_01": ["1", 0], "any_02": ["1", 0]}}
    graph["2"]["inputs"]["model"] = ["9", 0]
    out, _ = save(prompt=graph, unique_id="7")
    assert [one["name"] for one in told(output)[1]["other_loras"]] == [a]
    notes = out["ui"]["text"][0].split("\n\n")
    assert any(note.startswith("node 3 loads a LoRA, and its name or a strength cannot be read") for note in notes)
    assert any("any of several inputs of node 9: its way from there is not known" in note for note in notes)


def test_the_base_models_file_is_hashed_when_asked(world, output, tmp_path, monkeypatch):
    import folder_paths

    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "tiny.safetensors").write_bytes(b"weights")
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path / "unet")], {".safetensors"})
    )
    (a, _), _ = two(world)
    graph = graph_of(world, a)
    del graph["3"]
    graph["4"]["inputs"]["model"] = ["2", 0]
    digest = hashlib.sha256(b"weights").hexdigest()[:10]
    save(prompt=graph, unique_id="7", hash_model=True)
    text, _, _ = told(output)
    assert f"Model hash: {digest}, Model: tiny" in text and f'Hashes: {{"model": "{digest}"' in text
    save(prompt=graph, unique_id="7")
    assert digest not in told(output, "sub/x_00003_.png")[0]
    graph["1"]["inputs"]["unet_name"] = "other.safetensors"
    out, _ = save(prompt=graph, unique_id="7", hash_model=True)
    assert "the base model's file is not known (other.safetensors)" in out["ui"]["text"][0]


def test_metadata_can_be_switched_off_and_nothing_connected_is_said(world, output, monkeypatch):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "disable_metadata", True)
    out, _ = save(prompt={}, extra_pnginfo={"workflow": {}}, unique_id="7")
    assert not Image.open(output / "sub/x_00001_.png").info
    assert "no LoRA is known" in out["ui"]["text"][0] and "number of steps is not in the graph" in out["ui"]["text"][0]


def test_the_prefix_is_explained_by_what_the_server_fills_in(world, output):
    node, page = pack_module("nodes.save_image").AutoLoRASaveImage, "web/docs/AutoLoRASaveImage.md"
    tip = node.INPUT_TYPES()["required"]["filename_prefix"][1]["tooltip"]
    row = next(line for line in (ROOT / page).read_text(encoding="utf-8").split("\n") if "| filename_prefix |" in line)
    promised = re.findall(r"%\w+%", tip)
    assert len(promised) == 8 and re.findall(r"`(%\w+%)`", row) == promised and "%date" not in tip
    images = torch.zeros(1, 32, 48, 3)
    node().save(images, "_".join(promised))
    (name,) = os.listdir(output)
    assert "%" not in name and name.startswith("48_32_2")


def test_settings_are_checked_before_anything_runs(comfy):
    check = pack_module("nodes.save_image").AutoLoRASaveImage.VALIDATE_INPUTS
    assert check("Steps: 2") is True and check("") is True and check() is True and check(None) is True
    assert "'20 steps' is not a setting" in check("Steps: 2\n20 steps")


@pytest.mark.parametrize("module", NODES)
def test_every_input_and_output_is_explained(comfy, module):
    for name in NODES[module]:
        node = getattr(pack_module(f"nodes.{module}"), name)
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        groups = node.INPUT_TYPES()
        specs = [*groups["required"].items(), *groups["optional"].items()]
        assert all(len(spec[1]["tooltip"]) > 20 and f"\n| {key} |" in page for key, spec in specs)
        assert all(f"\n| {key} |" in page for key in node.RETURN_NAMES)
        assert node.DESCRIPTION and len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
