"""Proves that what a user writes about time, blocks and place is read as it is meant, and weighed token by token."""

from __future__ import annotations

import pytest
import torch

from autolora_core.errors import SelectionError
from autolora_core.fusion.area import Area, Layout
from autolora_core.fusion.presence import Presence
from autolora_core.fusion.terms import BlockFactors, Schedule, Term, terms_by_lora, terms_of


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("0: 1, 0.5: 1, 0.6: 0", {0.0: 1, 0.4: 1, 0.55: 0.5, 0.6: 0, 0.9: 0}),
        ("0.25:0; 0.75=2", {0.0: 0, 0.25: 0, 0.5: 1, 0.75: 2, 1.0: 2}),
        ("0.2-0.8", {0.0: 0, 0.1999: 0, 0.2: 1, 0.7: 1, 0.8: 0, 1.0: 0}),
        ("0-0.5", {0.0: 1, 0.49: 1, 0.5: 0}),
        ("0.5-1", {0.0: 0, 0.5: 1, 1.0: 1}),
        ("0: -1", {0.0: -1, 1.0: -1}),
    ],
)
def test_schedules(text, at):
    schedule = Schedule.parse(text)
    assert {u: pytest.approx(schedule.at(u)) for u in at} == at


@pytest.mark.parametrize("text", ["half", "0: 1, 0.5", "0.5: 1, 0.2: 0", "0: 1, 1.5: 0", "0.8-0.2", "-0.5: 1"])
def test_no_schedule(text):
    with pytest.raises(SelectionError, match="schedule"):
        Schedule.parse(text)
    assert Schedule.parse("  ") is None and BlockFactors.parse("\n") is None


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("joint_blocks: 0.5", {"joint_blocks.0.a": 0.5, "joint_blocks.11.b": 0.5, "other.0": 1}),
        ("joint_blocks.1: 0", {"joint_blocks.1.a": 0, "joint_blocks.11.a": 1}),
        ("joint_blocks.1-2: 0, joint_blocks.2: 3", {f"joint_blocks.{i}.a": by for i, by in ((1, 0), (2, 3), (3, 1))}),
        ("*.attn*: 0.25\nmiddle_block -1", {"blocks.0.attn.qkv": 0.25, "middle_block.1.x": -1, "blocks.0.mlp": 1}),
        ("blocks.0-1.mlp*: 2", {"blocks.1.mlp.0": 2, "blocks.2.mlp.0": 1, "blocks.1.attn": 1}),
    ],
)  # fmt: skip
def test_factors_of_blocks(text, factors):
    blocks = BlockFactors.parse(text)
    assert {module: blocks.of(module) for module in factors} == factors


def test_a_block_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(SelectionError, match=r"single_blocks.*joint_blocks\.0-2"):
        BlockFactors.parse("single_blocks: 0").check([f"joint_blocks.{i}.a" for i in range(3)])
    with pytest.raises(SelectionError, match="no block with a factor"):
        BlockFactors.parse("joint_blocks")


def test_whom_a_term_means():
    names = ["styles/Ink.safetensors", "castle_v2.safetensors"]
    schedule, blocks = Schedule.parse("0-0.5"), BlockFactors.parse("a: 0")
    found = terms_by_lora([Term("*", schedule), Term("CASTLE", None, blocks), Term("1", Schedule.parse("0: 2"))], names)
    assert found[1] == Term("*", schedule, blocks) and found[0].schedule.at(0) == 2
    assert Term("*ink*").meant(names) == [0] == Term("styles\\ink").meant(names) and Term("2").meant(names) == [1]
    assert Term("styles").meant(names) == [] and Term("9").meant([*names, "v9.safetensors"]) == [2]
    assert Term("ink").meant([*names, "ink_old.safetensors"]) == [0]  # the whole name before parts of others
    assert Term("²").meant(names) == [] and Term(mask=MASK) == Term(mask=1 - MASK)
    with pytest.raises(SelectionError, match=r"'fox'.*Ink"):
        terms_by_lora([Term("fox")], names)
    with pytest.raises(SelectionError, match="Time and Place"):
        terms_of([Term()])


MASK = torch.zeros(8, 8)
MASK[:, 4:] = 1.0


def test_ones_and_zeros_are_exact():
    y = torch.randn(2, 24, 6)
    layout = Layout(patch=2, text=8)
    for value in (0.0, 1.0):
        area = Area(torch.full((100, 30), value), (8, 8), layout)
        parts = {"double_blocks.0.img_mlp.0": y[:, :16], "single_blocks.0.linear1": y, "a.txt_mlp": y}
        for module, part in parts.items():
            assert torch.equal(part * area.over(part, module, -1), part * value), module


def test_tokens_of_every_kind_of_layer():
    y = torch.ones(1, 24, 3)
    half = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(4)
    area = Area(MASK, (8, 8), Layout(patch=2, text=8))

    def weights(module: str, length: int) -> torch.Tensor:
        return (y[:, :length] * area.over(y[:, :length], module, -1))[0, :, 0]

    mean = torch.full((8,), 0.5)
    assert torch.equal(weights("joint_blocks.0.x_block.attn.qkv", 16), half)
    assert torch.equal(weights("single_blocks.0.linear1", 24), torch.cat([mean, half]))
    assert torch.equal(weights("joint_blocks.0.context_block.attn.qkv", 16), torch.full((16,), 0.5))
    assert torch.equal(weights("transformer_blocks.0.attn.to_q", 24), torch.cat([half, mean]))  # an edit's reference
    assert area.over(torch.ones(2, 5), "double_blocks.0.img_mod.lin", -1) == 0.5
    part = Area(MASK, None, Layout(patch=2, text=8))
    assert part.over(y, "single_blocks.0.linear1", -1) == 0.5 == part.over(torch.ones(1, 3, 8, 8), "conv", 1)
    padded = Area(MASK, (8, 8), Layout(patch=2, text=5, multiple=8))
    assert torch.equal(padded.over(y, "layers.3.attention.qkv", -1)[:, 0], torch.cat([mean, half]))


def test_a_unet_finds_its_grid_at_every_size():
    area = Area(MASK, (8, 12), Layout())
    assert area.over(torch.ones(1, 3, 4, 6), "input_blocks.3.0.op", 1).shape == (4, 6)
    assert area.over(torch.ones(1, 24, 3), "input_blocks.4.1.proj", -1).shape == (24, 1)
    assert area.over(torch.ones(1, 77, 3), "output_blocks.4.1.transformer_blocks.0.attn2.to_k", -1) == 0.5
    odd = Area(MASK, (9, 13), Layout())
    assert odd.over(torch.ones(1, 35, 3), "input_blocks.4.1.proj", -1).shape == (35, 1)


def test_frames_of_a_video_share_the_mask():
    area = Area(MASK, (3, 8, 8), Layout(patch=2))
    row = area.over(torch.ones(1, 48, 2), "blocks.0.self_attn.q", -1)[:, 0]
    assert torch.equal(row, torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(12))
    grid = area.over(torch.ones(1, 3, 4, 4, 2), "blocks.0.mlp", -1)
    assert grid.shape == (4, 4, 1)


def test_presence_goes_with_the_sampling():
    presence = Presence(Term("*", Schedule.parse("0-0.5"), mask=MASK))
    y = torch.ones(1, 16, 2)
    presence.go(0.25, (8, 8), Layout(patch=2), "cpu")
    assert torch.equal(presence.of(y, "x", -1)[0, :4, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    presence.go(0.5, (8, 8), Layout(patch=2), "cpu")
    assert not presence.of(y, "x", -1).any()
