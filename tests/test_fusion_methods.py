"""Proves that every training-free method is what its paper says: the defining identities, and float64 references."""

from __future__ import annotations

import math

import pytest
import torch
from reference_methods import klora_ref, magnitude_ref, np_ref, ssr_ref, ties_ref

from autolora_core.fusion.branches import Branch, kronecker
from autolora_core.fusion.eager import fuse
from autolora_core.fusion.methods import klora, np_lora, ssr
from autolora_core.fusion.methods.dense import DenseMerge, keep_mask
from autolora_core.fusion.methods.factors import factors_of, orthonormal_rows
from autolora_core.fusion.methods.planner import METHODS, Member, Settings, blend, ssr_stacks
from autolora_core.fusion.methods.roles import assign_roles
from autolora_core.fusion.methods.rows import dense_rows, parts_of, seed_of
from autolora_core.fusion.moment import Moment, step_of
from autolora_core.fusion.rules import Switch, Timed, energy_sum

OUT, N_IN = 12, 10
CLOSE = 1e-5


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(index: int, rank: int = 3, span: tuple[int, int] | None = None, scale: float = 0.7, module="m") -> Branch:
    width = span[1] - span[0] if span else OUT
    seed = 100 * index + (span[0] if span else 0)
    factors = {"down": normal(rank, N_IN, seed=seed), "up": normal(width, rank, seed=seed + 1)}
    return Branch(module, index, scale=scale, slice=span, **factors)


def lokr(index: int) -> Branch:
    return Branch("m", index, left=normal(3, 2, seed=index), right=normal(4, 5, seed=index + 1), scale=0.4)


def dense(index: int) -> Branch:
    return Branch("m", index, dense=normal(OUT, N_IN, seed=index + 7), scale=0.3)


def whole(branches: list[Branch]) -> torch.Tensor:
    """The sum of all branches as one (out, in) matrix, float64."""
    total = torch.zeros(OUT, N_IN, dtype=torch.float64)
    for branch in branches:
        start, stop = branch.span(OUT)
        total[start:stop] += branch.delta()
    return total


def gap(one: torch.Tensor, two: torch.Tensor) -> float:
    return (one.double() - two.double()).abs().max().item()


def members(*indices: int) -> list[Member]:
    return [Member(index, f"lora{index}", content=f"hash{index}") for index in indices]


def run(blended, x: torch.Tensor, y0: torch.Tensor, moment: Moment | None = None) -> torch.Tensor:
    """The layer's output: what the plan puts beside it, and what goes into the weight."""
    out = y0.double()
    if "m" in blended.plan.modules:
        plan = blended.plan.modules["m"]

        def output(index: int) -> torch.Tensor:
            return x.double() @ plan.branches[index].delta().T

        out = fuse(out, plan, output, lambda number: plan.groups[number].vectors, moment=moment or Moment())
    if "m" in blended.dense:
        out = out + x.double() @ blended.dense["m"].delta().double().T
    return out


KINDS = {"lora": lora, "lokr": lokr, "dense": dense}


# what holds for every method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_lora_is_that_lora(method, kind):
    """K = 1 is the plain LoRA in every mode, to the bit: nothing is trimmed, projected or switched off."""
    one, x, y0 = KINDS[kind](1), normal(4, N_IN), normal(4, OUT)
    blended = blend(method, [one], {"m": OUT}, members(1))
    assert blended.plan.mode == "sum" and not blended.dense
    assert gap(run(blended, x, y0), y0.double() + x.double() @ one.delta().T) == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_lora_outside_the_method_is_added_as_it_is(method):
    """A few-step LoRA beside two members: the same amount in every method, whatever happens to the others."""
    inside, extra = [lora(0), lora(1)], lora(2)
    x, y0 = normal(4, N_IN), normal(4, OUT)
    alone = run(blend(method, inside, {"m": OUT}, members(0, 1)), x, y0)
    both = run(blend(method, [*inside, extra], {"m": OUT}, members(0, 1)), x, y0)
    assert gap(both - alone, x.double() @ extra.delta().T) <= CLOSE


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("ssr", Settings()),  # no router: R = I
        ("np", Settings(mu=0.0)),
        ("dare", Settings(density=1.0)),
        ("magnitude", Settings(density=1.0)),
    ],
)
def test_the_neutral_setting_is_the_plain_sum(method, settings):
    branches = [lora(0), lora(1, span=(0, 4)), lora(1, span=(4, 12)), lokr(2), dense(3)]
    x, y0 = normal(4, N_IN), normal(4, OUT)
    out = run(blend(method, branches, {"m": OUT}, members(0, 1, 2, 3), settings), x, y0)
    assert gap(out, y0.double() + x.double() @ whole(branches).T) <= CLOSE


