"""Proves that a saved picture's text is read back by readers written from the format's own description, and that the
facts in it come from the part of the graph that made the picture."""

from __future__ import annotations

import copy
import hashlib
import json
import re

import pytest
from conftest import emoji_factors, write_lora

from autolora_core.errors import SelectionError
from autolora_core.image_info.graph import Facts, GraphLora, UnknownLora, facts_of
from autolora_core.image_info.parameters import HashedLora, parameters_text, read_settings
from autolora_core.image_info.used import Used, UsedLora, unique
from autolora_core.library.hashes import HashCache, hash_file

FACTS = Facts(5, 20, 7.0, "dpmpp_2m", "karras", 1.0, "sd\\my, base.safetensors", "a cat,\na dog", "ugly: very", ())
OTTER = HashedLora("styles/otter v2.safetensors", 0.8, 0.6, "aaaaaaaaaa", "bbbbbbbbbbbb")


def read_a1111(text):
    """By AUTOMATIC1111's description: prompt lines, "Negative prompt:" lines, a last line of Key: value, where a value
    with comma or colon is JSON text in quotes."""
    *lines, last = text.split("\n")
    negative_at = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt: ")), len(lines))
    negative = "\n".join(lines[negative_at:]).removeprefix("Negative prompt: ")
    last, _, table = last.partition(", Hashes: ")
    pairs = re.findall(r'\s*([\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    settings = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
    return "\n".join(lines[:negative_at]), negative, settings, json.loads(table) if table else {}


def test_everything_is_read_back():
    text = parameters_text(FACTS, [OTTER, HashedLora("x.safetensors", -1.0, 1.0)], (512, 768), "cccccccccc")
    prompt, negative, settings, hashes = read_a1111(text)
    assert prompt == "a cat,\na dog <lora:otter v2:0.8> <lora:x:-1.0>" and negative == "ugly: very"
    assert settings == {
        "Steps": "20", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "7", "Seed": "5",
        "Size": "512x768", "Model hash": "cccccccccc", "Model": "my, base",
        "Lora hashes": "otter v2: bbbbbbbbbbbb", "Version": "ComfyUI",
    }  # fmt: skip
    assert hashes == {"model": "cccccccccc", "lora:otter v2": "aaaaaaaaaa"}


def test_what_is_not_known_is_left_out():
    assert parameters_text(Facts(), [], (64, 64)) == "\nSize: 64x64, Version: ComfyUI"
    img2img = Facts(sampler="res_multistep", scheduler="linear_quadratic", denoise=0.6)
    line = parameters_text(img2img, [], (64, 64)).split("\n")[1]
    assert line.startswith("Sampler: res_multistep, Schedule type: linear_quadratic, Size")
    assert "Denoising strength: 0.6" in line


def test_words_of_the_prompt_are_not_taken_for_the_format():
    facts = Facts(steps=4, positive="a sign\nNegative prompt: no\nSteps: 9, Seed: 1", negative="Steps: 3")
    prompt, negative, settings, _ = read_a1111(parameters_text(facts, [], (64, 64)))
    assert prompt == "a sign\nNegative prompt : no\nSteps : 9, Seed: 1" and negative == "Steps : 3"
    assert settings["Steps"] == "4"


def test_a_prompt_that_has_marks_already_tells_each_lora_once():
    facts = Facts(positive="a cat <lora:otter v2:0.3>, red")
    text = parameters_text(facts, [OTTER, HashedLora("styles\\otter v2.safetensors", 0.1, 0.1)], (64, 64))
    assert text.split("\n")[0] == "a cat, red <lora:otter v2:0.9>" and text.count("aaaaaaaaaa") == 1


def test_awkward_names_do_not_break_the_text():
    odd = [HashedLora(f'{folder}/o,d:d "q" {{x}}>.safetensors', 1.0, 1.0, "1" * 10, "2" * 12) for folder in "ab"]
    prompt, _, settings, hashes = read_a1111(parameters_text(Facts(), odd, (64, 64)))
    assert prompt == '<lora:a/o,d:d "q" {x}_:1.0> <lora:b/o,d:d "q" {x}_:1.0>'
    assert settings["Lora hashes"] == "a/odd q x>: 222222222222, b/odd q x>: 222222222222"
    assert hashes == {"lora:a/odd q x>": "1" * 10, "lora:b/odd q x>": "1" * 10}


def test_settings_typed_by_hand_replace_and_add():
    typed = read_settings("steps: 30\n\n Clip skip : 2\nSeed:\nNote: a: b, c")
    assert typed == {"steps": "30", "Clip skip": "2", "Seed": "", "Note": "a: b, c"}
    _, _, settings, _ = read_a1111(parameters_text(FACTS, [], (64, 64), "", typed))
    assert settings["Steps"] == "30" and settings["Clip skip"] == "2" and "Seed" not in settings
    assert settings["Note"] == "a: b, c"
    bare = parameters_text(Facts(seed=3), [], (64, 64), "", typed | {"Seed": "4", "size": ""})
    assert bare.split("\n")[1].startswith("Steps: 30, Seed: 4, Clip skip: 2")  # readers know the line by "Steps: "
    for line in ("20 steps", "a,b: 3", ": 3"):
        with pytest.raises(SelectionError, match="is not a setting"):
            read_settings(line)


GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/base.safetensors"}},
    "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": "first.safetensors",
          "strength_model": 0.5, "strength_clip": 0.25}},
    "3": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["2", 0], "lora_name": "second.safetensors",
          "strength_model": ["20", 0]}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": ["21", 0]}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "blurry"}},
    "6": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["4", 0], "negative": ["5", 0],
          "control_net": ["30", 0], "image": ["31", 0], "strength": 1.0}},
    "7": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    "8": {"class_type": "KSampler", "inputs": {"model": ["3", 0], "positive": ["6", 0], "negative": ["6", 1],
          "latent_image": ["7", 0], "seed": ["22", 0], "steps": 20, "cfg": 7, "sampler_name": "euler",
          "scheduler": "normal", "denoise": 1.0}},
    "9": {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["1", 2]}},
    "10": {"class_type": "AutoLoRASaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "x"}},
    "20": {"class_type": "PrimitiveFloat", "inputs": {"value": 0.75}},
    "21": {"class_type": "StringConcatenate", "inputs": {"string_a": ["23", 0], "string_b": "red", "delimiter": ", "}},
    "22": {"class_type": "Seed (rgthree)", "inputs": {"seed": 11}},
    "23": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a fox"}},
    "30": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "c.safetensors"}},
    "31": {"class_type": "LoadImage", "inputs": {"image": "a prompt.png"}},
    # a second picture in the same graph, saved by another node
    "40": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["5", 0], "negative": ["5", 0],
           "latent_image": ["7", 0], "seed": 99, "steps": 1, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "simple",
           "denoise": 1.0}},
}  # fmt: skip
LORAS = (
    GraphLora("first.safetensors", 0.5, 0.25, "2"),
    GraphLora("second.safetensors", 0.75, 0.0, "3"),
)


