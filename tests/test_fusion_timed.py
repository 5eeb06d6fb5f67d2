"""Proves that K-LoRA, Switch and Composite choose the LoRA their papers choose, layer by layer and step by step."""

from __future__ import annotations

import math

from fusion_loras import CLOSE, N_IN, OUT, gap, lora, members, normal, run, whole
from reference_methods import klora_ref

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.methods import klora
from autolora_core.fusion.methods.planner import Settings, blend
from autolora_core.fusion.methods.rows import parts_of
from autolora_core.fusion.moment import Moment, step_of
from autolora_core.fusion.rules import Switch, Timed

# K-LoRA


def reference_masses(branches: dict[str, list[Branch]], name: str) -> list[tuple[float, float]]:
    most = math.prod(branch.rank for branch in branches[name])
    loud = [sum(own[k].delta().abs().sum().item() for own in branches.values()) for k in range(2)]
    tops = [sum(sorted(one.delta().abs().flatten().tolist())[-most:]) for one in branches[name]]
    return list(zip(tops, loud, strict=True))


def test_klora_chooses_as_the_paper_does_at_every_layer_and_step():
    branches = {
        name: [lora(2 * n, module=name, scale=1.0 + n), lora(2 * n + 1, rank=2, module=name, scale=0.4)]
        for n, name in enumerate("abcdefgh")
    }
    flat = [
        Branch(b.module, k, down=b.down, up=b.up, scale=b.scale) for own in branches.values() for k, b in enumerate(own)
    ]
    blended = blend("klora", flat, dict.fromkeys("abcdefgh", OUT), members(0, 1))
    chosen = set()
    for name in branches:
        (group,) = blended.plan.modules[name].groups
        for step in range(8):
            live = group.rule.live(Moment(step, 8))
            assert live == klora_ref(reference_masses(branches, name), step / 8), (name, step)
            chosen.add(live)
    assert chosen == {0, 1}


def test_klora_runs_the_chosen_lora_alone():
    branches, x, y0 = [lora(0), lora(1)], normal(4, N_IN), normal(4, OUT)
    blended = blend("klora", branches, {"m": OUT}, members(0, 1))
    rule = blended.plan.modules["m"].groups[0].rule
    for step in (0, 19):
        live = branches[rule.live(Moment(step, 20))]
        assert gap(run(blended, x, y0, Moment(step, 20)), y0.double() + x.double() @ live.delta().T) <= CLOSE


def test_klora_for_more_than_two():
    """The best subject meets the best style; a layer that one LoRA alone touches is that LoRA's."""
    loud = [Branch("m", k, down=normal(2, N_IN, seed=k), up=normal(OUT, 2, seed=k) * (1 + k)) for k in range(3)]
    quiet = [Branch("n", k, down=normal(2, N_IN, seed=k), up=normal(OUT, 2, seed=k)) for k in range(2)]
    parts = {name: parts_of([b for b in (*loud, *quiet) if b.module == name]) for name in ("m", "n")}
    rules = klora.timed_rules(parts, {"m": OUT, "n": OUT}, {0: "subject", 1: "style", 2: "style"})
    assert rules["m"].early == 0 and rules["m"].late == 2
    assert klora.top_count([4, 16]) == 64 and klora.top_count([8]) == 64 and klora.top_count([2, 4, 8]) == 16
    alone = klora.timed_rules({"m": parts_of([loud[1]])}, {"m": OUT}, {0: "subject", 1: "style"})["m"]
    assert (alone.early, alone.late) == (1, 1)


# Switch and Composite


def test_switch_takes_turns():
    branches, x, y0 = [lora(0), lora(1), lora(2)], normal(4, N_IN), normal(4, OUT)
    for interval in (1, 2):
        blended = blend("switch", branches, {"m": OUT}, members(0, 1, 2), Settings(interval=interval))
        for step in range(7):
            live = branches[(step // interval) % 3]
            expected = y0.double() + x.double() @ live.delta().T
            assert gap(run(blended, x, y0, Moment(step, 7)), expected) == 0
    assert Switch((5, 3)).live(Moment(1, 4)) == 3


def test_composite_lets_one_speak_at_a_time():
    branches, x, y0 = [lora(0), lora(1, span=(0, 4)), lora(1, span=(6, 12))], normal(4, N_IN), normal(4, OUT)
    blended = blend("composite", branches, {"m": OUT}, members(0, 1))
    outs = [run(blended, x, y0, Moment(only=index)) for index in (0, 1)]
    assert gap(outs[0], y0.double() + x.double() @ branches[0].delta().T) == 0
    assert gap(outs[1], y0.double() + x.double() @ whole(branches[1:]).T) <= CLOSE
    assert gap(sum(outs) / 2, y0.double() + x.double() @ whole(branches).T / 2) <= CLOSE  # one linear layer averages


def test_the_step_of_an_evaluation():
    sigmas = [14.6, 7.0, 3.0, 1.0, 0.0]
    assert [step_of(sigma, sigmas)[0] for sigma in sigmas[:-1]] == [0, 1, 2, 3]
    assert step_of(5.0, sigmas) == (1, 4) and step_of(20.0, sigmas)[0] == 0
    assert step_of(7.0000004, sigmas)[0] == 1 and step_of(1.0, []) == (0, 1)
    assert Timed(0, 1, 0.5).live(Moment(2, 4)) == 0 and Timed(0, 1, 0.5).live(Moment(3, 4)) == 1
