"""Proves, in real ComfyUI on tiny models, that the node LoRA Conflict Report tells what Apply would do, measures what
is in the files, and leaves the model as it was."""

from __future__ import annotations

import json
import math
import re

import pytest
import tiny_models
import torch
from apply_world import lora_delta, sd3_fixtures, untouched
from comfy_local import pack_module
from conftest import ROOT
from methods_world import methods_fixtures, picked, selection, two

from autolora_core.fusion.gate import GateVectors

state, world = sd3_fixtures(64)
clip, routers_elsewhere = methods_fixtures()
OTTER, PAPER = "wet_otter.safetensors", "rough_paper.safetensors"
MODES = ["auto", "sum", "energy", "ties", "dare", "magnitude", "klora", "np", "ssr", "switch", "composite"]


def report(world, *stack, model=None, **inputs):
    """(text, picture, JSON as data) of the node."""
    node = pack_module("nodes.conflict_report").AutoLoRAConflictReport()
    entries = [(name, strength, strength) for name, strength in stack]
    out = node.report(model or world.model, lora_stack=entries or None, **inputs)
    text, picture, data = out["result"]
    assert out["ui"] == {"text": [text]}
    assert picture.shape[0] == 1 and picture.shape[3] == 3 and picture.dtype == torch.float32
    assert 0 <= picture.min() and picture.max() <= 1
    return text, picture, json.loads(data)


def deltas(world, name: str) -> dict[str, torch.Tensor]:
    keys = tiny_models.linear_layers(world.state, "joint_blocks")
    return {key: lora_delta(world.loras / name, key) for key in keys}


