"""Proves what holds for every training-free method: one LoRA is that LoRA, outsiders are added, neutral is the sum."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fusion_loras import CLOSE, KINDS, N_IN, OUT, dense, gap, lokr, lora, members, normal, run, whole
from torch.utils._python_dispatch import TorchDispatchMode

from autolora_core.fusion.branches import Branch, kronecker
from autolora_core.fusion.methods.factors import factors_of, orthonormal_rows
from autolora_core.fusion.methods.planner import METHODS, Settings, blend
from autolora_core.fusion.methods.rows import dense_rows, parts_of

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


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that is made inside."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        self.numbers = max([self.numbers, *(one.numel() for one in made if isinstance(one, torch.Tensor))])
        return out


@pytest.mark.parametrize("most", [4, 40])
def test_factors_of_a_kron_are_made_for_the_directions_kept(most):
    """Of 128 directions of 128 numbers."""
    one = Branch("m", 0, left=normal(8, 8, seed=1), right=normal(16, 16, seed=2), scale=0.4)
    with Largest() as seen:
        factors = factors_of(one, most)
    assert seen.numbers <= most * 128 and factors.down.shape == (most, 128) and not factors.exact
    u, s, v = torch.linalg.svd(one.delta())
    assert gap(factors.up @ factors.down, u[:, :most] * s[:most] @ v[:most]) <= CLOSE


def test_factors_of_a_kron_with_a_kernel_and_dependent_columns():
    right = normal(4, 5, 3, 3, seed=1)
    one = Branch("m", 0, left=normal(3, 1, seed=2) @ normal(1, 2, seed=3), right=right, scale=0.4)
    factors = factors_of(one)
    assert factors.exact and len(factors.down) == 4
    assert gap(factors.up @ factors.down, one.delta().flatten(1)) <= CLOSE


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


def test_shapes_of_a_branch_are_those_of_its_update():
    tucker = Branch("m", 0, down=normal(3, 4, 1, 1), mid=normal(3, 3, 3, 2), up=normal(OUT, 3))
    locon, full = (replace(tucker, mid=None, down=normal(3, 4, 3, 2)), Branch("m", 0, dense=normal(OUT, 4, 3, 2)))
    kron = Branch("m", 0, left=normal(3, 2), right=normal(4, 5, 3, 2))
    for one in (lora(0), lokr(0), dense(0), tucker, locon, full, kron):
        whole_update = one.delta()
        assert (one.columns, one.kernel) == (whole_update[0].numel(), tuple(whole_update.shape[2:]))


def test_kron_rows_match_the_kronecker_product():
    one = lokr(4)
    (part,) = parts_of([one])
    assert gap(dense_rows(part, 5, 11, OUT), one.scale * kronecker(one.left, one.right)[5:11]) <= CLOSE
