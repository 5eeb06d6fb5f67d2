"""Proves that the canonical form is the update itself, whatever its factorisation, and that odd updates survive."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from encode_worlds import FakeUpdate, dense_of, lowrank, seeded

from autolora_core.encode.canonical import canonical, inner_product
from autolora_core.errors import UnsupportedAdapterError

SHAPES = [(12, 20, 4, ()), (20, 12, 1, ()), (5, 7, 9, ()), (8, 6, 3, (3, 3)), (6, 4, 2, (3,))]


def rebuild(form):
    return math.exp(form.log_norm) * (form.u * form.sigma) @ form.v.T


@pytest.mark.parametrize("out, inputs, rank, kernel", SHAPES)
def test_equals_the_dense_update(out, inputs, rank, kernel):
    update = lowrank("m", out, inputs, rank, seed=1, kernel=kernel)
    form, expected = canonical(update), dense_of(update).flatten(1)
    torch.testing.assert_close(rebuild(form), expected, atol=1e-10, rtol=1e-10)
    full = torch.linalg.svdvals(expected)
    torch.testing.assert_close(form.sigma, full[: form.rank] / full.norm(), atol=1e-12, rtol=1e-10)
    assert form.rank == min(rank, out, expected.shape[1])
    eye = torch.eye(form.rank, dtype=torch.float64)
    torch.testing.assert_close(form.u.T @ form.u, eye, atol=1e-10, rtol=0)
    torch.testing.assert_close(form.v.T @ form.v, eye, atol=1e-10, rtol=0)


@pytest.mark.parametrize("out, inputs, rank, kernel", SHAPES)
def test_refactoring_changes_nothing(out, inputs, rank, kernel):
    """A → RA, B → BR⁻¹ with an ill-conditioned R."""
    update = lowrank("m", out, inputs, rank, seed=2, kernel=kernel)
    mix = torch.randn(rank, rank, generator=seeded(3), dtype=torch.float64) @ torch.diag(
        10.0 ** torch.linspace(-2, 2, rank, dtype=torch.float64)
    )
    mixed = replace(update, down=torch.tensordot(mix, update.down, 1), up=update.up @ torch.linalg.inv(mix))
    a, b = canonical(update), canonical(mixed)
    assert a.log_norm == pytest.approx(b.log_norm, abs=1e-9)
    torch.testing.assert_close(a.sigma, b.sigma, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.u * a.sigma, b.u * b.sigma, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.v * a.sigma, b.v * b.sigma, atol=1e-6, rtol=0)


def test_dense_and_tucker_updates():
    plain = lowrank("m", 9, 7, 3, seed=4)
    dense = FakeUpdate("m", kind="dense", dense=dense_of(plain))
    torch.testing.assert_close(rebuild(canonical(dense)), dense_of(plain), atol=1e-10, rtol=0)
    g = seeded(5)
    tucker = FakeUpdate(
        "m",
        down=torch.randn(3, 5, 1, 1, generator=g),
        up=torch.randn(6, 3, generator=g),
        mid=torch.randn(3, 3, 3, 3, generator=g),
    )
    torch.testing.assert_close(rebuild(canonical(tucker)), dense_of(tucker).flatten(1), atol=1e-10, rtol=1e-9)


def test_rank_deficient_and_zero():
    update = lowrank("m", 10, 8, 4, seed=6)
    doubled = replace(update, up=update.up[:, [0, 0, 1, 1]], down=update.down[[0, 1, 2, 2]])
    form = canonical(doubled)
    assert form.rank == 2
    torch.testing.assert_close(rebuild(form), dense_of(doubled), atol=1e-10, rtol=0)
    zero = canonical(replace(update, up=torch.zeros_like(update.up)))
    assert zero.rank == 0 and zero.log_norm == float("-inf") and zero.u.shape == (10, 0) and zero.v.shape == (8, 0)


def test_inner_product_equals_dense():
    a, b = lowrank("m", 12, 9, 3, seed=7), lowrank("m", 12, 9, 5, seed=8)
    x, y = dense_of(a), dense_of(b)
    expected = float((x * y).sum() / (x.norm() * y.norm()))
    assert inner_product(canonical(a), canonical(b)) == pytest.approx(expected, abs=1e-10)


def test_an_update_without_a_matrix_is_refused():
    with pytest.raises(UnsupportedAdapterError, match="not_additive.*blocks.3"):
        canonical(FakeUpdate("blocks.3", kind="not_additive", rule="oft"))
