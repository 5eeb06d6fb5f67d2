"""Proves that the heat map shows what really passed of each LoRA, and that watching changes nothing."""

from __future__ import annotations

import json

import pytest
import tiny_models
import torch
from apply_world import sd3_fixtures, two
from comfy_local import pack_module
from methods_world import FC1, delta
from reference_fusion import gated_sum_ref, random_vectors
from test_apply_tilted import calls_of

from autolora_core.fusion.record import Recorder

state, world = sd3_fixtures(64)
SAMPLES = {"samples": torch.zeros(1, 16, 4, 4)}


def heat(model, shows: str = "passes"):
    image, text = pack_module("nodes.heat_map").AutoLoRAGateHeatMap().show(model, SAMPLES, shows)
    assert image.ndim == 4 and image.shape[-1] == 3 and 0 <= image.min() and image.max() <= 1
    return json.loads(text)


def test_watching_changes_nothing(world):
    a, b = two(world)
    for mode in ("sum", "energy", "switch", "composite", "klora"):
        watched = world.fused(a, b, mode=mode, record=True)
        assert torch.equal(
            tiny_models.sample(watched, steps=3), tiny_models.sample(world.fused(a, b, mode=mode), steps=3)
        )
        found = heat(watched)
        assert found["steps"] == [1, 2, 3] and [one["name"] for one in found["loras"]] == [a[0], b[0]]


def test_what_passes_a_gate_is_measured_in_the_model(world):
    """Of one layer and step: ‖g·y‖ / ‖y‖ and ‖g·y‖ / ‖y0‖ by the formula in float64."""
    a, b = two(world)
    vectors = random_vectors(world.state[FC1 + ".weight"].shape[0], 0)
    world.gate({FC1: vectors})
    model = world.fused(a, b, mode="gate", record=True)
    calls = calls_of(model, 3)
    (recorder,) = model.get_attachment(pack_module("nodes.bridge_record").KEY)
    found = recorder.heat()
    row = found.modules.index(FC1)
    weight, bias = world.state[FC1 + ".weight"].double(), world.state[FC1 + ".bias"].double()
    for step, (x, _) in enumerate(calls):
        y0 = x @ weight.T + bias
        for k, (name, _) in enumerate((a, b)):
            y = x @ delta(world, name, FC1).T
            passed = gated_sum_ref(y0.flatten(0, 1), [y.flatten(0, 1)], vectors) - y0.flatten(0, 1)
            assert found.passing()[step, row, k] == pytest.approx(float(passed.norm() / y.norm()), rel=1e-4)
            assert found.loudness()[step, row, k] == pytest.approx(float(passed.norm() / y0.norm()), rel=1e-4)


def test_modes_and_terms_are_seen(world):
    a, b = two(world)
    summed = world.fused(a, b, mode="sum", record=True, terms=terms("b", "0: 1, 0.5: 1, 0.5: 0.25"))
    tiny_models.sample(summed, steps=4)
    found = heat(summed)
    assert found["loras"][0]["passes"][0] == [1.0] * 4
    assert found["loras"][1]["passes"][0] == pytest.approx([1, 1, 0.25, 0.25], abs=1e-4)
    switched = world.fused(a, b, mode="switch", record=True)
    tiny_models.sample(switched, steps=4)
    assert [one["passes"][0] for one in heat(switched)["loras"]] == [[1, 0, 1, 0], [0, 1, 0, 1]]
    energy = world.fused(a, (b[0], 0.5), mode="energy", record=True)
    tiny_models.sample(energy, steps=2)
    assert all(0 < value < 1 for one in heat(energy)["loras"] for value in one["passes"][0])
    assert heat(energy, "loudness")["format"] == "autolora-heat/1"


def terms(*said):
    return pack_module("nodes.time_and_place").AutoLoRATimeAndPlace().say(*said)[0]


def test_the_last_sampling_counts(world):
    a, b = two(world)
    model = world.fused(a, b, mode="sum", record=True)
    for steps in (4, 2):
        tiny_models.sample(model, steps=steps)
        assert heat(model)["steps"] == list(range(1, steps + 1))


def test_a_layer_that_one_lora_lacks_is_empty(world):
    a = (world.lora("a.safetensors", seed=1), 1.0)
    b = (world.lora("b.safetensors", contains="mlp.fc1", seed=2), 1.0)
    model = world.fused(a, b, mode="sum", record=True)
    tiny_models.sample(model)
    found = heat(model)
    only_a = next(name for name in found["modules"] if "qkv" in name)
    assert found["modules"][only_a] == [1.0, None] and found["modules"][FC1] == [1.0, 1.0]


def test_errors_say_what_to_do(world):
    a, b = two(world)
    with pytest.raises(Exception, match="switch record on"):
        heat(world.fused(a, b))
    with pytest.raises(Exception, match="was not sampled"):
        heat(world.fused(a, b, record=True))
    with pytest.raises(Exception, match="mode ties makes one update"):
        heat(world.fused(a, b, mode="ties", record=True))


def test_two_apply_nodes_are_shown_side_by_side(world):
    a, b = two(world)
    first = world.fused(a, mode="sum", record=True)
    both = world.fused(b, mode="sum", record=True, model=first)
    merged = world.fused(b, mode="ties", record=True, model=first)
    tiny_models.sample(both, steps=2)
    assert [one["name"] for one in heat(both)["loras"]] == [a[0], b[0]]
    tiny_models.sample(merged, steps=2)
    assert [one["name"] for one in heat(merged)["loras"]][0] == a[0]


def test_weight_patches_alone_have_nothing_to_show(world):
    from safetensors.torch import load_file

    tensors = load_file(world.loras / world.lora("a.safetensors", contains="mlp.fc1", seed=1))
    ups = {key: value for key, value in tensors.items() if "lora_up" in key}
    dora = {key.replace("lora_up.weight", "dora_scale"): torch.ones(len(up), 1) for key, up in ups.items()}
    model = world.fused((world.file("dora.safetensors", {**tensors, **dora}), 1.0), record=True)
    tiny_models.sample(model)
    with pytest.raises(Exception, match="weight patches"):
        heat(model)


def test_a_sampler_that_looks_ahead_is_recorded_whole(world):
    import comfy.sample

    a, b = two(world)
    model = world.fused(a, b, mode="switch", record=True)
    noise = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    words = tiny_models.conditioning(11)
    comfy.sample.sample(
        model, noise, 5, 2.0, "heunpp2", "simple", words, words, torch.zeros_like(noise), seed=0, disable_pbar=True
    )
    assert heat(model)["steps"] == [1, 2, 3, 4, 5]


def test_composite_measures_each_lora_against_its_own_pass(world):
    a, b = two(world)
    loud = []
    for mode in ("sum", "composite"):
        model = world.fused(a, b, mode=mode, record=True)
        tiny_models.sample(model, steps=1)
        loud.append(heat(model, "loudness")["loras"][0]["loudness"][0][0])
    assert 0.8 < loud[0] / loud[1] < 1.25


def test_a_new_sampling_forgets_the_last():
    recorder = Recorder(["a"], ["m"])
    for run, steps in (("one", (0, 1, 2)), ("two", (0, 1))):
        for step in steps:
            recorder.begin(run, step, "cpu")
            recorder.base("m", torch.full((4,), 2.0))
            recorder.whole("m", 0, torch.ones(4))
            recorder.passed("m", 0, torch.full((4,), 0.5 * (step + 1)))
    found = recorder.heat()
    assert found.steps == [0, 1]
    assert found.passing()[:, 0, 0].tolist() == [0.5, 1.0] and found.loudness()[:, 0, 0].tolist() == [0.25, 0.5]
