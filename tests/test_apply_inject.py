"""Proves that our wrappers survive any neighbour: other packs wrap the same layer, and eject out of turn."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from comfy_local import pack_module


class Patcher(SimpleNamespace):
    """A stand-in for ComfyUI's: like it, it can be referred to weakly."""


class Foreign:
    """Another pack's injection, written the naive way: remember the forward, put it back on eject."""

    def __init__(self):
        self.before = None

    def inject(self, patcher):
        module = patcher.model.layer
        self.before = before = module.forward
        module.forward = lambda x: before(x) + 100

    def eject(self, patcher):
        if self.before is not None:
            patcher.model.layer.forward, self.before = self.before, None


@pytest.fixture
def inject(comfy):
    return pack_module("nodes.bridge_inject")


@pytest.fixture
def patcher():
    """What an injection sees of a ModelPatcher: the model, and the banks by key."""
    banks: dict[str, object] = {}
    model = torch.nn.Module()
    model.layer = torch.nn.Linear(3, 3)
    return Patcher(model=model, banks=banks, get_additional_models_with_key=lambda key: [banks[key]])


def ours(inject, patcher, key: str, amount: float):
    """An injection of ours whose fused layer adds a constant."""
    bank = SimpleNamespace(names=("layer",), layers=[lambda x, y0, own: y0 + amount])
    patcher.banks[key] = SimpleNamespace(model=bank)
    return inject.FusionInjection(key, "")


def run(patcher) -> float:
    """How much the wrappers add to the layer's own output."""
    layer, x = patcher.model.layer, torch.ones(3)
    return (layer(x) - torch.nn.functional.linear(x, layer.weight, layer.bias))[0].item()


def clean(patcher) -> bool:
    return "forward" not in patcher.model.layer.__dict__


@pytest.mark.parametrize("order", list(itertools.permutations(range(2))), ids=str)
def test_two_of_ours_ejected_in_any_order(inject, patcher, order):
    one, two = ours(inject, patcher, "a", 1), ours(inject, patcher, "b", 10)
    for _ in range(3):
        one.inject(patcher)
        two.inject(patcher)
        assert run(patcher) == pytest.approx(11)
        for index in order:
            (one, two)[index].eject(patcher)
        assert clean(patcher) and run(patcher) == 0


def test_inject_and_eject_twice_are_once(inject, patcher):
    one = ours(inject, patcher, "a", 1)
    one.inject(patcher)
    one.inject(patcher)
    assert run(patcher) == pytest.approx(1)
    one.eject(patcher)
    one.eject(patcher)
    assert clean(patcher)


@pytest.mark.parametrize("ours_first", [True, False])
def test_beside_a_naive_neighbour(inject, patcher, ours_first):
    """ComfyUI ejects in insertion order: the neighbour puts back what it saw, which may be a dead wrapper of ours."""
    one, foreign = ours(inject, patcher, "a", 1), Foreign()
    pair = (one, foreign) if ours_first else (foreign, one)
    for _ in range(4):
        for injection in pair:
            injection.inject(patcher)
        assert run(patcher) == pytest.approx(101)
        for injection in pair:
            injection.eject(patcher)
        assert run(patcher) == 0
    one.inject(patcher)
    assert run(patcher) == pytest.approx(1)
    one.eject(patcher)
    assert run(patcher) == 0


def test_a_buried_dead_wrapper_is_transparent_and_lets_go_of_its_factors(inject, patcher):
    one, foreign = ours(inject, patcher, "a", 1), Foreign()
    one.inject(patcher)
    buried = patcher.model.layer.forward.__self__
    foreign.inject(patcher)
    one.eject(patcher)
    assert run(patcher) == pytest.approx(100)
    assert not buried.live and buried.layer is None


def test_each_model_has_its_own_wrappers(inject, patcher):
    """Newer ComfyUI can give a patcher another model; ejecting from one must not touch the other."""
    one = ours(inject, patcher, "a", 1)
    other = Patcher(model=torch.nn.Module(), get_additional_models_with_key=patcher.get_additional_models_with_key)
    other.model.layer = torch.nn.Linear(3, 3)
    one.inject(patcher)
    one.inject(other)
    one.eject(patcher)
    assert clean(patcher) and run(other) == pytest.approx(1)
    one.eject(other)
    assert clean(other)


def test_an_injection_keeps_no_model_alive(inject, patcher):
    import gc
    import weakref

    one = ours(inject, patcher, "a", 1)
    one.inject(patcher)
    one.eject(patcher)
    model = weakref.ref(patcher.model)
    patcher.model = None
    gc.collect()
    assert model() is None
