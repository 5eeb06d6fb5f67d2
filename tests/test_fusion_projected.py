"""Proves that NP-LoRA and SSR-Merge are what their papers say: the defining identities, and float64 references."""

from __future__ import annotations

import math

import pytest
import torch
from fusion_loras import CLOSE, KINDS, N_IN, OUT, dense, gap, lokr, lora, normal, run, whole
from reference_methods import np_ref, ssr_ref

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.methods import np_lora, ssr
from autolora_core.fusion.methods.planner import Member, Settings, blend, ssr_stacks
from autolora_core.fusion.methods.roles import assign_roles

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
            signals.add([index], part @ part.T)
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


def test_ssr_sums_loras_that_share_their_words():
    """Their prompt is one signal that all of them own; a LoRA with words of its own is still routed."""
    branches, x = [lora(0), lora(1), lora(2)], normal(N_IN, 40, seed=3)
    stacked = ssr.stack(branches, OUT)
    z, other = (stacked.down.double() @ one.double() for one in (x, normal(N_IN, 40, seed=4)))
    together = ssr.Signals(stacked.owner)
    together.add([0, 1, 2], z @ z.T)
    assert gap(whole(ssr.merge(stacked, together.router())), whole(branches)) <= CLOSE
    apart = ssr.Signals(stacked.owner)
    apart.add([0, 1], z @ z.T)
    apart.add([2], other @ other.T)
    group = Branch("m", 0, down=stacked.down[:6], up=stacked.up[:, :6])  # the two as one LoRA: the same answer
    expected = ssr_ref([group.down, branches[2].down], [group.up, branches[2].up * 0.7], [x, normal(N_IN, 40, seed=4)])
    assert gap(whole(ssr.merge(stacked, apart.router(1e-10))), expected) <= 1e-4


def test_ssr_sums_what_it_knows_nothing_about():
    branches = [lora(0), lora(1)]
    stacked = ssr.stack(branches, OUT)
    for value in (None, 0.0, float("nan")):
        signals = ssr.Signals(stacked.owner)
        if value is not None:
            signals.add([0], torch.full((6, 6), value))
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


def test_ssr_lora_by_lora_adds_up_to_the_merge():
    """For a gate: each LoRA's routed branch apart, whatever its factors tell; with R = I each is that LoRA itself."""
    branches = [lora(0), dense(1), lokr(2), lora(3, span=(2, 7))]
    stacked = ssr.stack(branches, OUT)
    routes = torch.eye(len(stacked.owner), dtype=torch.float64) + 0.3 * normal(*[len(stacked.owner)] * 2).double()
    apart = ssr.route(stacked, routes)
    assert gap(whole(apart), whole(ssr.merge(stacked, routes))) <= CLOSE
    mine = ssr.route(stacked, torch.eye(len(stacked.owner), dtype=torch.float64))
    for index, branch in enumerate(branches):
        own = [part for part in mine if part.lora_index == index]
        assert gap(whole(own), whole([branch])) <= CLOSE
    down = routes @ stacked.down.double()
    first = [part for part in apart if part.lora_index == 0]
    assert gap(whole(first), stacked.up[:, :3].double() @ down[:3]) <= CLOSE