def test_the_facts_of_an_ordinary_graph():
    facts = facts_of(GRAPH, "10")
    assert facts == Facts(11, 20, 7.0, "euler", "normal", 1.0, "sd/base.safetensors", "a fox, red", "blurry", LORAS)
    other = copy.deepcopy(GRAPH)
    other["9"]["inputs"]["samples"] = ["40", 0]
    assert facts_of(other, "10") == Facts(
        99, 1, 1.0, "lcm", "simple", 1.0, "sd/base.safetensors", "blurry", "blurry", ()
    )


def changed(**inputs):
    """GRAPH with other inputs of the node 3, the second LoRA's loader, and nodes to link them with."""
    graph = copy.deepcopy(GRAPH)
    graph["3"]["inputs"] |= inputs
    graph["name"] = {"class_type": "PrimitiveString", "inputs": {"value": "linked.safetensors"}}
    graph["list"] = {"class_type": "Any Pack's File Picker", "inputs": {"folder": "loras", "row": 3}}
    return graph


def test_a_lora_whose_name_or_strength_comes_over_a_link_does_not_vanish():
    facts = facts_of(changed(lora_name=["name", 0]), "10")
    assert facts.loras[1] == GraphLora("linked.safetensors", 0.75, 0.0, "3") and facts.unknown_loras == ()
    for inputs, name in (
        ({"lora_name": ["list", 0]}, None),
        ({"strength_model": ["list", 0]}, "second.safetensors"),
        ({"strength_clip": ["list", 0]}, "second.safetensors"),
    ):
        facts = facts_of(changed(**inputs), "10")
        assert facts.loras == LORAS[:1] and facts.unknown_loras == (UnknownLora(name, "3"),)
    empty = facts_of(changed(lora_name="None", strength_model=["list", 0]), "10")
    assert empty.loras == LORAS[:1] and empty.unknown_loras == ()
    graph = changed()
    graph["3"] = {"class_type": "Lora Loader (LoraManager)", "inputs": {"model": ["2", 0], "loras": ["list", 0]}}
    assert facts_of(graph, "10").unknown_loras == (UnknownLora(None, "3"),)


