"""Proves that mode ssr asks the user's own base with the LoRAs' words, and when it remembers what it heard."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from apply_world import World, difference, sd3_fixtures
from comfy_local import pack_module
from methods_world import EXACT, FC1, QKV, delta, methods_fixtures, picked, selection, two, update
from reference_methods import ssr_ref
from word_clip import WordClip, layer_reads

state, world = sd3_fixtures(64)
clip, routers_elsewhere = methods_fixtures()


def read_ref(world: World, clip: WordClip, text: str, layer: str) -> torch.Tensor:
    """The layer's inputs for a text, (in, tokens), at the sigma of the calibration."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([world.model])
    sigma = float(world.model.get_model_object("model_sampling").percent_to_sigma(0.2))
    return layer_reads(world.model, clip, text, layer, sigma, 16).flatten(0, 1).T.double()


@pytest.mark.parametrize("layer", [FC1, QKV])
def test_ssr_is_the_formula_on_what_the_base_reads(world, clip, layer, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.setattr(pack_module("autolora_core.fusion.methods.ssr").Signals.router, "__defaults__", (1e-9,))
    (a, _), (b, _) = two(world)
    words = "an otter with wet brown fur", "thin water colour over rough paper"
    chosen = selection(picked(a, "subject", words[:1]), picked(b, "style", words[1:]))
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    model, _, report = node.apply(world.model, "ssr", clip=clip, selection=chosen)
    assert f"{a} was asked for by its trigger words: '{words[0]}'" in report
    files = [load_file(world.loras / name) for name in (a, b)]
    downs = [file[f"diffusion_model.{layer}.lora_down.weight"] for file in files]
    ups = [file[f"diffusion_model.{layer}.lora_up.weight"] * 0.5 for file in files]  # alpha is half the rank
    inputs = [read_ref(world, clip, text, layer) for text in words]
    expected = ssr_ref(downs, ups, inputs)
    x, added = update(world, model, layer)
    assert difference(added, x @ expected.T) <= 2e-3 * float((x @ expected.T).abs().max())
    assert difference(expected, sum(up @ down for up, down in zip(ups, downs, strict=True))) > 1e-2


def test_ssr_is_the_plain_sum_of_loras_without_words_of_their_own(world, clip):
    """All are asked with the same prompt: there is nothing to tell them apart by, and none gets quieter for it."""
    stack = [(world.lora(f"{name}.safetensors", seed=seed), 1.0) for seed, name in enumerate("xyz")]
    model, _, report = world.apply(*stack, mode="ssr", clip=clip)
    assert report.count("was asked for by no words at all") == 3 and len(clip.asked) == 1
    x, added = update(world, model, FC1)
    expected = x @ sum(delta(world, name, FC1) for name, _ in stack).T
    assert difference(added, expected) <= EXACT * float(expected.abs().max())


def test_ssr_needs_a_clip_and_says_so(world):
    with pytest.raises(pack_module("autolora_core.errors").SelectionError, match="no CLIP is connected.*connect"):
        world.apply(*two(world), mode="ssr")


def test_ssr_asks_the_model_once_whatever_the_strengths(world, clip, tmp_path):
    (a, _), (b, _) = two(world)
    one = tiny_models.sample(world.fused((a, 1.0), (b, 1.0), mode="ssr", clip=clip))
    asked = len(clip.asked)
    world.fused((a, 0.3), (b, 0.9), mode="ssr", clip=clip)
    assert asked == 2 == len(clip.asked)
    pack_module("nodes.bridge_ssr")._memory.clear()  # as after a restart
    assert tiny_models.sample(world.fused((a, 1.0), (b, 1.0), mode="ssr", clip=clip)).equal(one)
    assert len(clip.asked) == 2
    (kept,) = (tmp_path / "user" / "autolora" / ".routers").iterdir()
    kept.write_bytes(b"damaged")
    pack_module("nodes.bridge_ssr")._memory.clear()
    assert tiny_models.sample(world.fused((a, 1.0), (b, 1.0), mode="ssr", clip=clip)).equal(one)
    assert len(clip.asked) == 4


def test_ssr_finds_words_for_every_lora(world, clip):
    own_text = pack_module("nodes.bridge_ssr").own_text
    tensors = {f"diffusion_model.{FC1}.lora_A.weight": torch.ones(1, 64)}
    tensors[f"diffusion_model.{FC1}.lora_B.weight"] = torch.ones(256, 1)
    said = world.file("x1.safetensors", tensors, {"modelspec.trigger_phrase": "zx9 frog"})
    named, mute = world.file("green_frog.safetensors", tensors), world.file("a3f09bc2.safetensors", tensors)
    bridge, requests = pack_module("nodes.bridge_loras"), pack_module("autolora_core.fusion.requests")

    def text(name: str, prompt: str = "a frog", **more) -> str:
        request = requests.requests_of(selection(picked(name, "subject") | more), None)[0]
        return own_text(bridge.load(bridge.resolve(request), request), prompt)

    assert text(said, triggers=["toad"]) == ("toad", "its trigger words")
    assert text(said) == ("zx9 frog", "its trigger words") and text(named) == ("green frog", "its title")
    near = [{"name": "n", "words": "newt", "similarity": 0.5}]
    assert text(mute, neighbours=near) == ("newt", "the words of a LoRA near to it")
    assert text(mute) == ("a frog", "the prompt, having no words of its own")
    assert text(mute, prompt="") == ("", "no words at all")


def test_ssr_can_be_cancelled_and_leaves_no_hook(world, clip, monkeypatch):
    import comfy.model_management as management

    bridge = pack_module("nodes.bridge_ssr")

    def stop(*args, **kwargs):
        raise management.InterruptProcessingException

    monkeypatch.setattr(bridge, "run_once", stop)
    with pytest.raises(management.InterruptProcessingException):
        world.apply(*two(world), mode="ssr", clip=clip)
    assert not any(module._forward_pre_hooks for module in world.model.model.modules())
    assert not bridge._memory


def shifted(model, shift: float):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, shift)[0]


