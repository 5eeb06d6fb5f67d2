"""The fusion benchmark: merged weights are the modes themselves, cases are held out, the table's arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import emoji_factors
from safetensors.torch import save_file
from torch import nn

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.eager import fuse
from autolora_core.fusion.gate import GateVectors
from autolora_core.fusion.methods.planner import Settings, blend
from autolora_core.fusion.moment import Moment
from autolora_core.fusion.plan import Standing, build_plan
from autolora_core.fusion.training.parameters import spans_of
from benchmarks import fusion_methods
from benchmarks.fusion_cases import Case, draw_cases
from benchmarks.fusion_entries import recipe
from benchmarks.fusion_gated import GatedNetwork
from benchmarks.fusion_judge import MEASURES, Critic, Wanted, right
from benchmarks.fusion_methods import MODES, Workbench, gated, merged, mode, routes
from benchmarks.fusion_network import Course, Network, compiled_energy
from benchmarks.fusion_run import REAL, STYLE, SUBJECT, runs
from benchmarks.fusion_shelf import TEST, TRAIN, VALIDATION, Lora, ScaleShelf
from benchmarks.fusion_store import ALONE, FUSED, UNASKED, Cell, Verdicts
from benchmarks.fusion_table import Table, report
from zoo.cache import read_json, shelf_table
from zoo.judge import Judge
from zoo.mmdit import MMDiT
from zoo.sampler import sample
from zoo.scale_plan import content_subjects, style_family
from zoo.splits import Splits, stem
from zoo.train_fusion import RECIPES, gate_of

STEPS, CLOSE = 4, 2e-4
IDS = ["pig", "ink", "cup"]


class MemoryShelf:
    """Three LoRAs of a random network; the second changes only the first blocks."""

    name = "memory"
    loras = [
        Lora("pig", "pig", None, None, "pig", "a pig"),
        Lora("ink", None, "ink", "ink", "ink", "ink style"),
        Lora("cup", "cup", None, None, "cup", "a cup"),
    ]

    def content(self, name: str) -> str:
        return name

    def branches(self, name: str, index: int) -> list[Branch]:
        at = IDS.index(name)
        factors = emoji_factors(at + 1, rank=2 + at, blocks=2 if name == "ink" else 4)
        return [Branch(n, index, down=d * 0.1, up=u, scale=0.5) for n, (d, u) in factors.items()]


@pytest.fixture(scope="module")
def bench() -> Workbench:
    torch.manual_seed(0)
    model = MMDiT()
    for p in model.parameters():
        if p.abs().sum() == 0:
            nn.init.normal_(p, std=0.05)
    return Workbench(MemoryShelf(), Network(model, torch.float32))


@pytest.fixture(autouse=True)
def words_without_a_tower(monkeypatch):
    def encode(texts):
        seeds = [torch.Generator().manual_seed(sum(map(ord, text))) for text in texts]
        pairs = [(torch.randn(24, 384, generator=g), torch.randn(384, generator=g)) for g in seeds]
        return torch.stack([c for c, _ in pairs]), torch.stack([p for _, p in pairs])

    monkeypatch.setattr(fusion_methods, "encode", encode)


def latents(network: Network, course: Course) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    context, pooled = torch.randn(3, 24, 384, generator=g), torch.randn(3, 384, generator=g)
    with network.running(course, STEPS) as velocity:
        return sample(velocity, context[:2], pooled[:2], (context[2:], pooled[2:]), steps=STEPS, seed=1)


def as_the_node_does(bench: Workbench, name: str) -> torch.Tensor:
    """The mode's own plan beside the layers, through ``eager.fuse``; Composite as a mean of evaluations."""
    network, moment = bench.network, Moment(0, STEPS)
    routers = routes(bench, IDS) if name == "ssr" else None
    made = blend(name, bench.branches(IDS), network.channels, bench.members(IDS), Settings(), routers)
    hooks = []
    for module, plan in made.plan.modules.items():

        def hook(_, args, out, plan=plan):
            def output(i: int) -> torch.Tensor:
                return args[0] @ plan.branches[i].delta().float().T

            return fuse(out, plan, output, lambda g: plan.groups[g].vectors, moment=moment)

        hooks.append(network.layers[module].register_forward_hook(hook))
    dense = network.weights({module: merge.delta() for module, merge in made.dense.items()})
    count = len(made.order) if name == "composite" else 1

    def passes(now: Moment):
        moment.step = now.step
        for turn in range(count):
            moment.only = made.order[turn] if name == "composite" else None
            yield dense

    class Listed(Course):
        pass

    course = Listed(lambda now: _Lazy(passes(now), count))
    try:
        return latents(network, course)
    finally:
        for handle in hooks:
            handle.remove()


