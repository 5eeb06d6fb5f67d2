"""Proves the nodes that write LoRAs down as text and read them back, and the names that they and Apply take."""

from __future__ import annotations

import os

import pytest
import tiny_models
from apply_world import clip_fixtures, sd3_fixtures
from comfy_local import pack_module

state, world = sd3_fixtures(64)
errors, _ = clip_fixtures()


def from_text(text, stack=None):
    return pack_module("nodes.lora_text").AutoLoRAStackFromText().read(text, stack)


def to_text(**inputs):
    return pack_module("nodes.lora_text").AutoLoRAStackToText().write(**inputs)


def test_text_becomes_a_stack(world):
    a = world.lora(os.path.join("styles", "ink v1.safetensors"), seed=1)
    world.lora("otter.safetensors", seed=2)
    stack, text, report = from_text(
        "a hill, <lora:INK V1:0.5:0.25>, <lora:styles\\ink v1.safetensors:1> fog <lora:otter:1:LBW=ALL>",
        [("None", 1, 1), ["mine.safetensors", "0.5", 1]],
    )
    assert stack == [("mine.safetensors", 0.5, 1.0), (a, 0.5, 0.25), (a, 1.0, 1.0), ("otter.safetensors", 1.0, 1.0)]
    assert text == "a hill, fog" and report.startswith("3 LoRAs in the text\n") and "not heeded: lbw=ALL" in report
    assert f"- INK V1: {a} × 0.5, text encoder 0.25" in report


def test_names_that_mean_no_file_or_several_are_refused(world, errors):
    for folder in ("a", "b"):
        world.lora(os.path.join(folder, "twin.safetensors"))
    with pytest.raises(errors.SelectionError, match=r"twin may be any of a.twin\.safetensors, b.twin\.safetensors"):
        from_text("<lora:twin:1>")
    with pytest.raises(errors.SelectionError, match=r"c/twin is not in any.*there is a.twin\.safetensors, b.twin"):
        from_text("<lora:c/twin:1>")
    with pytest.raises(errors.SelectionError, match="nothing is not in any of ComfyUI's loras folders. What to do"):
        from_text("<lora:nothing:1>")
    with pytest.raises(errors.SelectionError, match="twin may be any of"):
        world.apply(("twin", 1.0))


def test_apply_takes_names_as_other_packs_write_them(world):
    """Without folder and ending, in other case, and as a whole path (Lora-Manager, for files outside the folders)."""
    name = world.lora(os.path.join("styles", "Ink v1.safetensors"), seed=1)
    world.lora(os.path.join("..", "elsewhere.safetensors"), seed=2)
    outside = str(world.folder / "elsewhere.safetensors")
    for written in ("Ink v1", "ink V1.safetensors", "styles\\ink v1", str(world.loras / name)):
        _, _, report = world.apply((written, 1.0))
        assert f"- {name} × 1 (stack)" in report  # the report tells the file
    model, _, _ = world.apply((outside, 1.0))
    assert model.get_attachment("autolora_used")[0].loras[0].path == outside
    assert model.get_attachment("autolora_used")[0].loras[0].name == "elsewhere.safetensors"
    stack, _, report = from_text(f"<lora:{outside}:1>")
    assert stack == [(outside, 1.0, 1.0)] and report.endswith(": elsewhere.safetensors × 1.0")


def test_two_cases_are_one_file_where_the_disk_takes_either(world, monkeypatch):
    """As on Windows and Mac: a path is found in whatever case it is asked for, and comes back in that case."""
    import folder_paths

    name = world.lora("Ink.safetensors", seed=1)
    exact = folder_paths.get_full_path
    either = {one.casefold(): one for one in folder_paths.get_filename_list("loras")}

    def find(kind, asked):
        return asked.casefold() in either and str(world.loras / asked) or exact(kind, asked)

    monkeypatch.setattr(folder_paths, "get_full_path", find)
    selection = {"format": "autolora-selection/1", "picks": [{"name": name, "strength": 0.5}]}
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    model, _, report = node.apply(world.model, selection=selection, lora_stack=[("INK.safetensors", 0.25, 0.25)])
    assert "used once, with the selection's strength" in report
    assert [lora.strength for lora in model.get_attachment("autolora_used")[0].loras] == [0.5]


def test_a_stack_becomes_text_with_trigger_words(world):
    layers = tiny_models.linear_layers(world.state, "joint_blocks.0")
    for name, words in (("a/twin", "tok a, in oil"), ("b/twin", ""), ("otter", "ottr")):
        tiny_models.save_lora(world.loras / f"{name}.safetensors", layers)
        from safetensors.torch import load_file

        tensors = load_file(world.loras / f"{name}.safetensors")
        world.file(f"{name}.safetensors", tensors, {"modelspec.trigger_phrase": words} if words else None)
    stack = [("a\\twin.safetensors", 0.5, 0.25), ("b/twin", 1.0, 1.0), ("otter.safetensors", 0.0, 0.0)]
    text, words = to_text(lora_stack=stack)
    assert text == "<lora:a/twin:0.5:0.25> <lora:b/twin:1.0>" and words == "tok a,, in oil"
    pick = {"name": "otter.safetensors", "strength": 0.8, "triggers": ["river cat, wet", "tok a"]}
    selection = {"format": "autolora-selection/1", "picks": [pick]}
    text, words = to_text(selection=selection, lora_stack=[("otter", 1.0, 1.0), ("a/twin", 1.0, 1.0)])
    assert text == "<lora:otter:0.8> <lora:a/twin:1.0>" and words == "river cat, wet,, tok a,, in oil"
    assert to_text() == ("", "")
    again, rest, _ = from_text(text)
    assert rest == "" and [entry[1:] for entry in again] == [(0.8, 0.8), (1.0, 1.0)]
    world.lora(os.path.join("deep", "one.safetensors"))
    assert to_text(lora_stack=[("one", 1.0, 1.0)])[0] == "<lora:one:1.0>"
    assert to_text(names="folder and file name", lora_stack=[("one", 1.0, 1.0)])[0] == "<lora:deep/one:1.0>"