def test_ssr_asks_again_when_the_model_is_run_at_another_sigma_or_in_another_way(world, clip):
    stack, network = two(world), world.model.model.diffusion_model
    world.fused(*stack, mode="ssr", clip=clip)
    other = shifted(world.model, 9.0)
    world.fused(*stack, mode="ssr", clip=clip, model=other)
    assert len(clip.asked) == 4
    world.fused(*stack, mode="ssr", clip=clip, model=shifted(world.model, 9.0))  # told by the sigma, so known
    assert len(clip.asked) == 4
    patched = world.model.clone()
    patched.add_object_patch(f"diffusion_model.{FC1}.extra_repr", network.extra_repr)
    world.fused(*stack, mode="ssr", clip=clip, model=patched)
    assert len(clip.asked) == 6


@pytest.mark.parametrize("how", ["patch", "replace", "function", "wrapper"])
def test_ssr_remembers_nothing_of_a_model_that_foreign_code_steers(world, clip, tmp_path, how):
    """No name tells what a patch inside the network does: neither memory nor disk may answer for it."""
    from comfy.patcher_extension import WrappersMP

    stack = two(world)
    world.fused(*stack, mode="ssr", clip=clip)
    (kept,) = (tmp_path / "user" / "autolora" / ".routers").iterdir()
    steered = world.model.clone()
    if how == "patch":
        steered.set_model_double_block_patch(lambda args, extra: extra["original_block"](args))
    elif how == "replace":
        steered.set_model_attn2_replace(lambda args, extra: args, "output", 0)  # a block this network does not have
    elif how == "function":
        steered.set_model_unet_function_wrapper(lambda run, call: run(call["input"], call["timestep"], **call["c"]))
    else:
        steered.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "x", lambda run, *args, **more: run(*args, **more))
    for asked in (4, 6):
        world.fused(*stack, mode="ssr", clip=clip, model=steered)
        assert len(clip.asked) == asked
    assert list(kept.parent.iterdir()) == [kept] and len(pack_module("nodes.bridge_ssr")._memory) == 1
    world.fused(*stack, mode="ssr", clip=clip)
    assert len(clip.asked) == 6


def test_ssr_remembers_routers_by_their_bytes(comfy, monkeypatch):
    bridge = pack_module("nodes.bridge_ssr")
    monkeypatch.setattr(bridge, "REMEMBERED", 3000)
    small, large = {"m": torch.eye(16)}, {"m": torch.eye(28)}  # 1024 and 3136 bytes
    for key in "aba":
        bridge._remember(key, small)
    bridge._remember("c", large)
    assert list(bridge._memory) == ["b", "a"]
    bridge._remember("d", {"m": torch.eye(20)})
    assert list(bridge._memory) == ["a", "d"]
    monkeypatch.setattr(bridge, "MOST", 1)
    bridge._remember("e", small)
    assert list(bridge._memory) == ["e"]
