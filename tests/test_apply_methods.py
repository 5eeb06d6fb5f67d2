"""Proves that the training-free modes do in real ComfyUI what they say: on weights, in activations, step by step."""

from __future__ import annotations

import gc

import pytest
import tiny_models
import torch
from apply_world import World, difference, sd3_fixtures, untouched
from comfy_local import pack_module
from methods_world import EXACT, FC1, delta, methods_fixtures, picked, selection, two, update
from reference_methods import np_ref, ties_ref

METHODS = ["energy", "ties", "dare", "magnitude", "klora", "np", "ssr", "switch", "composite"]
each = pytest.mark.parametrize("mode", METHODS)
state, world = sd3_fixtures(64)
clip, routers_elsewhere = methods_fixtures()


@each
def test_every_mode_changes_the_picture_and_leaves_no_trace(world, clip, mode):
    stack = two(world)
    before = tiny_models.sample(world.model)
    fused, _, report = world.apply(*stack, mode=mode, clip=clip)
    assert report.startswith(f"mode: {mode} (asked for)")
    one = tiny_models.sample(fused)
    summed = tiny_models.sample(world.fused(*stack, mode="sum"))
    assert difference(one, before) > 0.01 and difference(one, summed) > 1e-3
    assert tiny_models.sample(world.model).equal(before)
    assert difference(tiny_models.sample(fused.clone()), one) <= 1e-6
    del fused
    gc.collect()
    assert tiny_models.sample(world.model).equal(before) and untouched(world.model)
    assert not world.model.patches and not world.model.injections and not any(world.model.wrappers.values())


@each
def test_one_lora_in_every_mode_is_the_stock_loader(world, clip, mode):
    (a, _), (b, _) = two(world)
    model, _, report = world.apply((a, 0.8), (b, 0.0), mode=mode, clip=clip, density=0.1)
    assert f"mode: sum (1 LoRA to fuse: mode {mode} needs two)" in report
    assert difference(tiny_models.sample(model), tiny_models.sample(world.stock((a, 0.8)))) <= EXACT
    assert not clip.asked


@each
def test_strength_counts_and_0_is_absent(world, clip, mode):
    (a, _), (b, _) = two(world)
    none, _, report = world.apply((a, 0.0), (b, 0.0), mode=mode, clip=clip)
    assert none is world.model and "strength 0, absent" in report
    weak, strong = (tiny_models.sample(world.fused((a, s), (b, s), mode=mode, clip=clip)) for s in (0.2, 1.0))
    base = tiny_models.sample(world.model)
    assert 1e-4 < difference(weak, base) < difference(strong, base)


@each
def test_few_step_loras_stay_outside(world, clip, mode, monkeypatch):
    # ssr asks the base it is given, and one of the two has the fast LoRA in it: the routers of the first serve both.
    monkeypatch.setattr(pack_module("nodes.bridge_ssr"), "_key", lambda *_: "one")
    (a, _), (b, _) = two(world)
    fast = world.lora("sd3_turbo_4steps.safetensors", seed=5)
    model, _, report = world.apply((a, 1.0), (fast, 1.0), mode=mode, clip=clip)
    assert "mode: sum (1 LoRA to fuse" in report
    assert difference(tiny_models.sample(model), tiny_models.sample(world.stock((a, 1.0), (fast, 1.0)))) <= EXACT
    model, _, report = world.apply((a, 1.0), (b, 1.0), (fast, 1.0), mode=mode, clip=clip)
    assert f"kept additive, outside mode {mode}: the file name says 'turbo'" in report
    without = world.fused((a, 1.0), (b, 1.0), mode=mode, clip=clip, model=world.stock((fast, 1.0)))
    assert difference(tiny_models.sample(model), tiny_models.sample(without)) <= EXACT


def test_ties_goes_into_the_weights(world):
    (a, _), (b, _) = two(world)
    model = world.fused((a, 1.0), (b, -0.5), mode="ties", density=0.3)
    assert not model.get_additional_models() and len(model.patches) == len(set(model.patches))
    x, added = update(world, model, FC1)
    expected = ties_ref([delta(world, a, FC1), -0.5 * delta(world, b, FC1)], 0.3)
    assert difference(added, x @ expected.T) <= EXACT