def test_numbers_are_those_of_the_files(world):
    (a, _), (b, _) = two(world)
    text, _, data = report(world, (a, 1.0), (b, -0.5), mode="sum")
    one, other = deltas(world, a), {key: -0.5 * value for key, value in deltas(world, b).items()}
    product = sum(float((one[key] * other[key]).sum()) for key in one)
    sizes = [math.sqrt(sum(float(value.square().sum()) for value in each.values())) for each in (one, other)]
    (met,) = data["pairs"]
    assert met["cosine"] == pytest.approx(product / sizes[0] / sizes[1], rel=1e-4)
    assert [lora["norm"] for lora in data["loras"]] == pytest.approx(sizes, rel=1e-4)
    weights = [world.state[key.removeprefix("diffusion_model.") + ".weight"] for key in one]
    base = math.sqrt(sum(float(weight.square().sum()) for weight in weights))
    assert data["loras"][0]["over_base"] == pytest.approx(sizes[0] / base, rel=1e-4)
    total = math.sqrt(sum(float((one[key] + other[key]).square().sum()) for key in one))
    assert data["mode"]["numbers"]["total"] == pytest.approx(total, rel=1e-4) and f"size {total:.3g}" in text
    assert met["layers"] == len(one) == len(data["layers"]) and set(data["blocks"]) == {"joint_blocks.0"}
    assert abs(met["cosine"]) < 5 * met["spread"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_told_and_the_model_stays(world, clip, mode):
    before = world.model.patches_uuid
    text, picture, data = report(world, *two(world), mode=mode, clip=clip)
    assert data["mode"]["asked"] == mode and data["mode"]["became"] == ("sum" if mode == "auto" else mode)
    assert re.search(rf"^mode: {mode}", text, re.M) and "wet_otter × 1" in text and data["mode"]["numbers"]
    assert world.model.patches_uuid == before and not world.model.patches and not world.model.injections
    assert untouched(world.model) and not any(world.model.wrappers.values()) and not clip.asked


def test_klora_tells_what_apply_would_do(world):
    """Every layer's rule is Apply's own."""
    fused = pack_module("nodes.bridge").fuse_prepared
    wishes = pack_module("nodes.bridge_methods").Wishes("klora")
    stack = two(world)
    _, _, data = report(world, *stack, mode="klora")
    requests = pack_module("autolora_core.fusion.requests").requests_of(None, [(n, s, s) for n, s in stack])
    ready = pack_module("nodes.bridge_prepare").prepare(world.model, None, requests)
    _, made = fused(world.model, None, ready, wishes)
    early = [group.rule.early if group.rule.after >= 0 else group.rule.late
             for plan in made.plan.modules.values() for group in plan.groups]  # fmt: skip
    assert data["mode"]["numbers"]["early"] == {"0": early.count(0), "1": early.count(1)}


def test_a_large_model_is_told_by_a_sample(world, monkeypatch):
    module = pack_module("autolora_core.fusion.conflict_modes")
    all_of_it = report(world, *two(world), mode="np")[2]["mode"]
    sample = module.sample
    monkeypatch.setattr(module, "sample", lambda branches, channels: sample(branches, channels, 30000))
    text, _, data = report(world, *two(world), mode="np")
    looked, of = data["mode"]["sampled"]
    assert looked < of and f"told by {looked} of {of} layers, evenly spaced" in text and all_of_it["sampled"] is None
    taken = data["mode"]["numbers"]["taken"]["0"]
    assert taken == pytest.approx(all_of_it["numbers"]["taken"]["0"], rel=0.5) and len(data["layers"]) == of


def gate_on_fc1(factor: float = 0.5):
    from dataclasses import replace

    table = torch.zeros(2, 2, 2)
    table[0, 1, 0] = math.log(factor)
    layer = "joint_blocks.0.x_block.mlp.fc1"
    return {layer: replace(GateVectors.identity(256), roles=table)}


def test_a_gate_is_told_with_roles_and_those_hardly_asked_for(world):
    world.gate(gate_on_fc1())
    (a, _), (b, _) = two(world)
    faint = {**picked(b, "style"), "score": 0.3, "parts": {"text": 0.3}}
    text, _, data = report(world, mode="auto", selection=selection(picked(a, "subject"), faint))
    assert "mode: auto → gate (gate.safetensors)" in text
    assert "wet_otter (subject) passes × 0.50 on average" in text and "rough_paper (style) passes × 1.00" in text
    layers = data["mode"]["numbers"]["layers"]
    assert f"The gate stands on 1 of {layers} layers; the other {layers - 1} are summed." in text
    assert data["mode"]["numbers"]["asked"] == {"1": 0.3}
    assert "rough_paper is hardly asked for by the prompt: × 0.30" in text


def terms(lora: str, **how: str):
    return pack_module("nodes.time_and_place").AutoLoRATimeAndPlace().say(lora, **how)[0]


def test_strengths_by_block_are_measured(world):
    plain = report(world, *two(world), mode="sum")[2]["loras"]
    text, _, data = report(world, *two(world), mode="sum", terms=terms("otter", blocks="joint_blocks.0: 0.5"))
    assert data["loras"][0]["norm"] == pytest.approx(plain[0]["norm"] / 2, rel=1e-5)
    assert data["loras"][1]["norm"] == plain[1]["norm"] and "strength by block" in text


@pytest.mark.parametrize("mode", ["np", "ssr"])
def test_who_comes_and_goes_is_outside_a_static_mode(world, clip, mode):
    stack = (*two(world), (world.lora("third.safetensors", seed=3), 1.0))
    how = {"mode": mode, "clip": clip, "terms": terms("third", schedule="0.2-0.8")}
    text, _, data = report(world, *stack, **how)
    numbers = data["mode"]["numbers"]
    assert data["mode"]["became"] == mode and "strength along the sampling" in text
    assert numbers["loras"] == 2 if mode == "ssr" else set(numbers["taken"]) == {"0"}
    assert report(world, *stack[1:], **how)[2]["mode"]["became"] == "sum"


def test_few_step_loras_are_kept_outside(world):
    fast = world.lora("sd3_turbo_4steps.safetensors", seed=5)
    text, _, data = report(world, *two(world), (fast, 1.0), mode="composite")
    assert "2 evaluations a step" in text and "kept outside the gate and every other mode" in text
    assert len(data["pairs"]) == 3


def test_one_lora_has_no_pairs(world):
    (a, _), (b, _) = two(world)
    text, picture, data = report(world, (a, 1.0), (b, 0.0), mode="ties")
    assert text.startswith("No pairs: wet_otter is the only LoRA") and data["pairs"] == []
    assert "mode: ties → sum (1 LoRA to fuse: mode ties needs two)" in text and picture.shape[1] > 40


def test_layers_of_one_lora_alone_are_counted(world):
    a, b = world.lora("a.safetensors", "x_block", 1), world.lora("b.safetensors", "mlp", 2)
    text, _, data = report(world, (a, 1.0), (b, 1.0), mode="sum")
    shared = {one["module"] for one in data["layers"] if one["cosines"]}
    assert shared and all("mlp" in name and "x_block" in name for name in shared)
    assert data["loras"][0]["alone"] == data["loras"][0]["layers"] - len(shared) > 0 and "it alone touches" in text


def test_convolutions_are_measured(comfy, tmp_path, monkeypatch):
    from apply_world import World

    sd15 = tiny_models.sd15_state()
    place = World(tmp_path, sd15, tiny_models.load(sd15), monkeypatch)
    names = [place.lora(f"{n}.safetensors", "input_blocks.1", seed) for seed, n in enumerate("ab")]
    _, _, data = report(place, *((name, 1.0) for name in names), mode="sum")
    assert set(data["blocks"]) == {"input_blocks.1"} and data["pairs"][0]["layers"] == len(data["layers"]) > 5
    key = "diffusion_model.input_blocks.1.0.in_layers.2"
    (layer,) = [one for one in data["layers"] if key.endswith(one["module"])]
    assert layer["norms"]["0"] == pytest.approx(float(lora_delta(place.loras / names[0], key).norm()), rel=1e-4)


def test_quantised_weights_have_no_size(world):
    model = tiny_models.load(world.state, dtype=torch.float8_e4m3fn)
    weight = model.model.get_submodule("diffusion_model.joint_blocks.0.x_block.mlp.fc1").weight
    assert weight.dtype == torch.float8_e4m3fn
    text, _, data = report(world, *two(world), mode="sum", model=model)
    assert data["loras"][0]["over_base"] is None and "of the base's weights" not in text


class Packed(torch.Tensor):
    """As GGUF's: it says what it is not."""


def test_packed_weights_are_not_read(world):
    bridge, name = pack_module("nodes.bridge_conflicts"), "joint_blocks.0.x_block.mlp.fc1"
    layer = world.model.model.get_submodule("diffusion_model." + name)
    assert bridge.base_energy(world.model, name) > 0
    layer.weight = torch.nn.Parameter(layer.weight.data.as_subclass(Packed), requires_grad=False)
    assert bridge.base_energy(world.model, name) is None


def test_updates_that_cannot_be_measured_are_counted(world):
    (a, _), (b, _) = two(world)
    layer = "diffusion_model.joint_blocks.0.x_block.mlp.fc1"
    dora = {
        f"{layer}.lora_up.weight": torch.randn(256, 2),
        f"{layer}.lora_down.weight": torch.randn(2, 64),
        f"{layer}.dora_scale": torch.ones(256, 1),
    }
    text, _, data = report(world, (a, 1.0), (world.file("dora.safetensors", dora), 1.0), mode="auto")
    assert "1 layer as weight patches, not measured" in text and data["loras"][1]["patches"] == 1
    zero = world.lora("zero.safetensors", scale=0.0)
    text, _, data = report(world, (zero, 1.0), mode="ties")
    assert text.startswith("Nothing to compare") and "every update in the file is zero" in text
    assert data["layers"] == [] and data["mode"]["became"] == "sum"


def test_weights_that_others_have_patched_are_those_of_the_checkpoint(world):
    import comfy.model_management

    bridge = pack_module("nodes.bridge_conflicts")
    (a, _), _ = two(world)
    patched = world.stock((a, 5.0))
    name = "joint_blocks.0.x_block.mlp.fc1"
    expected = float(world.state[name + ".weight"].square().sum())
    comfy.model_management.load_models_gpu([patched])
    assert bridge.base_energy(patched, name) == pytest.approx(expected, rel=1e-5)
    assert float(patched.model.get_submodule("diffusion_model." + name).weight.square().sum()) > 1.01 * expected


def test_errors_are_those_of_apply(world, clip):
    errors = pack_module("autolora_core.errors")
    with pytest.raises(errors.SelectionError, match="no LoRA to report on"):
        report(world)
    (a, _), (b, _) = two(world)
    with pytest.raises(errors.SelectionError, match="strength 0"):
        report(world, (a, 0.0))
    with pytest.raises(errors.SelectionError, match="gone.safetensors"):
        report(world, ("gone.safetensors", 1.0))
    layers = {"diffusion_model.double_blocks.0.img_attn.qkv": (9216, 3072)}
    foreign = tiny_models.save_lora(world.loras / "foreign.safetensors", layers, 2)
    with pytest.raises(errors.FamilyError, match="foreign.*made for flux.*model is sd3"):
        report(world, (a, 1.0), (foreign.name, 1.0))
    with pytest.raises(errors.GateError):
        report(world, (a, 1.0), (b, 1.0), mode="gate")
    text, _, _ = report(world, (a, 1.0), (b, 1.0), mode="ssr")
    assert "needs CLIP" in text


def test_it_can_be_cancelled(world, monkeypatch):
    import comfy.model_management as management

    stack = two(world)
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        report(world, *stack, mode="sum")
    report(world, *stack, mode="sum")
    asked = []
    bridge = pack_module("nodes.bridge_conflicts")
    monkeypatch.setattr(bridge, "throw_if_interrupted", lambda: asked.append(1))
    _, _, data = report(world, *stack, mode="np")
    assert len(asked) == 2 * len(data["layers"])  # while measuring, and for what the mode does


def test_it_works_in_inference_mode(world):
    with torch.inference_mode():
        report(world, *two(world), mode="np")


def test_every_input_and_output_is_explained_on_the_page(world):
    node = pack_module("nodes.conflict_report").AutoLoRAConflictReport
    inputs = {name: spec for group in node.INPUT_TYPES().values() for name, spec in group.items()}
    assert all(len(spec[1]["tooltip"]) > 20 for spec in inputs.values())
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS) == 3
    assert node.OUTPUT_NODE and node.DESCRIPTION
    assert (node.CATEGORY, node.TITLE) == ("AutoLoRA", "LoRA Conflict Report")
    page = (ROOT / "web" / "docs" / "AutoLoRAConflictReport.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in (*inputs, *node.RETURN_NAMES))
    apply = pack_module("nodes.gated_apply").AutoLoRAGatedApply.INPUT_TYPES()
    same = {name: spec for group in apply.values() for name, spec in group.items()}
    assert set(inputs) == set(same) - {"record", "unique_id"}
    for name, spec in inputs.items():
        plain = [{k: v for k, v in one[1].items() if k not in ("tooltip", "step")} for one in (spec, same[name])]
        assert spec[0] == same[name][0] and plain[0] == plain[1]
