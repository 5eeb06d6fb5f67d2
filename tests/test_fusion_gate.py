"""Proves that the gate is the published formula, number by number, in every dtype, layout and mode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference_fusion import gated_sum_ref, random_vectors

from autolora_core.fusion.gate import VECTORS, GateVectors, Tilt, gate_values, gated_sum, gated_update

TOLERANCE = {torch.float64: 2e-6, torch.float32: 2e-5, torch.bfloat16: 0.15, torch.float16: 0.02}


def inputs(shape, k, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) * (n + 0.5) for n in range(k + 1)]
    return tensors[0].to(dtype), [tensor.to(dtype) for tensor in tensors[1:]]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(7, 13), (2, 3, 8), (1, 1, 1, 33)], ids=str)
def test_equals_the_reference(shape, k, dtype):
    y0, branches = inputs(shape, k, dtype=dtype)
    vectors = random_vectors(shape[-1], seed=k)
    out = gated_sum(y0, branches, vectors)
    assert out.dtype == dtype and out.shape == y0.shape
    expected = gated_sum_ref(y0, branches, vectors)
    assert (out.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (1, 5, 3, 2, 2), (3, 4, 7)], ids=str)
def test_convolution_outputs_are_gated_over_dim_1(shape):
    y0, branches = inputs(shape, 2)
    vectors = random_vectors(shape[1], seed=3)
    out = gated_sum(y0, branches, vectors, dim=1)
    assert (out - gated_sum_ref(y0, branches, vectors, dim=1)).abs().max() <= 2e-5


def test_without_base_weight_is_a_zero_base_weight():
    y0, branches = inputs((4, 9), 2)
    paper = random_vectors(9, seed=1, with_base=False)
    zeroed = GateVectors.from_named({**paper.named(), "weight_base": torch.zeros(9)})
    out = gated_sum(y0, branches, paper)
    assert out.equal(gated_sum(y0, branches, zeroed))
    assert (out - gated_sum_ref(y0, branches, paper)).abs().max() <= 2e-5


def test_identity_gate_is_exactly_the_plain_sum():
    for dtype in TOLERANCE:
        y0, branches = inputs((3, 17), 1, dtype=dtype)
        plain = gated_sum(y0, branches, None)
        assert plain.equal(y0 + branches[0])
        assert gated_sum(y0, branches, GateVectors.identity(17)).equal(plain)


def test_no_branch_returns_the_base_output_itself():
    y0, _ = inputs((2, 5), 0)
    assert gated_sum(y0, [], None) is y0
    assert gated_sum(y0, [], random_vectors(5, 0)) is y0
    assert gated_update(y0, [], random_vectors(5, 0)) is None


def test_a_silent_branch_changes_nothing():
    y0, branches = inputs((4, 8), 1)
    vectors = random_vectors(8, 2)
    both = gated_sum(y0, [branches[0], torch.zeros_like(y0)], vectors)
    assert both.equal(gated_sum(y0, branches, vectors))


def test_strength_leaves_the_gate_alone_and_scales_the_update():
    """LN takes the strength out of the gate (method, "Gated fusion"), up to eps."""
    y0, (branch,) = inputs((6, 32), 1)
    vectors = random_vectors(32, 4)
    assert torch.allclose(gate_values(y0, branch * 3, vectors), gate_values(y0, branch, vectors), atol=1e-4)
    thrice = gated_update(y0, [branch * 3], vectors)
    assert torch.allclose(thrice, gated_update(y0, [branch], vectors) * 3, atol=1e-3)


def test_batch_rows_do_not_see_each_other():
    y0, branches = inputs((5, 4, 16), 3)
    vectors = random_vectors(16, 5)
    together = gated_sum(y0, branches, vectors)
    alone = [gated_sum(y0[n : n + 1], [b[n : n + 1] for b in branches], vectors) for n in range(5)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_branches_may_be_a_generator():
    y0, branches = inputs((2, 8), 3)
    vectors = random_vectors(8, 6)
    assert gated_sum(y0, iter(branches), vectors).equal(gated_sum(y0, branches, vectors))


def test_gradients_reach_every_vector():
    y0, branches = inputs((3, 8), 2)
    named = {name: value.requires_grad_() for name, value in random_vectors(8, 7).named().items()}
    gated_sum(y0, branches, GateVectors.from_named(named)).square().sum().backward()
    assert all(named[name].grad.abs().sum() > 0 for name in VECTORS)


def test_stack_and_back():
    vectors = random_vectors(6, 8)
    again = GateVectors.from_stack(vectors.stack())
    assert all(again.named()[name].equal(value) for name, value in vectors.named().items())
    assert tuple(vectors.stack().shape) == (9, 6)


def tilted(channels: int, seed: int) -> GateVectors:
    roles = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(seed)) * 0.5
    return replace(random_vectors(channels, seed), roles=roles, power=0.4)


def test_a_tilt_shifts_the_logits_and_multiplies_what_passes():
    """Against the formula written out in float64, at several shares of the sampling."""
    vectors, (y0, branches) = tilted(7, 3), inputs((4, 7), 2)
    for u in (0.0, 0.3, torch.tensor(1.0)):
        expected = y0.double()
        for role, branch in zip(("subject", "style"), branches, strict=True):
            table = vectors.roles[("subject", "style").index(role)].double()
            shift, gain = table[:, 0] + (2 * float(u) - 1) * table[:, 1]
            moved = replace(vectors, bias=vectors.bias + float(shift))
            passed = gated_sum_ref(y0, [branch], moved).double() - y0.double()
            expected = expected + torch.exp(gain) * (2 / 5) ** 0.4 * passed
        tilts = [vectors.tilt(role, 5) for role in ("subject", "style")]
        found = y0 + gated_update(y0, branches, vectors, tilts=tilts, u=u)
        assert (found - expected).abs().max() <= 1e-4


def test_a_lora_without_a_role_is_between_both():
    vectors = tilted(5, 0)
    between = vectors.roles.mean(0)
    for role in (None, "pinned"):
        tilt = vectors.tilt(role, 2)
        assert tilt.shift == tuple(between[0].tolist()) and tilt.gain == tuple(between[1].tolist())
    assert vectors.tilt("style", 2).timed and not random_vectors(5, 0).tilt("style", 2).timed
    assert random_vectors(5, 0).tilt("style", 8) == Tilt()
    assert vectors.tilt("style", 1).gain[0] > vectors.tilt("style", 3).gain[0]
