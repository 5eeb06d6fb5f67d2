"""Proves that plans cut and join branches as the gate asks, and that fusing by plan equals the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference_fusion import gated_sum_ref, random_vectors

from autolora_core.errors import GateError
from autolora_core.fusion.branches import Branch, hadamard_factors, hadamard_pays, lowrank_factors
from autolora_core.fusion.eager import fuse
from autolora_core.fusion.gate import gated_update
from autolora_core.fusion.moment import Moment
from autolora_core.fusion.plan import Standing, build_plan, split_slice

D, N_IN, ROWS = 12, 7, 5


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def branch(
    lora: int, rank: int = 2, span: tuple[int, int] | None = None, module: str = "m", scale: float = 0.7
) -> Branch:
    width = span[1] - span[0] if span else D
    seed = 10 * lora + (span[0] if span else 0)
    factors = {"down": normal(rank, N_IN, seed=seed), "up": normal(width, rank, seed=seed + 1)}
    return Branch(module, lora, scale=scale, slice=span, **factors)


def run(branches: list[Branch], gates=None, additive=()):
    """Fused output of module ``m``, and the pieces for a reference: x, y0, and each LoRA's full-width ΔW."""
    plan = build_plan(branches, {"m": D}, gates, additive).modules["m"]
    x, y0 = normal(ROWS, N_IN, seed=98), normal(ROWS, D, seed=99)

    def output(index: int) -> torch.Tensor:
        return (x.double() @ plan.branches[index].delta().T).float()

    return fuse(y0, plan, output, lambda number: plan.groups[number].vectors), x.double(), y0.double(), plan


def full_deltas(branches: list[Branch]) -> dict[int, torch.Tensor]:
    deltas: dict[int, torch.Tensor] = {}
    for one in branches:
        start, stop = one.span(D)
        whole = deltas.setdefault(one.lora_index, torch.zeros(D, N_IN, dtype=torch.float64))
        whole[start:stop] += one.delta()
    return deltas


def test_sum_mode_adds_every_slice_where_it_belongs():
    branches = [branch(0), branch(1, span=(0, 4)), branch(1, span=(8, 12)), branch(2, rank=5, span=(3, 9))]
    out, x, y0, plan = run(branches)
    expected = y0 + sum(x @ delta.T for delta in full_deltas(branches).values())
    assert (out - expected).abs().max() <= 1e-5
    assert not plan.gated


@pytest.mark.parametrize("seed", range(3))
def test_whole_gate_joins_the_slices_of_a_lora(seed):
    branches = [branch(0), branch(1, span=(0, 4)), branch(1, span=(8, 12))]
    vectors = random_vectors(D, seed)
    out, x, y0, plan = run(branches, {"m": vectors})
    expected = gated_sum_ref(y0, [x @ delta.T for delta in full_deltas(branches).values()], vectors)
    assert (out - expected).abs().max() <= 2e-5
    assert len(plan.groups) == 1 and plan.gated


def test_slice_gates_cut_a_whole_branch():
    branches = [branch(0), branch(1, span=(4, 8))]
    gates = {"m[0:4]": random_vectors(4, 1), "m[4:8]": random_vectors(4, 2)}
    out, x, y0, plan = run(branches, gates)
    y = {lora: x @ delta.T for lora, delta in full_deltas(branches).items()}
    expected = torch.cat(
        [
            gated_sum_ref(y0[:, 0:4], [y[0][:, 0:4]], gates["m[0:4]"]),
            gated_sum_ref(y0[:, 4:8], [y[0][:, 4:8], y[1][:, 4:8]], gates["m[4:8]"]),
            y0[:, 8:] + y[0][:, 8:],
        ],
        dim=-1,
    )
    assert (out - expected).abs().max() <= 2e-5
    assert len(plan.groups) == 3


def test_additive_loras_stay_outside_the_gate():
    """The gate must not see them either: LN(y0) is that of the base alone."""
    branches, vectors = [branch(0), branch(1)], random_vectors(D, 3)
    out, x, y0, _ = run(branches, {"m": vectors}, additive=[1])
    expected = gated_sum_ref(y0, [x @ branches[0].delta().T], vectors) + x @ branches[1].delta().T
    assert (out - expected).abs().max() <= 2e-5


def test_modules_without_vectors_are_summed():
    plan = build_plan([branch(0), branch(0, module="n")], {"m": D, "n": D}, {"n": random_vectors(D, 0)})
    assert plan.mode == "gate" and plan.gated_modules == 1
    assert not plan.modules["m"].gated and plan.modules["n"].gated


def test_no_branches_no_modules():
    plan = build_plan([], {})
    assert plan.mode == "sum" and not plan.modules


@pytest.mark.parametrize(("key", "channels"), [("m", D + 1), ("m[0:4]", 5), (f"m[{D - 1}:{D + 1}]", 2)])
def test_vectors_that_do_not_fit_are_refused(key, channels):
    with pytest.raises(GateError, match=r"m.*channels|channels.*m"):
        build_plan([branch(0)], {"m": D}, {key: random_vectors(channels, 0)})


def test_the_base_output_is_never_changed():
    branches = [branch(0, span=(0, 4))]
    plan = build_plan(branches, {"m": D}).modules["m"]
    y0 = normal(ROWS, D)
    before = y0.clone()
    out = fuse(y0, plan, lambda index: torch.ones(ROWS, 4), lambda number: None)
    assert y0.equal(before) and not out.equal(before)