@pytest.mark.parametrize("mode", ["dare", "magnitude"])
def test_density_1_is_the_sum(world, mode):
    stack = two(world)
    one = tiny_models.sample(world.fused(*stack, mode=mode, density=1.0))
    assert difference(one, tiny_models.sample(world.stock(*stack))) <= EXACT


def test_dare_draws_the_same_numbers_again_and_by_content(world):
    (a, _), (b, _) = two(world)
    one = tiny_models.sample(world.fused((a, 1.0), (b, 1.0), mode="dare"))
    (world.loras / a).rename(world.loras / "renamed.safetensors")
    again = tiny_models.sample(world.fused(("renamed.safetensors", 1.0), (b, 1.0), mode="dare"))
    assert one.equal(again)


def test_dense_modes_under_partial_loading(world, monkeypatch):
    import comfy.model_management as management

    model = world.fused(*two(world), mode="ties")
    full = tiny_models.sample(model)
    management.unload_all_models()
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    assert difference(tiny_models.sample(model), full) <= 1e-6 and model.model.lowvram_patch_counter > 0


def test_a_dense_patch_survives_being_copied_by_its_two_attributes(world):
    """Newer ComfyUI rebuilds adapters as ``type(it)(it.loaded_keys, it.weights)`` when it streams layers."""
    model = world.fused(*two(world), mode="magnitude")
    key = f"diffusion_model.{FC1}.weight"
    (patch,) = model.patches[key]
    copy = type(patch[1])(patch[1].loaded_keys, tuple(patch[1].weights))
    one, two_ = (p.calculate_weight(torch.zeros(256, 64), key, 1.0, 1.0, None, lambda a: a) for p in (patch[1], copy))
    assert one.equal(two_) and one.any()


@pytest.mark.parametrize("swap", [False, True])
def test_np_takes_roles_from_the_retriever(world, swap):
    (a, _), (b, _) = two(world)
    chosen = selection(picked(a, "style"), picked(b, "subject"))
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    model, _, report = node.apply(world.model, "np", selection=chosen, mu=0.5, swap_roles=swap)
    subject, style = (a, b) if swap else (b, a)
    assert f"{style} is taken for the style" in report and f"{subject} is taken for the subject" in report
    from safetensors.torch import load_file

    down = load_file(world.loras / style)[f"diffusion_model.{FC1}.lora_down.weight"]
    x, added = update(world, model, FC1)
    expected = np_ref(delta(world, subject, FC1), delta(world, style, FC1), down, 0.5)
    assert difference(added, x @ expected.T) <= EXACT


def test_energy_is_never_louder_than_the_loudest(world):
    (a, _), (b, _) = two(world)
    x, added = update(world, world.fused((a, 1.0), (b, 1.0), mode="energy"), FC1)
    loud = [(x @ delta(world, name, FC1).T).norm(dim=-1) for name in (a, b)]
    total = (x @ (delta(world, a, FC1) + delta(world, b, FC1)).T).norm(dim=-1)
    assert difference(added.norm(dim=-1), torch.minimum(total, torch.maximum(*loud))) <= EXACT


def live_loras(world: World, model, names: list[str], **how) -> list[list[str]]:
    """For every evaluation, which LoRA alone explains what FC1 put out."""
    calls, found = [], []
    module = model.model.get_submodule("diffusion_model." + FC1)
    handle = module.register_forward_hook(lambda _, args, out: calls.append((args[0].double(), out.double())))
    try:
        tiny_models.sample(model, **how)
    finally:
        handle.remove()
    weight, bias = world.state[FC1 + ".weight"].double(), world.state[FC1 + ".bias"].double()
    for x, out in calls:
        added = out - x @ weight.T - bias
        found.append([n for n in names if difference(added, x @ delta(world, n, FC1).T) <= EXACT])
    return found


