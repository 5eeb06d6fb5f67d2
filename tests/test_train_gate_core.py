"""Proves how a gate is trained: what it is drawn from, what its loss does, that it learns, stops and goes on."""

from __future__ import annotations

import math

import pytest
import torch

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.eager import fuse
from autolora_core.fusion.moment import Moment
from autolora_core.fusion.plan import Standing, build_plan
from autolora_core.fusion.training import trainer
from autolora_core.fusion.training.examples import VALIDATION, Example, draw, named_in
from autolora_core.fusion.training.parameters import GateParameters, hooked_update, spans_of
from autolora_core.fusion.training.trainer import Training, backward

EXAMPLES = [Example(i, i, (i,)) for i in range(4)] + [Example(4, 4, (0, 1)), Example(5, 5, ())]
CHANNELS = {"a.qkv": 12, "a.fc": 5}


def test_draws_are_the_same_every_time_and_put_the_wanted_first():
    draws = [draw(EXAMPLES, 4, 3, number) for number in range(200)]
    assert draws == [draw(EXAMPLES, 4, 3, number) for number in range(200)]
    for one in draws:
        wanted = one.example.wanted
        assert one.loras[: len(wanted)] == wanted and len(set(one.loras)) == len(one.loras) <= 3
        assert len(one.loras) >= 2 and 0 <= one.u < 1
        assert one.other is not None and one.other.text != one.example.text
        if set(one.other.wanted) & set(one.loras[len(wanted) :]):
            assert not set(one.other.wanted) & set(wanted)
    assert {len(one.loras) for one in draws} == {2, 3}
    assert draw(EXAMPLES, 4, 3, VALIDATION) not in draws
    beside = [one for one in draws if set(one.other.wanted) & set(one.loras)]
    assert len(beside) > 100, "a picture of a LoRA that stands beside it, where there is one"


def test_captions_name_loras_by_all_their_words():
    words = ["an otter", "pixel art style", "", "a red fox"]
    assert named_in("An otter in pixel art style", words) == (0, 1)
    assert named_in("a fox", words) == () and named_in("the red fox", words) == (3,)


def test_weights_are_the_derivatives_of_the_loss():
    errors = [(0, 0, 0.30), (0, None, 0.34), (1, 0, 0.29), (1, None, 0.36)]
    for untold in (False, True):
        loss, weights = trainer._weigh(errors, untold)
        assert weights[1] == (trainer.FLOW if untold else 0), "texts that are not there only set the measure"
        for at in (0, 2):
            moved = [(p, t, e + (1e-6 if i == at else 0)) for i, (p, t, e) in enumerate(errors)]
            slope = (trainer._weigh(moved, untold)[0] - loss) / 1e-6
            assert weights[at] == pytest.approx(slope, rel=1e-2)
    alone, weights = trainer._weigh(errors[:2], False)
    assert alone == pytest.approx(trainer.FLOW * 0.30) and weights == [trainer.FLOW, 0.0]
    assert trainer._weigh([(0, 0, 0.1), (0, None, 9e3), (1, 0, 0.1), (1, None, 0.0)], False)[0] < 1e3


def test_a_picture_that_is_told_apart_costs_less():
    near = trainer._weigh([(0, 0, 0.2), (0, None, 0.3), (1, 0, 0.3), (1, None, 0.3)], False)[0]
    far = trainer._weigh([(0, 0, 0.2), (0, None, 0.2), (1, 0, 0.2), (1, None, 0.3)], False)[0]
    assert near < far


def test_a_gate_starts_as_the_plain_sum_and_is_the_plan_s():
    gate = GateParameters(CHANNELS)
    generator = torch.Generator().manual_seed(0)
    y0, one, two = (torch.randn(3, 12, generator=generator) for _ in range(3))
    start = hooked_update(gate, "a.qkv", y0, {0: one, 1: two}, {}, 2.0, 0.3, -1)
    assert torch.allclose(start, one + two, atol=1e-5)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(3, 4, generator=generator)
    branches = [Branch("a.qkv", i, down=torch.randn(2, 4), up=torch.randn(12, 2)) for i in range(3)]
    outputs = {i: x @ b.delta().float().T for i, b in enumerate(branches)}
    roles = {0: "style", 1: None, 2: "subject"}
    found = y0 + hooked_update(gate, "a.qkv", y0, outputs, roles, 3.0, 0.25, -1)
    known = {i: Standing(role) for i, role in roles.items()}
    plan = build_plan(branches, {"a.qkv": 12}, gate.vectors(), standings=known).modules["a.qkv"]
    moment = Moment()
    moment.go(1, 4)
    pieces = [x @ b.delta().float().T for b in plan.branches]
    wanted = fuse(y0, plan, pieces.__getitem__, lambda g: plan.groups[g].vectors, moment=moment)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert [entry for entry, _, _ in spans_of("a.qkv", 12)] == ["a.qkv[0:4]", "a.qkv[4:8]", "a.qkv[8:12]"]
    assert spans_of("a.fc", 5) == [("a.fc", 0, 5)]


