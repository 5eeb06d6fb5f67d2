"""Proves that few-step LoRAs are told by their norms where names are silent, and that nothing else is taken for one."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import emoji_factors, emoji_shapes

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.kinds import FEW_STEP_RATIO, norms_reason, stream_ratio

CHANNELS = {name: out for name, (out, _) in emoji_shapes().items()}


def branches(picture: float, text: float = 1.0, scale: float = 1.0, blocks: int = 4) -> list[Branch]:
    """A LoRA on the demo base's layers, its two streams as loud as told."""
    return [
        Branch(name, 0, down=down, up=up * (picture if ".x_block." in name else text), scale=scale)
        for name, (down, up) in emoji_factors(1, blocks=blocks).items()
    ]


def test_the_ratio_is_that_of_the_dense_updates():
    own = branches(2.5)
    logs = []
    for branch in own:
        twin = next((b for b in own if b.module == branch.module.replace(".x_block.", ".context_block.")), branch)
        if twin is not branch:
            logs.append(math.log(branch.delta().norm() / twin.delta().norm()))
    assert stream_ratio(own, CHANNELS) == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-6)
    assert stream_ratio(branches(2.5, scale=-3.0), CHANNELS) == pytest.approx(stream_ratio(own, CHANNELS), rel=1e-6)


def test_slices_of_a_fused_layer_count_together():
    generator = torch.Generator().manual_seed(0)
    own = []
    for n in range(4):
        for stream, loud in (("img", 3.0), ("txt", 1.0)):
            name = f"double_blocks.{n}.{stream}_attn.qkv"
            for part in range(3):
                up, down = torch.randn(8, 2, generator=generator), torch.randn(2, 8, generator=generator)
                own.append(Branch(name, 0, down=down, up=loud * up, slice=(8 * part, 8 * part + 8)))
    assert 2 < stream_ratio(own, {branch.module: 24 for branch in own}) < 4.5


@pytest.mark.parametrize("names", ["transformer_blocks.{}.attn.to_q|transformer_blocks.{}.attn.add_q_proj"])
def test_separate_projections_are_twins(names):
    picture, text = names.split("|")
    factors = {"down": torch.eye(2), "up": torch.eye(2)}
    own = [Branch(picture.format(n), 0, **factors, scale=4.0) for n in range(4)]
    own += [Branch(text.format(n), 0, **factors) for n in range(4)]
    assert stream_ratio(own, {branch.module: 2 for branch in own}) == pytest.approx(4)


def test_what_has_one_stream_or_too_few_layers_tells_nothing():
    assert stream_ratio([b for b in branches(5) if ".x_block." in b.module], CHANNELS) is None
    assert stream_ratio(branches(5, blocks=1)[:4], CHANNELS) is None
    unet = Branch("input_blocks.1.1.to_q", 0, down=torch.eye(2), up=torch.eye(2))
    assert stream_ratio([unet] * 5, {unet.module: 2}) is None


def test_norms_alone_decide_only_where_they_were_measured():
    loud, usual = branches(2 * FEW_STEP_RATIO), branches(1.0)
    assert norms_reason("x.safetensors", "emoji", usual, CHANNELS) == (None, None)
    reason, hint = norms_reason("x.safetensors", "emoji", loud, CHANNELS)
    assert "as few-step LoRAs do" in reason and hint is None
    reason, hint = norms_reason("x.safetensors", "flux", loud, CHANNELS)
    assert reason is None and "4steps" in hint
    reason, hint = norms_reason("porsche_turbo.safetensors", "flux", loud, CHANNELS)
    assert "'turbo'" in reason and hint is None
    assert norms_reason("porsche_turbo.safetensors", "flux", usual, CHANNELS) == (None, None)
