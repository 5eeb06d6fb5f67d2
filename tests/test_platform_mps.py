"""Proves, on a device that refuses what an Apple GPU refuses, that what we do beside the model needs nothing else, and
that it gives the same pictures as on the CPU. ComfyUI itself runs on the device too, as it does on a Mac."""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest
import tiny_models
import torch
from apply_world import difference, sd3_fixtures
from comfy_local import pack_module
from fake_mps import MPS, FakeMps, NoDoubles, OnMps, Refused
from methods_world import FC1, QKV, methods_fixtures, two
from reference_fusion import random_vectors
from test_apply_methods import METHODS
from test_apply_terms import terms
from test_train_gate_comfy import Halves
from word_clip import WordClip

state, world = sd3_fixtures(64)
clip, routers_elsewhere = methods_fixtures()
SAME = 2e-5
# ssr asks the base on the device; patches of weights are made in half precision by newer ComfyUI, but for the CPU.
LOOSER = {"ssr": 2e-3, "ties": 1e-3, "dare": 1e-3, "magnitude": 1e-3}


@contextmanager
def a_mac(monkeypatch: pytest.MonkeyPatch, bfloat16: bool = True):
    """ComfyUI on the device: models are loaded to it and sampled on it."""
    import comfy.model_management as management

    management.unload_all_models()
    with monkeypatch.context() as patch:
        patch.setattr(management, "get_torch_device", lambda: MPS)
        patch.setattr(management, "unet_offload_device", lambda: torch.device("cpu"))
        patch.setattr(management, "mac_version", lambda: (14, 5) if bfloat16 else (13, 6), raising=False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with FakeMps(bfloat16), torch.no_grad():
                yield
                management.unload_all_models()
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.fixture
def mac(comfy, world, monkeypatch):
    """The world's model, loaded on a Mac."""
    with a_mac(monkeypatch):
        yield tiny_models.load(world.state)


def used_the_device(model) -> bool:
    return any(isinstance(value, OnMps) for value in model.model.diffusion_model.state_dict().values())


def both(world, monkeypatch, make, **how) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of ``make(model)`` on the CPU and on the Mac."""
    here = tiny_models.sample(make(world.model), **how)
    with a_mac(monkeypatch):
        there = tiny_models.sample(make(tiny_models.load(world.state)), **how)
    return here, there


def test_the_device_refuses_what_the_real_one_refuses(comfy) -> None:
    with FakeMps(bfloat16=False), torch.no_grad():
        x = torch.arange(6.0).view(2, 3).to(MPS)
        assert x.device.type == "mps" and x.cpu().equal(torch.arange(6.0).view(2, 3))
        for wrong in (
            lambda: x.double(), lambda: torch.zeros(2, dtype=torch.float64).to(MPS), lambda: x.bfloat16(),
            lambda: x.sum(dtype=torch.float64), lambda: torch.zeros(2, device=MPS, dtype=torch.float64),
            lambda: x.to(torch.float8_e4m3fn),
        ):  # fmt: skip
            with pytest.raises(Refused):
                wrong()
        with pytest.raises(RuntimeError, match="on cpu and on mps"):
            x + torch.ones(3)
        with pytest.raises(NotImplementedError):
            x.flatten().kthvalue(2)
        with pytest.raises(RuntimeError, match="divisible"):
            torch.nn.functional.adaptive_avg_pool2d(x[None], (1, 2))
        x[0] = 7
        assert (x * 2).sum().item() == 2 * (7 * 3 + 3 + 4 + 5) and x.double


def test_the_model_runs_on_the_device(mac) -> None:
    tiny_models.sample(mac)
    assert used_the_device(mac)


def test_the_sum_is_that_of_the_cpu(world, monkeypatch) -> None:
    stack = two(world)
    here, there = both(world, monkeypatch, lambda model: world.apply(*stack, model=model)[0])
    assert difference(here, there) < SAME < difference(here, tiny_models.sample(world.model))


@pytest.mark.parametrize("mode", METHODS)
def test_every_mode(world, clip, monkeypatch, mode) -> None:
    stack = two(world)
    here, there = both(world, monkeypatch, lambda model: world.apply(*stack, model=model, mode=mode, clip=clip)[0])
    assert difference(here, there) < LOOSER.get(mode, SAME)
    assert difference(here, tiny_models.sample(world.model)) > 1e-3


@pytest.mark.parametrize("roles", [False, True])
def test_a_gate(world, monkeypatch, roles) -> None:
    stack = two(world)
    vectors = random_vectors(world.state[FC1 + ".weight"].shape[0], 0)
    if roles:
        from dataclasses import replace

        table = torch.tensor([[[0.5, 0.2], [0.1, -0.1]], [[-0.5, 0.0], [0.2, 0.3]]])
        vectors = replace(vectors, roles=table, power=0.3)
    world.gate({FC1: vectors})
    here, there = both(world, monkeypatch, lambda model: world.apply(*stack, model=model, mode="gate")[0])
    assert difference(here, there) < SAME


def test_time_and_place(world, monkeypatch) -> None:
    """A mask of a size that no grid divides."""
    stack, mask = two(world), torch.zeros(1, 37, 53)
    mask[:, :20] = 1
    told = terms("*", "0: 1, 0.5: 0.2", mask=mask)
    here, there = both(world, monkeypatch, lambda model: world.apply(*stack, model=model, mode="sum", terms=told)[0])
    assert difference(here, there) < SAME


def test_the_heat_map(world, monkeypatch) -> None:
    stack = two(world)
    found = []

    def watched(model):
        found.append(world.apply(*stack, model=model, mode="energy", record=True)[0])
        return found[-1]

    both(world, monkeypatch, watched)
    show = pack_module("nodes.heat_map").AutoLoRAGateHeatMap().show
    tables = []
    for model, context in zip(found, (None, FakeMps()), strict=True):
        if context is None:
            _, text = show(model, {"samples": torch.zeros(1, 16, 4, 4)}, "passes")
        else:
            with context, torch.no_grad():
                _, text = show(model, {"samples": torch.zeros(1, 16, 4, 4)}, "passes")
        tables.append([np.array(one["passes"], float) for one in json.loads(text)["loras"]])
    assert np.abs(np.array(tables[0]) - np.array(tables[1])).max() < 1e-3


@pytest.mark.parametrize("mode", ["sum", "ties", "klora", "np", "dare"])
def test_the_conflict_report(world, clip, monkeypatch, mode) -> None:
    stack = [(name, strength, strength) for name, strength in two(world)]
    node = pack_module("nodes.conflict_report").AutoLoRAConflictReport()

    def told(model) -> str:
        tiny_models.sample(model)  # so that its weights are where they are sampled
        return node.report(model, lora_stack=stack, mode=mode, clip=clip)["result"][2]

    here = json.loads(told(world.model))
    with a_mac(monkeypatch):
        there = json.loads(told(tiny_models.load(world.state)))
    for one in (*here["loras"], *there["loras"]):
        del one["over_base"]  # weights that are a class of their own, as those of this device, are not looked at
    assert here["loras"] == there["loras"] and len(here["layers"]) == len(there["layers"])


@pytest.mark.parametrize("mode", ["sum", "ties", "magnitude"])
def test_save_merged(world, monkeypatch, mode) -> None:
    from safetensors.torch import load_file

    stack = [(name, strength, strength) for name, strength in two(world)]
    node = pack_module("nodes.save_merged").AutoLoRASaveMerged()

    def merged(model, name: str) -> dict[str, torch.Tensor]:
        tiny_models.sample(model)
        node.save(model, name, mode, "float32", 1.0, lora_stack=stack)
        return load_file(world.loras / f"{name}.safetensors")

    here = merged(world.model, "here")
    with a_mac(monkeypatch):
        there = merged(tiny_models.load(world.state), "there")
    assert here.keys() == there.keys()
    assert max(difference(here[key], there[key]) for key in here) < 1e-4


def test_what_the_layers_read(world, monkeypatch) -> None:
    """Retrieve asks the LoRAs through the model."""
    states = pack_module("nodes.bridge_states")
    texts = ["red fox", "otter"]

    def recorded(model):
        source = states.ModelStates(model, WordClip())
        source.family = "sd3"
        return next(iter(source.record(texts, [QKV, FC1], None)))

    here = recorded(world.model)
    with a_mac(monkeypatch):
        there = recorded(tiny_models.load(world.state))
    for name, tokens in here.tokens.items():
        assert np.abs(tokens - there.tokens[name]).max() < 1e-3


def test_what_loras_answer(comfy) -> None:
    response = pack_module("autolora_core.encode.response").response
    table_of = pack_module("autolora_core.encode.factor_table").FactorTable.packed
    states = pack_module("autolora_core.encode.input_states")
    rng = np.random.default_rng(0)
    rows = {f"{n:064d}": {QKV: (rng.integers(-127, 127, (2, 8)).astype(np.int8), np.ones(2, np.float32))}
            for n in range(5)}  # fmt: skip
    tokens = states.TextStates(np.array([3, 2]), {QKV: rng.normal(size=(5, 8)).astype(np.float32)})
    means = {QKV: np.zeros((1, 8), np.float32)}
    here = response(table_of(rows), tokens, means)
    with FakeMps(), torch.no_grad():
        there = response(table_of(rows), tokens, means, MPS)
    np.testing.assert_allclose(here, there, rtol=1e-5)


@pytest.mark.slow
def test_training_a_gate_needs_no_float64_in_the_model(world, clip, monkeypatch) -> None:
    """Gradients included. On the CPU: the device here has none."""
    module, paths = pack_module("nodes.bridge_train_gate"), pack_module("nodes.bridge_paths")
    monkeypatch.setattr(paths, "model_folders", lambda: [str(world.gates)])
    names = [world.lora(f"{name}.safetensors", "x_block", seed, scale=0.4) for seed, name in enumerate(("ink", "fox"))]
    real, calls = module.work_on, []

    def strict(model, material, job) -> None:
        def watched(studio) -> None:
            calls.append(studio)
            with NoDoubles():
                job(studio)

        real(model, material, watched)

    monkeypatch.setattr(module, "work_on", strict)
    node = pack_module("nodes.train_gate").AutoLoRATrainFusionGate()
    stack = [(name, 1.0, 1.0) for name in names]
    out = node.train(world.model, clip, Halves(), 3, 2, 32, 32, 2, 1.0, lora_stack=stack)
    assert "3 steps on 2 LoRAs" in out["result"][1] and len(calls) >= 2
    with NoDoubles(), pytest.raises(Refused):
        torch.zeros(1).double()


def test_bfloat16_loras_on_a_mac_that_has_none(world, monkeypatch) -> None:
    """Before macOS 14: factors are kept in float32 there."""
    layers = tiny_models.linear_layers(world.state, "joint_blocks")
    tiny_models.save_lora(world.loras / "a.safetensors", layers, 4, 1, 0.15)
    from safetensors.torch import load_file, save_file

    half = {key: value.bfloat16() for key, value in load_file(world.loras / "a.safetensors").items()}
    save_file(half, world.loras / "b.safetensors")
    here = tiny_models.sample(world.apply(("b.safetensors", 1.0))[0])
    with a_mac(monkeypatch, bfloat16=False):
        model = world.apply(("b.safetensors", 1.0), model=tiny_models.load(world.state))[0]
        there = tiny_models.sample(model)
    assert difference(here, there) < 1e-3


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cpu", "cpu"), ("cuda:1", "cuda"), ("mps", "cpu"), ("xpu", "cpu"), ("privateuseone", "cpu"), ("meta", "cpu")],
)
def test_where_sums_are_made(device, expected) -> None:
    assert pack_module("autolora_core.portable").reckoning_device(device).type == expected