class Line:
    """A studio in which a picture's error falls as the gate lets its own LoRAs pass and the others not."""

    def __init__(self):
        self.graphs = 0

    def error(self, one, picture, text, gate, grad):
        generator = torch.Generator().manual_seed(one.seed)
        y0 = torch.randn(5, generator=generator)
        own = {lora: torch.randn(5, generator=torch.Generator().manual_seed(lora)) for lora in one.loras}
        with torch.set_grad_enabled(grad):
            update = sum(own.values()) if gate is None else self._gated(gate, y0, own, one)
            target = own.get(picture, torch.zeros(5)) if text is not None else torch.zeros(5)
            self.graphs += grad
            return (update - target).square().mean()

    @staticmethod
    def _gated(gate, y0, own, one):
        roles = {lora: ("subject", "style")[lora % 2] for lora in own}
        return hooked_update(gate, "a.fc", y0, own, roles, float(len(own)), one.u, -1)


def training(folder=None) -> Training:
    return Training(GateParameters({"a.fc": 5}), EXAMPLES[:4], 4, 3, folder)


def test_it_learns_and_says_so():
    made, studio = training(), Line()
    made.run(studio, 120, 120, lambda done, total: None)
    assert made.measure(studio, made.gate) < made.measure(studio, None)
    assert len(made.history) == 120 and studio.graphs < 3 * 120 + 1
    roles = made.gate.roles["a/fc"].detach()
    assert roles.abs().max() > 0.01 and made.gate.powers["a/fc"].abs() > 0.001


def test_gradients_come_one_evaluation_at_a_time():
    """The sum over single backward passes is the gradient of the whole loss."""
    gate, studio = GateParameters({"a.fc": 5}), Line()
    one = next(d for d in (draw(EXAMPLES[:4], 4, 3, n) for n in range(50)) if d.seed % 1000 >= 1000 * trainer.UNTOLD)
    backward(studio, one, gate)
    found = gate.stacks["a/fc"].grad / trainer.SCALE
    asks = [(p, t) for p in (one.example.picture, one.other.picture) for t in (one.example.text, None)]
    values = [studio.error(one, p, t, gate, True) for p, t in asks]
    scale = trainer.SHARPNESS * float((values[1] + values[3]).detach()) / 2
    gap = ((values[3].detach() - values[2]) - (values[1].detach() - values[0])) / scale
    whole = trainer.FLOW * values[0] + torch.nn.functional.softplus(gap)
    (wanted,) = torch.autograd.grad(whole, gate.stacks["a/fc"])
    assert torch.allclose(found, wanted, atol=1e-4)


def test_an_interrupted_training_goes_on_as_if_nothing_had_been(tmp_path):
    whole = training(tmp_path / "whole")
    whole.run(Line(), 25, 25, lambda done, total: None)

    def stop(done: int, total: int) -> None:
        if done == 13:
            raise KeyboardInterrupt

    cut = training(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.run(Line(), 25, 25, stop)
    again = training(tmp_path / "cut")
    assert again.resume() and again.step == 13
    again.run(Line(), 25, 25, lambda done, total: None)
    assert [loss for _, loss in again.history] == pytest.approx([loss for _, loss in whole.history])
    for mine, theirs in zip(again.gate.parameters(), whole.gate.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert not training(tmp_path / "nothing").resume()


def test_numbers_that_are_not_finite_teach_nothing():
    class Broken(Line):
        def error(self, one, picture, text, gate, grad):
            return super().error(one, picture, text, gate, grad) * (math.nan if grad else 1.0)

    made = training()
    before = [p.clone() for p in made.gate.parameters()]
    made.run(Broken(), 3, 3, lambda done, total: None)
    assert all(torch.equal(a, b) for a, b in zip(before, made.gate.parameters(), strict=True))


def test_an_example_without_another_is_still_learnt_from():
    one = draw(EXAMPLES[:1], 2, 2, 0)
    assert one.other is None and backward(Line(), one, GateParameters({"a.fc": 5})) > 0