# energy


def test_energy_keeps_the_norm_of_the_loudest_and_the_direction_of_the_sum():
    values = [normal(5, 8, seed=1), normal(5, 8, seed=2) * 3, normal(5, 8, seed=3)]
    total, out = sum(values).double(), energy_sum(values)
    longest = torch.stack([value.double().norm(dim=-1) for value in values]).amax(0)
    expected = torch.minimum(total.norm(dim=-1), longest)
    assert gap(out.norm(dim=-1), expected) <= CLOSE
    assert gap(torch.cosine_similarity(out.double(), total), torch.ones(5)) <= CLOSE
    assert (total.norm(dim=-1) > longest).any() and energy_sum([values[0]]).equal(values[0])


def test_energy_over_the_channels_of_a_convolution_and_zeros():
    values = [normal(2, 6, 3, seed=1), normal(2, 6, 3, seed=2)]
    moved = energy_sum([value.movedim(1, -1) for value in values]).movedim(-1, 1)
    assert gap(energy_sum(values, dim=1), moved) <= 1e-6
    assert energy_sum([torch.zeros(2, 3)] * 2).equal(torch.zeros(2, 3)) and energy_sum([]) is None


def test_energy_lays_the_slices_of_a_lora_side_by_side_first():
    pieces = [lora(1, span=(0, 4)), lora(1, span=(4, 12))]
    x, y0 = normal(4, N_IN), normal(4, OUT)
    split = run(blend("energy", [lora(0), *pieces], {"m": OUT}, members(0, 1)), x, y0)
    joined = [lora(0), Branch("m", 1, dense=whole(pieces).float())]
    assert gap(split, run(blend("energy", joined, {"m": OUT}, members(0, 1)), x, y0)) <= CLOSE
    assert gap(split, y0.double() + x.double() @ whole([lora(0), *pieces]).T) > 0.1


# TIES, DARE, magnitude


def merged(method: str, branches: list[Branch], density: float, **how) -> torch.Tensor:
    contents = {branch.lora_index: f"hash{branch.lora_index}" for branch in branches}
    return DenseMerge(method, density, tuple(parts_of(branches, contents)), OUT, **how).delta()


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("mean", [False, True])
def test_ties_is_trim_elect_merge(density, mean):
    branches = [lora(0), lora(1), lokr(2)]
    expected = ties_ref([branch.delta() for branch in branches], density, mean)
    assert gap(merged("ties", branches, density, mean=mean), expected) <= CLOSE


def test_ties_at_density_1_is_the_sum_where_signs_agree():
    branches = [lora(0), lora(1), dense(2)]
    out, deltas = merged("ties", branches, 1.0), torch.stack([branch.delta() for branch in branches])
    agree = (deltas > 0).all(0) | (deltas < 0).all(0)
    assert gap(out[agree], deltas.sum(0)[agree]) <= CLOSE and 0 < agree.sum() < agree.numel()
    assert gap(out[~agree], deltas.sum(0)[~agree]) > 0.1  # elsewhere the losers of the vote are dropped
    same = [lora(0), Branch("m", 1, **{part: getattr(lora(0), part) for part in ("down", "up")}, scale=2.0)]
    assert gap(merged("ties", same, 1.0), whole(same)) <= CLOSE


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_magnitude_keeps_the_largest_of_each(density):
    branches = [lora(0), lora(1), lokr(2)]
    expected = magnitude_ref([branch.delta() for branch in branches], density)
    assert gap(merged("magnitude", branches, density), expected) <= CLOSE