def test_a_merged_model_came_along_both_ways():
    graph = changed()
    graph["m"] = {"class_type": "ModelMergeSimple", "inputs": {"model1": ["2", 0], "model2": ["3", 0], "ratio": 0.5}}
    graph["8"]["inputs"]["model"] = ["m", 0]
    facts = facts_of(graph, "10")
    assert sorted(lora.node for lora in facts.loras) == ["2", "3"] and facts.lost_at == ()  # 2 once, though in both


def test_the_models_way_is_lost_at_a_switch_and_goes_on_through_a_reroute():
    graph = changed()
    graph["s"] = {"class_type": "Any Switch", "inputs": {"any_01": ["2", 0], "any_02": ["1", 0]}}
    graph["3"]["inputs"]["model"] = ["s", 0]
    facts = facts_of(graph, "10")
    assert facts.loras == LORAS[1:] and facts.model is None and facts.lost_at == ("s",)
    del graph["s"]["inputs"]["any_02"]
    facts = facts_of(graph, "10")
    assert facts.loras == LORAS and facts.model == "sd/base.safetensors" and facts.lost_at == ()
    graph["1"] = {"class_type": "Efficient Loader", "inputs": {"ckpt_name": "e.ckpt", "a": ["7", 0], "b": ["21", 0]}}
    assert facts_of(graph, "10").model == "e.ckpt" and facts_of(graph, "10").lost_at == ()


def test_of_fluxs_two_texts_the_long_one_is_told():
    graph = changed()
    words = {"clip": ["2", 1], "clip_l": "a fox", "t5xxl": "a fox that crosses a frozen lake", "guidance": 3.5}
    graph["4"] = {"class_type": "CLIPTextEncodeFlux", "inputs": words}
    assert facts_of(graph, "10").positive == words["t5xxl"]
    words["t5xxl"] = ""
    assert facts_of(graph, "10").positive == "a fox"


def test_a_sampler_in_parts():
    graph = {name: GRAPH[name] for name in ("1", "2", "3", "4", "5", "20", "21", "23", "7", "9", "10")} | {
        "8": {"class_type": "SamplerCustomAdvanced", "inputs": {"noise": ["n", 0], "guider": ["g", 0],
              "sampler": ["s", 0], "sigmas": ["z", 0], "latent_image": ["7", 0]}},
        "n": {"class_type": "RandomNoise", "inputs": {"noise_seed": 3}},
        "g": {"class_type": "BasicGuider", "inputs": {"model": ["3", 0], "conditioning": ["f", 0]}},
        "f": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["4", 0], "guidance": 3.5}},
        "s": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "dpmpp_2m_sde_gpu"}},
        "z": {"class_type": "SplitSigmas", "inputs": {"sigmas": ["b", 0], "step": 2}},
        "b": {"class_type": "BasicScheduler", "inputs": {"model": ["1", 0], "scheduler": "beta", "steps": 8,
              "denoise": 0.5}},
    }  # fmt: skip
    expected = Facts(3, 8, None, "dpmpp_2m_sde_gpu", "beta", 0.5, "sd/base.safetensors", "a fox, red", None, LORAS)
    assert facts_of(graph, "10") == expected
    guider = {"model": ["3", 0], "positive": ["4", 0], "negative": ["e", 0], "cfg": 4.0}
    graph["g"] = {"class_type": "CFGGuider", "inputs": guider}
    graph["e"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["4", 0]}}
    facts = facts_of(graph, "10")
    assert (facts.cfg, facts.positive, facts.negative) == (4.0, "a fox, red", "")


def test_loras_that_other_packs_name_in_their_inputs():
    power = {"model": ["1", 0], "clip": ["1", 1], "PowerLoraLoaderHeaderWidget": {"type": "x"},
             "lora_1": {"on": True, "lora": "a.safetensors", "strength": 0.5},
             "lora_2": {"on": True, "lora": "b.safetensors", "strength": 0.5, "strengthTwo": 0.25},
             "lora_3": {"on": False, "lora": "c.safetensors", "strength": 1},
             "lora_4": {"on": True, "lora": "None", "strength": 1}}  # fmt: skip
    manager = {"model": ["2", 0], "text": "", "loras": {"__value__": [
        {"name": "d", "strength": "0.7", "active": True, "clipStrength": "0.3"},
        {"name": "e", "strength": 1, "active": False}]}}  # fmt: skip
    graph = copy.deepcopy(GRAPH)
    graph["2"] = {"class_type": "Power Lora Loader (rgthree)", "inputs": power}
    graph["3"] = {"class_type": "Lora Loader (LoraManager)", "inputs": manager}
    found = [(one.name, one.strength, one.clip_strength) for one in facts_of(graph, "10").loras]
    assert found == [("a.safetensors", 0.5, 0.5), ("b.safetensors", 0.5, 0.25), ("d", 0.7, 0.3)]


