"""The experiment behind the shipped gate: its design, its climb and the gate it makes, without drawing a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autolora_core.fusion.files import read_gate
from autolora_core.fusion.gate import ROLES
from benchmarks.fusion_shape import CLIMBED, PAIRS, START, chosen, climb, design, gate_of, place
from zoo.cache import models_dir
from zoo.mmdit import MMDiT
from zoo.multi_lora import target_layers


class Hill:
    """Scores that fall with the square of the distance to ``top``, on the last pairs from half as far."""

    def __init__(self, top: np.ndarray):
        self.top, self.asked = top, []

    def score(self, gains, part):
        self.asked.append(part)
        top = self.top if part.start == 0 else self.top / 2
        return np.array([0, 0, 0, 0, 0, 0, -float(((np.asarray(gains) - top) ** 2).sum())])


def test_every_run_of_the_design_tells_about_every_gain():
    plan = design()
    assert plan.shape == (32, 16) and np.array_equal(plan.T @ plan, 32 * np.eye(16)) and not plan.sum(axis=0).any()


def test_the_climb_goes_up_and_the_share_is_chosen_elsewhere():
    top = np.array(START) + np.linspace(-0.3, 0.5, 16)
    hill = Hill(top)
    found = climb(hill)
    assert ((found - top) ** 2).sum() < 0.3 * ((np.array(START) - top) ** 2).sum()
    assert {(part.start, part.stop) for part in hill.asked} == {(0, CLIMBED)}
    gains, rows = chosen(hill, found)
    assert [row["share"] for row in rows] == [0.0, 1.0, 0.7] and np.allclose(gains, 0.7 * found)
    assert (hill.asked[-1].start, hill.asked[-1].stop) == (CLIMBED, PAIRS)


class Small:
    channels = {"joint_blocks.1.x_block.attn.qkv": 6, "joint_blocks.2.context_block.mlp.fc1": 4}


def test_a_gate_passes_every_role_as_loudly_as_it_should():
    gains = np.arange(16) / 10
    gate = gate_of(gains, Small())
    assert set(gate) == {*(f"joint_blocks.1.x_block.attn.qkv[{i}:{i + 2}]" for i in (0, 2, 4)), list(Small.channels)[1]}
    for entry, vectors in gate.items():
        at = place(entry)
        for row, role in enumerate(ROLES):
            tilt = vectors.tilt(role, 5)
            assert tilt.gain == pytest.approx((gains[8 * row + at], 0)) and tilt.shift == (0, 0) and not tilt.timed
        assert vectors.tilt(None, 5).gain[0] == pytest.approx((gains[at] + gains[8 + at]) / 2)
        assert torch.equal(vectors.weight_out, torch.full_like(vectors.weight_out, 2))


def test_the_shipped_gate_is_one_of_these():
    gate = read_gate(models_dir() / "emoji_gate.safetensors")
    assert gate.family == "emoji" and gate.k_range == (2, 8) and gate.base_fingerprint
    modules = {entry.partition("[")[0] for entry in gate.modules}
    assert modules == set(target_layers(MMDiT()))
    assert all(vectors.roles is not None for vectors in gate.modules.values())