def test_dare_drops_at_random_and_rescales():
    branches = [lora(0), lora(1)]
    deltas = [branch.delta() for branch in branches]
    out = merged("dare", branches[:1], 0.25)
    kept = out != 0
    assert gap(out[kept], 4 * deltas[0][kept]) <= CLOSE and 0 < kept.sum() < kept.numel()
    masks = [merged("dare", [branch], 0.25) for branch in branches]
    assert gap(merged("dare", branches, 0.25), sum(masks)) <= CLOSE
    assert not (masks[0] != 0).equal(masks[1] != 0)


def test_dares_mask_is_the_same_everywhere_and_fair():
    """The first bits are written down: they must not change with the machine, the chunk or torch's version."""
    seed = seed_of("a" * 64, "joint_blocks.0.x_block.mlp.fc1")
    assert seed == 3460338574230815831
    mask = keep_mask(seed, 0, 200_000, 0.2)
    assert mask[:64].nonzero().flatten().tolist() == [11, 18, 20, 23, 25, 33, 39, 51]
    assert keep_mask(seed, 2**32 + 5, 20, 0.2).nonzero().flatten().tolist() == [5, 10, 14, 19]
    assert keep_mask(seed, 1000, 500, 0.2).equal(mask[1000:1500])
    assert abs(mask.float().mean().item() - 0.2) < 0.005
    pairs = (mask[:-1] & mask[1:]).float().mean().item()
    assert abs(pairs - 0.04) < 0.003  # neighbours are independent
    other = keep_mask(seed_of("b" * 64, "joint_blocks.0.x_block.mlp.fc1"), 0, 200_000, 0.2)
    assert abs((mask & other).float().mean().item() - 0.04) < 0.003
    assert keep_mask(seed, 0, 5, 1.0).all()


def test_dense_rows_come_in_blocks_of_any_size(monkeypatch):
    branches = [lora(0, span=(2, 9)), lora(0, span=(0, 4)), lokr(1), dense(2)]
    expected = {part.lora: dense_rows(part, 0, OUT, OUT) for part in parts_of(branches)}
    for lora_index, rows in expected.items():
        assert gap(rows, whole([one for one in branches if one.lora_index == lora_index])) <= CLOSE
    at_once = {method: merged(method, branches, 0.3) for method in ("ties", "dare", "magnitude")}
    monkeypatch.setattr("autolora_core.fusion.methods.rows.CHUNK", 25)
    for method, value in at_once.items():
        assert merged(method, branches, 0.3).equal(value)


def test_a_slice_is_trimmed_by_its_own_rows():
    """A LoRA of q alone keeps its share of q's numbers, however many rows of the fused weight it never touches."""
    assert (merged("magnitude", [lora(0, span=(0, 6))], 0.5) != 0).sum() == 30


# NP-LoRA