def test_switch_takes_one_lora_a_step(world):
    (a, _), (b, _) = two(world)
    names = [a, b]
    seen = live_loras(world, world.fused((a, 1.0), (b, 1.0), mode="switch"), names, steps=4)
    assert seen == [[a], [b], [a], [b]]
    seen = live_loras(world, world.fused((a, 1.0), (b, 1.0), mode="switch", interval=2), names, steps=5)
    assert seen == [[a], [a], [b], [b], [a]]


def test_klora_takes_one_lora_a_layer_and_step(world):
    (a, _), (b, _) = two(world)
    model, _, report = world.apply((a, 1.0), (b, 1.0), mode="klora")
    seen = live_loras(world, model, [a, b], steps=8)
    assert all(len(one) == 1 for one in seen) and [a] == seen[0] and [b] == seen[-1]
    assert f"{a} is taken for the subject" in report


def test_the_bar_of_klora_reaches_its_end(world, monkeypatch):
    """It counts the layers of the LoRAs in the mode, not those that a few-step LoRA alone has."""
    seen = []
    monkeypatch.setattr(pack_module("nodes.bridge_methods"), "Bar", lambda: lambda *told: seen.append(told[:2]))
    names = [world.lora(f"{name}.safetensors", "x_block", seed) for seed, name in enumerate("ab")]
    fast = world.lora("sd3_turbo_4steps.safetensors", seed=5)
    world.apply((fast, 1.0), *((name, 1.0) for name in names), mode="klora")
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))


def denoised(model, sigma: float = 0.6) -> torch.Tensor:
    """What the model makes of one noisy latent, through the wrappers that sampling would use."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    x = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    ((states, extra),) = tiny_models.conditioning(11)
    options = {"wrappers": model.wrappers, "sigmas": torch.tensor([sigma]), "sample_sigmas": torch.tensor([1, 0.6, 0])}
    call = {"c_crossattn": states, "y": extra["pooled_output"], "transformer_options": options}
    with torch.inference_mode():
        return model.model.apply_model(x, torch.tensor([sigma]), **call)


def test_composite_is_the_mean_of_single_predictions(world):
    stack = (*two(world), (world.lora("c.safetensors", "x_block", seed=9), 0.5))
    expected = sum(denoised(world.stock(one)) for one in stack) / 3
    assert difference(denoised(world.fused(*stack, mode="composite")), expected) <= EXACT
    assert difference(denoised(world.stock(*stack)), expected) > 1e-3


def test_composite_gives_every_evaluation_the_whole_control(world):
    """A UNet pops its residuals off the lists: the second LoRA must find them too."""
    composer = pack_module("nodes.bridge_moment")._composer
    moment = pack_module("autolora_core.fusion.moment").Moment()
    seen = []

    def executor(x, t, c_concat, c_crossattn, control, options, **others):
        seen.append((moment.only, control["input"].pop(), others))
        return x

    control, x = {"input": [1, 2]}, torch.ones(1)
    out = composer(moment, (4, 7))(executor, x, x, control=control, y=5)
    assert seen == [(4, 2, {"y": 5}), (7, 2, {"y": 5})] and out.equal(x)
    assert control == {"input": [1, 2]} and moment.only is None


def test_wrappers_of_others_and_two_nodes_in_a_row(world):
    """Two Switch nodes each count for themselves; a foreign wrapper still sees every evaluation."""
    from comfy.patcher_extension import WrappersMP

    (a, _), (b, _) = two(world)
    c, d = world.lora("c.safetensors", seed=7), world.lora("d.safetensors", seed=8)
    model = world.fused((c, 1.0), (d, 1.0), mode="composite", model=world.fused((a, 1.0), (b, 1.0), mode="switch"))
    calls = []

    def foreign(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "foreign", foreign)
    out = tiny_models.sample(model, steps=2)
    assert len(calls) in (2, 4) and torch.isfinite(out).all()
    calls.clear()
    assert difference(tiny_models.sample(model.clone(), steps=2), out) <= 1e-6


def test_the_menu_offers_every_mode(world):
    inputs = pack_module("nodes.gated_apply").AutoLoRAGatedApply.INPUT_TYPES()
    menu, options = inputs["required"]["mode"]
    assert menu == ["auto", "gate", "sum", *METHODS] and all(f"{mode}" in options["tooltip"] for mode in menu)
