"""Proves that energy, TIES, DARE and magnitude pruning are what their papers say, against float64 references."""

from __future__ import annotations

import pytest
import torch
from fusion_loras import CLOSE, N_IN, OUT, dense, gap, lokr, lora, members, normal, run, whole
from reference_methods import magnitude_ref, ties_ref

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.methods.dense import DenseMerge, keep_mask
from autolora_core.fusion.methods.planner import blend
from autolora_core.fusion.methods.rows import dense_rows, parts_of, seed_of
from autolora_core.fusion.rules import energy_sum

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