@pytest.mark.parametrize("mu", [0.25, 0.5, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_np_lora_projects_the_subject(mu, kind):
    subject, style = KINDS[kind](0), lora(1)
    expected = np_ref(subject.delta(), style.delta(), style.down, mu)
    assert gap(whole(np_lora.merge([subject], [style], mu)), expected) <= CLOSE


def test_np_lora_hard_leaves_nothing_of_the_subject_where_the_style_reads():
    subject, style = lora(0), lora(1)
    out = whole(np_lora.merge([subject], [style], math.inf)) - style.delta()
    assert (out @ style.down.double().T).abs().max() <= CLOSE and out.abs().max() > 0.1


def test_np_lora_keeps_a_low_rank_subject_at_its_rank():
    subject, style = np_lora.merge([lora(0)], [lora(1)], 0.5)
    assert subject.rank == 3 and style is not None and style.delta().equal(lora(1).delta())


def test_np_lora_protects_all_styles_together():
    subject, styles = lora(0), [lora(1), lora(2, rank=2), lora(2, rank=2)]
    downs = torch.cat([styles[0].down, styles[1].down])  # the same rows twice are one direction each
    expected = np_ref(subject.delta(), sum(style.delta() for style in styles), downs, 0.5)
    assert gap(whole(np_lora.merge([subject], styles, 0.5)), expected) <= CLOSE


def test_np_lora_on_convolutions():
    shapes = {"down": (3, 4, 3, 3), "up": (OUT, 3)}
    plain = Branch("m", 1, **{part: normal(*shape, seed=5) for part, shape in shapes.items()})
    tucker = Branch("m", 0, down=normal(3, 4, 1, 1, seed=1), mid=normal(3, 3, 3, 3, seed=2), up=normal(OUT, 3, seed=3))
    out = np_lora.merge([tucker], [plain], 0.5)
    total = sum(branch.delta() for branch in out).flatten(1)
    expected = np_ref(tucker.delta().flatten(1), plain.delta().flatten(1), plain.down.flatten(1), 0.5)
    assert gap(total, expected) <= CLOSE


def test_roles():
    assert assign_roles(["style", "subject"]) == ["style", "subject"]
    assert assign_roles(["style", "subject"], swap=True) == ["subject", "style"]
    assert assign_roles([None, None, None]) == ["subject", "style", "style"]
    assert assign_roles(["pinned", "subject"]) == ["style", "subject"]
    assert assign_roles(["style", "alike"]) == ["style", "subject"]
    assert assign_roles(["subject", "subject"]) == ["subject", "style"]
    assert assign_roles(["style", "style"]) == ["subject", "style"]


def test_roles_are_the_retrievers_and_can_be_swapped():
    branches, known = [lora(0), lora(1)], [Member(0, "a", "style"), Member(1, "b", "subject")]
    x, y0 = normal(4, N_IN), normal(4, OUT)
    for swap, (subject, style) in ((False, (1, 0)), (True, (0, 1))):
        blended = blend("np", branches, {"m": OUT}, known, Settings(swap_roles=swap))
        expected = np_ref(branches[subject].delta(), branches[style].delta(), branches[style].down, 0.5)
        assert gap(run(blended, x, y0), y0.double() + x.double() @ expected.T) <= CLOSE
        note = f"{known[style].name} is taken for the style"
        assert any(line.startswith(note) for line in blended.notes)


# SSR-Merge


def router(stacked: ssr.Stack, inputs: dict[int, torch.Tensor], ridge: float) -> torch.Tensor:
    signals = ssr.Signals(stacked.owner)
    for index, x in inputs.items():
        z = stacked.down.double().flatten(1) @ x.double()
        half = z.shape[1] // 2
        for part in (z[:, :half], z[:, half:]):  # tokens may come in parts
            signals.add(index, part @ part.T)
    return signals.router(ridge)


def routed(branches: list[Branch], inputs: dict[int, torch.Tensor], ridge: float = 1e-10) -> torch.Tensor:
    stacked = ssr.stack(branches, OUT)
    return whole(ssr.merge(stacked, router(stacked, inputs, ridge)))


def test_ssr_is_the_papers_formula():
    branches = [lora(0), lora(1), lora(2, rank=2)]
    inputs = {index: normal(N_IN, 40, seed=50 + index) for index in range(3)}
    expected = ssr_ref(
        [branch.down for branch in branches],
        [branch.up.double() * branch.scale for branch in branches],
        list(inputs.values()),
    )
    assert gap(routed(branches, inputs), expected) <= 1e-4
    assert gap(expected, whole(branches)) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_ssr_with_one_lora_is_that_lora(kind):
    """Also with fewer tokens than ranks, where the Gram matrix cannot be inverted, and for any ridge."""
    one = KINDS[kind](0)
    for tokens, ridge in ((40, 1e-4), (2, 1e-4), (2, 1.0)):
        assert gap(routed([one], {0: normal(N_IN, tokens, seed=3)}, ridge), one.delta()) <= CLOSE


def test_ssr_routes_disjoint_inputs_to_their_owner():
    """Where the prompts' inputs tell the LoRAs apart, each speaks alone on its own prompt."""
    branches = [lora(0), lora(1)]
    basis = torch.linalg.qr(normal(N_IN, N_IN, seed=9)).Q
    inputs = {0: basis[:, :3] @ normal(3, 20, seed=1), 1: basis[:, 3:6] @ normal(3, 20, seed=2)}
    out = routed(branches, inputs)
    for index, x in inputs.items():
        assert gap(out @ x.double(), branches[index].delta() @ x.double()) <= 1e-4


def test_ssr_sums_what_it_knows_nothing_about():
    branches = [lora(0), lora(1)]
    stacked = ssr.stack(branches, OUT)
    for value in (None, 0.0, float("nan")):
        signals = ssr.Signals(stacked.owner)
        if value is not None:
            signals.add(0, torch.full((6, 6), value))
        assert signals.router().equal(torch.eye(6, dtype=torch.float64))
    assert gap(whole(ssr.merge(stacked, torch.eye(6, dtype=torch.float64))), whole(branches)) <= CLOSE


def test_ssr_does_not_depend_on_how_loud_the_down_matrices_are():
    """A → cA, B → B/c is the same LoRA; the ridge must not tell the difference."""
    branches = [lora(0), lora(1)]
    loud = [branches[0], Branch("m", 1, down=branches[1].down * 300, up=branches[1].up / 300, scale=0.7)]
    inputs = {index: normal(N_IN, 40, seed=50 + index) for index in range(2)}
    assert gap(routed(loud, inputs, 1e-4), routed(branches, inputs, 1e-4)) <= 1e-4


def test_ssr_keeps_what_factors_do_not_tell():
    """A dense difference is routed by its largest directions; identical for R = I, the rest stays as it is."""
    branches = [lora(0), dense(1), lokr(2), lora(3, span=(2, 7))]
    stacked = ssr.stack(branches, OUT)
    eye = torch.eye(len(stacked.owner), dtype=torch.float64)
    assert gap(whole(ssr.merge(stacked, eye)), whole(branches)) <= CLOSE
    off = eye.clone()
    off[stacked.owner == 1] = 0  # the dense one is routed away altogether
    assert gap(whole(ssr.merge(stacked, off)), whole(branches) - branches[1].delta()) <= CLOSE


def test_only_modules_where_loras_meet_need_a_router():
    stacks = ssr_stacks([lora(0), lora(1), lora(0, module="n")], {"m": OUT, "n": OUT})
    assert set(stacks) == {"m"} and stacks["m"].down.shape == (6, N_IN)


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


# factors


@pytest.mark.parametrize("kind", KINDS)
def test_factors_tell_the_update(kind):
    one = KINDS[kind](1)
    factors = factors_of(one)
    assert gap(factors.up @ factors.down, one.delta().flatten(1)) <= CLOSE
    assert factors.exact == (kind != "dense")


@pytest.mark.parametrize("kind", KINDS)
def test_cut_factors_are_the_best_of_their_rank(kind):
    one = KINDS[kind](1)
    factors = factors_of(one, most=2)
    u, s, v = torch.linalg.svd(one.delta())
    best = u[:, :2] * s[:2] @ v[:2]
    assert not factors.exact and factors.down.shape == (2, N_IN) and gap(factors.up @ factors.down, best) <= CLOSE


def test_large_dense_updates_are_cut_by_iteration_from_a_fixed_start():
    low = normal(90, 4, seed=1).double() @ normal(4, 80, seed=2).double() + 1e-3 * normal(90, 80, seed=3).double()
    one = Branch("m", 0, dense=low)
    first, again = factors_of(one, most=4), factors_of(one, most=4)
    u, s, v = torch.linalg.svd(low)
    assert first.up.equal(again.up) and gap(first.up @ first.down, u[:, :4] * s[:4] @ v[:4]) <= 1e-4


def test_orthonormal_rows_are_as_many_as_the_rank():
    rows = normal(3, 7).double()
    out = orthonormal_rows(torch.cat([rows, rows[:1] * 2]))
    assert out.shape == (3, 7) and gap(out @ out.T, torch.eye(3)) <= 1e-9
    assert gap(rows @ out.T @ out, rows) <= 1e-6


def test_kron_rows_match_the_kronecker_product():
    one = lokr(4)
    (part,) = parts_of([one])
    assert gap(dense_rows(part, 5, 11, OUT), one.scale * kronecker(one.left, one.right)[5:11]) <= CLOSE