def test_skeleton_keeps_the_layout_without_tensors():
    branches = [branch(0), branch(1, span=(0, 4))]
    plan = build_plan(branches, {"m": D}, {"m": random_vectors(D, 0)}).modules["m"]
    bare = plan.skeleton()
    assert [one.span(D) for one in bare.branches] == [one.span(D) for one in plan.branches]
    assert all(one.up is None and one.down is None for one in bare.branches)
    assert all(group.vectors is None for group in bare.groups)
    assert [group.loras for group in bare.groups] == [group.loras for group in plan.groups]


def test_slice_names():
    assert split_slice("a.qkv[0:64]") == ("a.qkv", (0, 64))
    assert split_slice("a.qkv") == ("a.qkv", None)


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3)])
def test_hadamard_factors_are_the_product(ranks):
    w1a, w1b, w2a, w2b = (
        normal(6, ranks[0]),
        normal(ranks[0], 9, seed=1),
        normal(6, ranks[1]),
        normal(ranks[1], 9, seed=3),
    )
    one = Branch("m", 0, **hadamard_factors(w1a, w1b, w2a, w2b))
    expected = (w1a.double() @ w1b.double()) * (w2a.double() @ w2b.double())
    assert (one.delta() - expected).abs().max() <= 1e-5
    assert one.rank == ranks[0] * ranks[1]
    assert hadamard_pays(4, 100, 100) and not hadamard_pays(64, 100, 100)


def test_kronecker_rows_and_order():
    left, right = normal(3, 2), normal(4, 5, seed=1)
    one = Branch("m", 0, scale=2.0, left=left, right=right)
    full = 2.0 * torch.kron(left.double(), right.double())
    assert one.width == 12 and one.delta().equal(full)
    assert (one.rows(5, 9).delta() - full[5:9]).abs().max() <= 1e-5
    order = torch.arange(12).flip(0)
    assert (one.permuted(order).delta() - full[order]).abs().max() <= 1e-5


def test_kronecker_of_a_kernel_is_one_product_a_position():
    left, right = normal(3, 2), normal(4, 5, 2, 3, seed=1)
    delta = Branch("m", 0, left=left, right=right).delta()
    for i in range(2):
        for j in range(3):
            assert delta[:, :, i, j].equal(torch.kron(left.double(), right[:, :, i, j].double()))


def test_tucker_factors():
    up, down, mid = normal(6, 3), normal(3, 4, 1, 1, seed=1), normal(3, 3, 2, 2, seed=2)
    one = Branch("m", 0, **lowrank_factors(up[..., None, None], down, (2, 2), mid))
    expected = torch.zeros(6, 4, 2, 2, dtype=torch.float64)
    for o in range(6):
        for r in range(3):
            for s in range(3):
                for i in range(4):
                    expected[o, i] += up[o, r].double() * mid[r, s].double() * down[s, i, 0, 0].double()
    assert (one.delta() - expected).abs().max() <= 1e-9


def test_loras_speak_as_loudly_as_they_are_asked_for():
    """Asked for counts towards K, and who is hardly asked for is gone; a gate without roles hears nothing of it."""
    vectors = replace(random_vectors(D, 0), roles=normal(2, 2, 2, seed=1), power=0.5)
    known = {0: Standing("style"), 1: Standing(None, 0.5), 2: Standing("subject", 0.001)}
    branches = [branch(0), branch(1), branch(2)]
    plan = build_plan(branches, {"m": D}, {"m": vectors}, standings=known).modules["m"]
    assert [(b.lora_index, b.scale) for b in plan.branches] == [(0, 0.7), (1, 0.35)]
    count = 1 + 0.5 + 0.001
    assert plan.groups[0].tilts == (vectors.tilt("style", count), vectors.tilt(None, count))
    few_step = build_plan([*branches, branch(3)], {"m": D}, {"m": vectors}, [3], standings=known).modules["m"]
    assert few_step.groups[-1].tilts == plan.groups[0].tilts, "who is outside the gate does not count"
    plain = build_plan(branches, {"m": D}, {"m": random_vectors(D, 0)}).modules["m"]
    assert plain.groups[0].tilts is None
    assert plan.skeleton().groups[0].tilts == plan.groups[0].tilts


def test_a_timed_gate_follows_the_moment():
    vectors = replace(random_vectors(D, 0), roles=normal(2, 2, 2, seed=1))
    whole = build_plan([branch(0), branch(1)], {"m": D}, {"m": vectors}, standings={1: Standing("style")})
    plan = whole.modules["m"]
    assert whole.timed and not build_plan([branch(0)], {"m": D}, {"m": random_vectors(D, 0)}).timed
    x, y0 = normal(ROWS, N_IN, seed=98), normal(ROWS, D, seed=99)
    outputs = [(x.double() @ one.delta().T).float() for one in plan.branches]
    moment, seen = Moment(), []
    for step in (0, 3):
        moment.go(step, 4)
        out = fuse(y0, plan, outputs.__getitem__, lambda _: vectors, moment=moment)
        tilts = [vectors.tilt(None, 2), vectors.tilt("style", 2)]
        assert out.allclose(y0 + gated_update(y0, outputs, vectors, tilts=tilts, u=step / 4), atol=1e-6)
        seen.append(out)
    assert not seen[0].allclose(seen[1], atol=1e-3)