class _Lazy:
    """A sequence whose items are made one by one, between the evaluations."""

    def __init__(self, items, count: int):
        self.items, self.count = items, count

    def __iter__(self):
        return self.items

    def __len__(self) -> int:
        return self.count


@pytest.mark.parametrize("name", MODES)
def test_a_course_is_the_mode_as_the_node_runs_it(bench, name):
    """Merged weights, turns of weights and means of predictions against the plan beside the layers, all steps."""
    ours, theirs = latents(bench.network, mode(name)(bench, IDS)), as_the_node_does(bench, name)
    bare = latents(bench.network, Course())
    assert (ours - theirs).abs().max() < CLOSE * theirs.abs().max()
    assert (ours - bare).abs().max() > 100 * CLOSE, "the LoRAs must change the picture, or nothing is shown"


def test_arithmetic_that_may_be_compiled_is_the_eager_one(bench, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    compiled_energy.cache_clear()
    course = mode("energy")(bench, IDS)
    eager = latents(bench.network, course)
    monkeypatch.setattr(bench.network, "compiled", True)
    fast = latents(bench.network, course)
    compiled_energy.cache_clear()
    assert (fast - eager).abs().max() < CLOSE * eager.abs().max()


def random_gate(channels: int) -> GateVectors:
    return GateVectors.from_stack(torch.randn(9, channels) * 0.5)


def test_running_leaves_the_base_as_it_was(bench):
    before = {n: layer.weight.clone() for n, layer in bench.network.layers.items()}
    first = latents(bench.network, Course())
    latents(bench.network, mode("switch")(bench, IDS))
    assert all(torch.equal(before[n], layer.weight) for n, layer in bench.network.layers.items())
    assert torch.equal(latents(bench.network, Course()), first)


@pytest.mark.parametrize("method", ["ties", "dare", "magnitude"])
def test_parts_kept_for_a_case_make_the_same_dense_update(bench, method):
    settings = Settings()
    made = blend(method, bench.branches(IDS), bench.network.channels, bench.members(IDS), settings)
    ours = merged(bench, method, IDS, settings.density)
    assert set(ours) == set(made.dense)
    for module, own in made.dense.items():
        assert torch.allclose(ours[module], own.delta(), atol=1e-6), module


@pytest.mark.parametrize("name", ["naming", "naming-routed", "scalar"])
def test_a_gate_of_training_starts_as_what_it_stands_on(bench, name, tmp_path):
    """Before its first step a gate is the plain sum, or ssr where it stands on routed branches."""
    own = RECIPES[name]
    save_file(dict(gate_of(own, bench.network.layers).state_dict()), tmp_path / "g")
    ours = latents(bench.network, recipe(name, tmp_path / "g")(bench, IDS))
    start = latents(bench.network, mode("ssr" if own.routed else "sum")(bench, IDS))
    assert (ours - start).abs().max() < CLOSE * start.abs().max()


def tilted_gates(network: Network) -> dict[str, GateVectors]:
    entries = [span for n, layer in network.layers.items() for span in spans_of(n, layer.out_features)]
    return {
        entry: replace(random_gate(stop - start), roles=torch.randn(2, 2, 2) * 0.3, power=0.3)
        for entry, start, stop in entries
    }


def test_the_network_that_is_compiled_for_gates_is_eager_fuse(bench, monkeypatch):
    """Ranks padded, LoRAs side by side, roles and time: the same pictures as the plan beside the layers; another set of
    LoRAs after it, too."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    gates = tilted_gates(bench.network)
    for ids in (IDS, IDS[:2], IDS[1:]):
        course = gated(bench, ids, gates)
        assert GatedNetwork.takes(course.plan) and course.plan.timed
        eager = latents(bench.network, course)
        monkeypatch.setattr(bench.network, "compiled", True)
        fast = latents(bench.network, course)
        monkeypatch.setattr(bench.network, "compiled", False)
        assert (fast - eager).abs().max() < CLOSE * eager.abs().max()


def test_a_flat_gate_is_a_changed_weight(bench):
    """Gates that look at nothing are merged; against the plan beside the layers."""
    gates = {
        entry: replace(GateVectors.identity(v.channels), roles=v.roles * torch.tensor([1.0, 0.0]), power=0.2,
                       bias=torch.randn(v.channels), weight_out=torch.rand(v.channels))
        for entry, v in tilted_gates(bench.network).items()
    }  # fmt: skip
    course = gated(bench, IDS, gates)
    assert course.plan is None
    known = {i: Standing(bench.loras[name].role) for i, name in enumerate(IDS)}
    plan = build_plan(bench.branches(IDS), bench.network.channels, gates=gates, standings=known)
    wanted = latents(bench.network, Course(plan=plan))
    assert (latents(bench.network, course) - wanted).abs().max() < CLOSE * wanted.abs().max()


def test_who_is_not_asked_for_is_left_out(bench, monkeypatch):
    monkeypatch.setattr(bench, "phrases", ["a pig"])
    loud = {"pig": 1.0, "ink": 0.5, "cup": 0.001}
    monkeypatch.setattr(bench, "asked", lambda ids: [loud[name] for name in ids])
    plan = gated(bench, IDS, tilted_gates(bench.network)).plan
    scales = {b.lora_index: b.scale for own in plan.modules.values() for b in own.branches}
    assert scales == {0: 0.5, 1: 0.25}
    alone = latents(bench.network, fusion_methods.summed(bench, ["pig", "cup"]))
    assert torch.allclose(alone, latents(bench.network, mode("sum")(bench, ["pig"])), atol=1e-4)


def test_words_say_who_is_asked_for_and_the_rest_is_shared(bench, monkeypatch):
    monkeypatch.setattr(bench, "phrases", ["a pig", "ink style"])
    pig, ink, cup = bench.asked(IDS)
    assert pig > 0.95 and ink > 0.95 and cup < 0.1
    for name in ("ink", "cup"):
        monkeypatch.setitem(bench.loras, name, replace(bench.loras[name], worded=False))
    pig, ink, cup = bench.asked(IDS)
    assert pig > 0.95 and ink == cup == pytest.approx(0.5, abs=0.02), "the style is one of the two, nobody knows which"
    assert bench.asked(["pig", "ink"])[1] > 0.95
    monkeypatch.setattr(bench, "phrases", ["a pig"])
    assert bench.asked(IDS)[1] < 0.05, "there is nothing left to ask for"
    monkeypatch.setattr(bench, "phrases", [])
    assert bench.asked(IDS) == [1, 1, 1]


# cases


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Case]]:
    return {part: draw_cases(ScaleShelf(), part, lambda a, b: True, limit=200) for part in (VALIDATION, TEST)}


def test_pairs_are_those_that_nothing_was_trained_on(cases):
    splits, shelf = Splits.load(), ScaleShelf()
    loras = {lora.id: lora for lora in shelf.loras}
    shipped = {row["subject"] for row in read_json(shelf_table())}
    assert len(cases[TEST]) == 200 and len(cases[VALIDATION]) >= 100
    assert not {stem(c.subject) for c in cases[TEST]} & {stem(c.subject) for c in cases[VALIDATION]}
    for case in [*cases[TEST], *cases[VALIDATION]]:
        assert case.subject in splits.lora_subjects and case.style in splits.lora_styles
        assert splits.held_out_pair(case.subject, case.style) or case.subject not in shipped
        assert shelf.part(case.subject, case.style) == case.part
        assert case.subject not in content_subjects(case.style, 400)
        assert [loras[i].kind for i in case.wanted] == ["subject", "style"]


def test_distractors_show_nothing_that_is_wanted(cases):
    loras = {lora.id: lora for lora in ScaleShelf().loras}
    for case in cases[TEST][:60]:
        others = [loras[i] for i in case.distractors]
        assert len(others) == 8 and len({lora.label for lora in others}) == 8
        for lora in others:
            assert lora.subject is None or stem(lora.subject) not in (stem(case.subject), stem(case.bystander))
            assert lora.style is None or style_family(lora.style) != style_family(case.style)
        assert set(case.loras(8)) == {*case.wanted, *case.distractors[:6]} and len(case.strangers(5)) == 5


def test_a_draw_never_changes_and_near_misses_are_the_loudest():
    loud = {lora.id: float(i) for i, lora in enumerate(ScaleShelf().loras)}
    first, again = (draw_cases(ScaleShelf(), VALIDATION, lambda a, b: True, lambda _: loud, 60) for _ in range(2))
    assert first == again
    near = next(case for case in first if case.near)
    values = [loud[i] for i in near.distractors]
    assert values == sorted(values, reverse=True) and values[0] > len(loud) - 60
    assert 0.3 < np.mean([case.near for case in first]) < 0.7
    train = draw_cases(ScaleShelf(), TRAIN, lambda a, b: True, limit=20)
    assert not any(Splits.held_out_pair(c.subject, c.style) for c in train)


def test_prompts_are_natural_and_name_what_is_wanted(cases):
    case = cases[TEST][0]
    assert len(case.prompts) >= 4 and len(set(case.prompts)) > 1
    name = case.subject.split("-")[0]
    assert all(name.lower() in prompt.lower() for prompt in case.prompts)


# verdicts


def notes(named: list[int], style: list[int], distance: float = 0.5) -> dict[str, list[float]]:
    many = len(named)
    return {
        "named": named,
        "style": style,
        "distance": [distance] * many,
        "pixels": [0.1] * many,
        "edges": [0.1] * many,
    }


def test_the_store_resumes_and_passes_over_a_torn_line(tmp_path):
    cell = Cell("a|b", FUSED, 2, "sum")
    store = Verdicts.open("x", tmp_path)
    store.add(cell, [0, 1], notes([1, 0], [0, 3]), {"draw": 0.2, "build": 0.1})
    with store.path.open("a") as handle:
        handle.write('{"case": "torn')
    again = Verdicts.open("x", tmp_path)
    assert again.missing(cell, range(4)) == [2, 3] and again.cells[cell][1]["style"] == 3
    again.add(cell, [2], notes([1], [0]))
    assert Verdicts.open("x", tmp_path).missing(cell, range(4)) == [3]
    assert list(runs([0, 2, 3, 7])) == [[0], [2, 3], [7]]


def filled(tmp_path, count: int = 40) -> tuple[Verdicts, list[Case]]:
    """Sum: subject always right, style in every second case; ssr: both right in all; each LoRA alone right."""
    store = Verdicts.open("t", tmp_path)
    cases = [Case(f"s{i}", f"t{i}", TEST, ("a", "b"), (), False, "cat") for i in range(count)]
    for i, case in enumerate(cases):
        store.add(Cell(case.name, ALONE, 0, REAL), [0], notes([1], [0], 0.0))
        store.add(Cell(case.name, ALONE, 1, SUBJECT), [0, 1], notes([1, 1], [9, 9]))
        store.add(Cell(case.name, ALONE, 1, STYLE), [0, 1], notes([0, 0], [0, 0]))
        store.add(Cell(case.name, FUSED, 2, "sum"), [0, 1], notes([1, 1], [i % 2, i % 2]), {"draw": 0.2, "build": 0.1})
        store.add(Cell(case.name, FUSED, 2, "gate@1"), [0, 1], notes([1, 1], [0, 0], 0.25))
        store.add(Cell(case.name, UNASKED, 0, "base"), [0], notes([1], [0]))
        store.add(Cell(case.name, UNASKED, 2, "sum"), [0], notes([i % 4 > 0], [0], 0.3))
    return store, cases


def test_figures_of_the_table(tmp_path):
    store, cases = filled(tmp_path)
    made = report(Table(store, cases, 2), {"sum": "sum", "gate": "gate@1", "np": "np"}, ["gate"], [2, 3])
    f = made.figures
    assert f["joint_k2_sum"] == 0.5 and f["subject_k2_sum"] == 1 and f["joint_k2_gate"] == 1
    assert f["hmean_k2_sum"] == pytest.approx(2 / 3, abs=1e-4) and f["worst_retention_k2_sum"] == 0.5
    assert f["single_ceiling"] == 1 and f["best_baseline_joint_k2"] == 0.5 and f["distance_k2_gate"] == 0.25
    assert f["unasked_kept_k2_sum"] == 0.75 and f["unasked_shift_k2_sum"] == 0.3
    assert f["seconds_k2_sum"] == pytest.approx(0.25)
    assert not any("np" in name or "_k3_" in name for name in f), "cells that nobody drew are absent"
    row = next(r for r in made.rows if r.get("figure") == "joint_k2_sum")
    assert (row["pairs"], row["pictures"]) == (40, 80) and 0.3 < row["low"] < 0.5 < row["high"] < 0.7


def test_differences_are_paired(tmp_path):
    store, cases = filled(tmp_path)
    rows = report(Table(store, cases, 2), {"sum": "sum", "gate": "gate@1"}, ["gate"], [2]).rows
    gained = next(r for r in rows if r.get("difference") == "joint" and r["method"] == "gate")
    assert gained["against"] == "sum" and gained["value"] == 0.5 and gained["low"] > 0.3
    subject = next(r for r in rows if r.get("difference") == "subject" and r["method"] == "gate")
    assert (subject["value"], subject["low"], subject["high"]) == (0, 0, 0), "both are right in every case"


def test_notes_of_pictures():
    critic, rng = Critic(Judge.load()), np.random.default_rng(0)
    images = rng.integers(0, 255, (2, 128, 128, 3), dtype=np.uint8)
    said = critic.notes(images, Wanted("otter", "pixel-art", images[0]))
    assert set(said) == set(MEASURES) and all(len(v) == 2 for v in said.values())
    assert said["distance"][0] == pytest.approx(0, abs=1e-4) and said["pixels"][0] == 0 and said["pixels"][1] > 0
    verdict = critic.judge.judge(images, 5)
    assert said["subject"] == verdict.subject_rank(["otter"] * 2).tolist()
    hits = right(said)
    assert hits["joint"].tolist() == (hits["subject"] & hits["style"]).tolist()
