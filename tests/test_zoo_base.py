"""Proves that our training model is ComfyUI's own SD3 network, and that the optimiser, the schedule and the budget of
a training do what they say.
"""

from __future__ import annotations

import argparse
import math

import pytest
import torch

from zoo import cache, train_base
from zoo.budget import Budget, add_options, chosen
from zoo.mmdit import MMDiT, MMDiTConfig
from zoo.optimiser import Optimiser, is_matrix, orthogonal, split_work
from zoo.sampler import schedule
from zoo.train_base import attach, draw_times, slots_of


def lively(depth: int = 2) -> MMDiT:
    """A small model whose zero-initialised layers are random too, so that every path matters."""
    model = MMDiT(MMDiTConfig(depth=depth)).eval()
    for p in model.parameters():
        if p.abs().sum() == 0:
            torch.nn.init.normal_(p, std=0.05)
    return model


def test_forward_equals_comfyui(comfy):
    import comfy.sd

    ours = lively()
    state = {k: v.detach().clone() for k, v in ours.state_dict().items()}
    patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})
    network = patcher.model.diffusion_model.to(torch.float32)
    x, context, pooled = torch.randn(2, 16, 16, 16), torch.randn(2, 24, 384), torch.randn(2, 384)
    t = torch.tensor([0.2, 0.9])
    with torch.inference_mode():
        theirs = network(x, t * 1000, context=context, y=pooled)
        mine = ours(x, t, context, pooled)
    assert theirs.std() > 0.05
    assert (mine - theirs).abs().max() < 2e-4


def test_comfyui_detects_the_configuration(comfy):
    import comfy.model_detection

    found = comfy.model_detection.detect_unet_config(MMDiT().state_dict(), "")
    assert (found["depth"], found["in_channels"], found["adm_in_channels"], found["qk_norm"]) == (4, 16, 384, "rms")


def test_schedule_equals_comfyui(comfy):
    import comfy.model_sampling
    import comfy.samplers

    class Config:
        sampling_settings = {"shift": 3.0, "multiplier": 1000}

    sampling = comfy.model_sampling.ModelSamplingDiscreteFlow(Config)
    theirs = comfy.samplers.calculate_sigmas(sampling, "simple", 20)
    assert (schedule(20) - theirs).abs().max() < 2e-3


def test_orthogonal_brings_singular_values_near_one():
    for shape in ((3, 8, 24), (3, 24, 8)):
        sigma = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
        assert 0.5 < sigma.min() and sigma.max() < 1.4


def test_work_is_split_without_gap_or_overlap():
    slots = slots_of(MMDiT())
    shares = split_work(slots, 2)
    names = [s.name for share in shares for s in share]
    assert sorted(names) == sorted(s.name for s in slots)
    matrices = [sum(math.prod(s.shape) for s in share if is_matrix(s.name, s.shape)) for share in shares]
    assert max(matrices) < 1.2 * min(matrices)


def test_two_shares_equal_one_optimiser():
    model = MMDiT(MMDiTConfig(depth=1))
    slots = slots_of(model)
    n = slots[-1].stop
    start, grad = torch.randn(n), torch.randn(n)
    results = []
    for world in (1, 2):
        params, first, second = start.clone(), torch.zeros(n), torch.zeros(n)
        for share in split_work(slots, world):
            Optimiser(params, first, second, share).step(grad, 1e-2, 1)
        results.append(params)
    assert not torch.equal(results[0], start)
    assert (results[0] - results[1]).abs().max() < 1e-4  # bf16 products in batches of another size


def test_attached_parameters_are_views():
    model = MMDiT(MMDiTConfig(depth=1))
    slots = slots_of(model)
    flat, grads = torch.zeros(slots[-1].stop), torch.zeros(slots[-1].stop)
    attach(model, slots, flat, grads)
    flat.fill_(0.01)
    assert all((p == 0.01).all() for p in model.parameters())
    out = model(torch.randn(1, 16, 4, 4), torch.tensor([0.5]), torch.randn(1, 24, 384), torch.randn(1, 384))
    out.square().mean().backward()
    assert grads.abs().sum() > 0


def test_times_lean_to_noise_and_stay_inside():
    t = draw_times(20000, torch.Generator().manual_seed(0))
    assert 0 < t.min() and t.max() < 1 and 0.52 < t.mean() < 0.58


@pytest.mark.parametrize(
    ("arguments", "budget"),
    [
        ([], Budget(7.0)),
        (["--x-minutes", "0.5"], Budget(0.5)),
        (["--x-steps", "30"], Budget(steps=30)),
        (["--x-minutes", "2", "--x-steps", "30"], Budget(2.0, 30)),
    ],
)
def test_a_budget_is_minutes_unless_steps_are_asked_for(arguments, budget):
    parser = argparse.ArgumentParser()
    add_options(parser, 7.0, "--x-")
    args = parser.parse_args(arguments)
    assert chosen(args.x_minutes, args.x_steps, 7.0) == budget


def test_what_is_spent_first_ends_a_training():
    both = Budget(2.0, 100)
    assert both.progress(60, 10) == 0.5 and both.progress(6, 90) == 0.9
    assert both.spent(120, 0) and both.spent(0, 100) and not both.spent(119, 99)
    assert Budget(steps=4).progress(1e9, 2) == 0.5
    with pytest.raises(SystemExit):
        parser = argparse.ArgumentParser()
        add_options(parser, 1.0)
        parser.parse_args(["--minutes", "0"])


def test_steps_that_are_done_again_are_logged_once(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    train_base.forget_after(5)  # nothing is logged yet
    for step in (100, 200, 300):
        train_base.write_log(step, step / 10, 1.0)
    train_base.forget_after(250)
    train_base.write_log(300, 31.0, 0.5)
    rows = train_base.loss_path().read_text().splitlines()
    assert rows == ["step,seconds,loss", "100,10.0,1.00000", "200,20.0,1.00000", "300,31.0,0.50000"]