@pytest.mark.parametrize(
    ("graph", "node"),
    [
        (None, "10"), ({}, "10"), (GRAPH, None), (GRAPH, "77"), ({"10": {"inputs": {"images": ["9", 0]}}}, "10"),
        ({"10": {"inputs": None}}, "10"), ({"10": 3}, "10"), ([], "10"),
        ({"10": {"inputs": {"images": ["10", 0]}}}, "10"),
    ],
)  # fmt: skip
def test_graphs_that_tell_nothing(graph, node):
    assert facts_of(graph, node) == Facts()


def test_loops_and_computed_values_are_not_guessed():
    graph = copy.deepcopy(GRAPH)
    graph["22"] = {"class_type": "Dice", "inputs": {"sides": 6}}
    graph["3"]["inputs"]["model"] = ["3", 0]
    graph["21"]["inputs"]["string_a"] = ["21", 0]
    facts = facts_of(graph, "10")
    assert facts.seed is None and facts.model is None and facts.positive is None and facts.steps == 20


def test_hashes_are_of_the_bytes(tmp_path):
    path = write_lora(tmp_path / "a.safetensors", emoji_factors(1), {"modelspec.title": "x" * 5000})
    again = write_lora(tmp_path / "b.safetensors", emoji_factors(1))
    data = path.read_bytes()
    made, other = hash_file(str(path)), hash_file(str(again))
    start = 8 + int.from_bytes(data[:8], "little")
    assert made.sha256 == hashlib.sha256(data).hexdigest() and made.autov2 == made.sha256[:10]
    assert made.tensors == hashlib.sha256(data[start:]).hexdigest() and made.autov3 == made.tensors[:12]
    assert other.autov3 == made.autov3 and other.autov2 != made.autov2  # only the header differs
    (tmp_path / "c.ckpt").write_bytes(b"PK" * 100)
    assert hash_file(str(tmp_path / "c.ckpt")).tensors == "" == hash_file(str(tmp_path / "c.ckpt")).autov3


def test_hashes_of_files_larger_than_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("autolora_core.library.hashes.CHUNK", 16)
    header = b'{"a":1}' + b" " * 33
    data = len(header).to_bytes(8, "little") + header + bytes(range(100))
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    ticks = []
    made = hash_file(str(path), ticks.append)
    assert made.tensors == hashlib.sha256(bytes(range(100))).hexdigest() and ticks == [
        *range(16, len(data), 16),
        len(data),
    ]

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hash_file(str(path), stop)


def test_a_file_is_hashed_once_until_it_changes(tmp_path):
    path, cache, read = tmp_path / "x", HashCache(most=2), []
    path.write_bytes(b"one")

    def of(file):
        return cache.of(str(file), lambda _: read.append(file.name)).sha256

    first = of(path)
    assert of(path) == first and read == ["x"]
    path.write_bytes(b"other")
    assert of(path) == hashlib.sha256(b"other").hexdigest() and read == ["x", "x"]
    for name in ("y", "z"):
        (tmp_path / name).write_bytes(b"1")
        of(tmp_path / name)
    of(path)
    assert read == ["x", "x", "y", "z", "x"]  # two are kept


def test_notes_tell_no_paths_and_are_told_once():
    lora = UsedLora("s\\a.safetensors", 0.5, 0.5, path="/secret/a.safetensors", role="style", triggers=("tok",))
    used = Used("gate", "asked for", "sd3", (lora,), "g.safetensors", "/secret/g.safetensors", report="done")
    twin = Used("gate", "asked for", "sd3", (lora,), "g.safetensors", "/secret/g.safetensors", report="done")
    assert unique([used, twin, used]) == [used, twin]
    told = json.dumps([used.to_json(), lora.to_json()])
    assert "secret" not in told and '"s/a.safetensors"' in told and "kept_additive" not in told
