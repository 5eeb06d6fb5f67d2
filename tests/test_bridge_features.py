"""Proves that both ends of the range of ComfyUI versions are recognised by what they have, whichever of them runs here.

Each question is asked of a ComfyUI that lacks the thing and of one that has it, both made of the real one.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from comfy_local import ROOT, pack_module


@pytest.fixture
def features(comfy):
    return pack_module("nodes.bridge_features")


def test_the_patcher_is_the_newest_kind_there_is(features, monkeypatch):
    import comfy.model_patcher

    monkeypatch.delattr(comfy.model_patcher, "CoreModelPatcher", raising=False)
    assert features.patcher_class() is comfy.model_patcher.ModelPatcher
    swapped = type("ModelPatcherDynamic", (comfy.model_patcher.ModelPatcher,), {})
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", swapped, raising=False)
    assert features.patcher_class() is swapped


def test_memory_that_ran_out_is_told_by_comfyui(features, monkeypatch):
    import comfy.model_management

    class Accelerator(RuntimeError):
        pass

    monkeypatch.setattr(comfy.model_management, "OOM_EXCEPTION", MemoryError)
    monkeypatch.delattr(comfy.model_management, "is_oom", raising=False)
    assert features.is_out_of_memory(MemoryError()) and not features.is_out_of_memory(Accelerator())
    monkeypatch.setattr(comfy.model_management, "is_oom", lambda e: isinstance(e, Accelerator), raising=False)
    assert features.is_out_of_memory(Accelerator()) and not features.is_out_of_memory(ValueError())


@pytest.mark.parametrize("newest", [False, True])
def test_an_error_of_the_network_is_explained_but_memory_is_not(features, monkeypatch, newest):
    """The node that asks is ``bridge_once``: it must let either end's memory errors through as they are."""
    import comfy.model_management

    once, errors = pack_module("nodes.bridge_once"), pack_module("autolora_core.errors")
    memory = type("OutOfMemory", (RuntimeError,), {})
    monkeypatch.setattr(comfy.model_management, "OOM_EXCEPTION", type(None) if newest else memory)
    monkeypatch.delattr(comfy.model_management, "is_oom", raising=False)
    if newest:
        monkeypatch.setattr(comfy.model_management, "is_oom", lambda e: isinstance(e, memory), raising=False)
    with pytest.raises(memory), once._explained():
        raise memory("no room")
    with pytest.raises(errors.AutoLoRAError, match="another shape"), once._explained():
        raise RuntimeError("another shape")


def test_the_bypass_loader_may_be_absent(features, monkeypatch):
    import comfy.sd

    monkeypatch.delattr(comfy.sd, "load_bypass_lora_for_models", raising=False)
    assert features.bypass_loader() is None
    monkeypatch.setattr(comfy.sd, "load_bypass_lora_for_models", print, raising=False)
    assert features.bypass_loader() is print


def test_a_weight_without_patches_is_found_wherever_it_is_kept(features):
    now, kept = torch.ones(2), torch.zeros(2)
    assert features.unpatched(SimpleNamespace(), "w", now) is now
    assert features.unpatched(SimpleNamespace(backup={}), "w", now) is now
    assert features.unpatched(SimpleNamespace(backup={"w": SimpleNamespace(weight=kept)}), "w", now) is kept
    assert features.unpatched(SimpleNamespace(backup={"w": kept}), "w", now) is kept


def test_the_real_patcher_keeps_the_weight_where_it_is_looked_for(features, comfy):

    class Net(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

    net, cpu = Net(), torch.device("cpu")
    before = net.layer.weight.detach().clone()
    patcher = features.patcher_class()(net, load_device=cpu, offload_device=cpu)
    patcher.add_patches({"layer.weight": ("diff", (torch.ones(2, 2),))})
    patcher.patch_model(cpu)
    try:
        assert not net.layer.weight.equal(before)
        assert features.unpatched(patcher, "layer.weight", net.layer.weight).equal(before)
        assert features.injections_of(patcher) == {} and features.injections_of(SimpleNamespace()) == {}
    finally:
        patcher.unpatch_model(cpu)


def test_the_sizes_of_a_weight_are_those_of_the_layer(features):
    packed = SimpleNamespace(shape=(2, 34), tensor_shape=(2, 64))
    assert features.true_shape(packed) == (2, 64)
    assert features.weight_shape(SimpleNamespace(weight=packed, in_features=64, out_features=4)) == (4, 64)
    assert features.weight_shape(SimpleNamespace(weight=packed)) == (2, 64)
    assert features.weight_shape(torch.nn.Conv2d(3, 5, 1)) == (5, 3, 1, 1)
    assert features.weight_shape(torch.nn.LayerNorm(6)) == (6,)
    assert features.weight_shape(torch.nn.SiLU()) is None


def test_what_a_network_does_not_say_is_the_usual(features):
    assert features.padded_to(SimpleNamespace()) == 1
    assert features.padded_to(SimpleNamespace(pad_tokens_multiple=None)) == 1
    assert features.padded_to(SimpleNamespace(pad_tokens_multiple=32)) == 32
    assert not features.has_reference_rows(SimpleNamespace())
    assert not features.has_reference_rows(SimpleNamespace(ref_conv=None))
    assert features.has_reference_rows(SimpleNamespace(ref_conv=torch.nn.Identity()))


def test_no_other_file_asks():
    """No version number is compared anywhere, and no other file of ``nodes`` knows the names asked for here."""
    asked = ("CoreModelPatcher", "OOM_EXCEPTION", "is_oom", "bypass_lora", "pad_tokens_multiple", "tensor_shape")
    for file in sorted((ROOT / "nodes").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert "comfyui_version" not in text and "__version__" not in text, file.name
        if file.name != "bridge_features.py":
            assert [name for name in asked if name in text] == [], file.name
