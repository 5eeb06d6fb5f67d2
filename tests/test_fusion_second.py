"""Proves what asking a second architecture rests on: the small Flux-class network, a gate spread over its layers."""

from __future__ import annotations

import pytest
import torch

from autolora_core.fusion.plan import build_plan
from benchmarks.fusion_network import Course, Network
from benchmarks.fusion_second import universal_vectors
from zoo.fused_layers import Gate
from zoo.mmdit import MMDiT, MMDiTConfig
from zoo.multi_lora import StackedAdapters, target_layers
from zoo.second_arch import FluxConfig, SmallFlux, rotate, rotations

CONFIG = FluxConfig(double=1, single=2, hidden=64, context_dim=12, pooled_dim=6)


@pytest.fixture(scope="module")
def flux() -> SmallFlux:
    torch.manual_seed(1)
    model = SmallFlux(CONFIG)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return model.eval().requires_grad_(False)


def inputs(batch: int = 2) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 16, 8, 8, generator=g)
    return x, torch.rand(batch, generator=g), torch.randn(batch, 5, 12, generator=g), torch.randn(batch, 6, generator=g)


def test_it_starts_as_nothing_and_reads_all_its_inputs(flux):
    torch.manual_seed(0)
    x, t, context, pooled = inputs()
    assert not SmallFlux(CONFIG)(x, t, context, pooled).any()
    out = flux(x, t, context, pooled)
    assert out.shape == x.shape
    for changed in ((x + 1, t, context, pooled), (x, t / 2, context, pooled), (x, t, context * 2, pooled),
                    (x, t, context, pooled * 2)):  # fmt: skip
        assert (flux(*changed) - out).abs().max() > 1e-5


def test_rotary_positions_are_relative():
    """A rotation keeps lengths, and products depend on the distance alone."""
    cos, sin = rotations(4, 3)
    q, k = torch.randn(1, 1, 1, 64), torch.randn(1, 1, 1, 64)
    turned = [rotate(v.expand(1, 1, 19, 64), cos, sin) for v in (q, k)]
    assert torch.allclose(turned[0].norm(dim=-1), q.norm(dim=-1).expand(1, 1, 19), rtol=1e-5)
    product = (turned[0][0, 0] @ turned[1][0, 0].T)[3:, 3:].view(4, 4, 4, 4)
    assert product[0, 0, 1, 2] == pytest.approx(float(product[2, 1, 3, 3]), rel=1e-3)
    assert torch.equal(turned[0][:, :, :3], q.expand(1, 1, 3, 64))  # text stands at the origin


def test_lora_layers_are_those_of_the_blocks_but_the_modulations(flux):
    names = set(target_layers(flux))
    assert {"double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.2", "single_blocks.1.linear2"} <= names
    assert len(names) == 8 + 2 * 2 and not any("mod" in name for name in names)


def universal(flux, noise: float) -> dict:
    """A gate of the demo base's kinds, on this network."""
    base = MMDiT(MMDiTConfig(depth=1))
    first = {name: base.get_submodule(name) for name in target_layers(base)}
    gate = Gate(first, shared=True, noise=noise)
    layers = {name: flux.get_submodule(name) for name in target_layers(flux)}
    return universal_vectors(gate, layers)


def test_every_layer_gets_the_numbers_of_its_kinds(flux):
    vectors = universal(flux, 1.0)
    assert len(vectors) == 12 + 2 * 2  # the two qkv in thirds
    whole = vectors["single_blocks.0.linear1"]
    thirds = [vectors[f"double_blocks.0.img_attn.qkv[{64 * i}:{64 * i + 64}]"] for i in range(3)]
    for i, third in enumerate(thirds):
        assert torch.equal(whole.bias[64 * i : 64 * i + 64], third.bias)
    assert torch.equal(whole.bias[192:], vectors["double_blocks.0.img_mlp.0"].bias)
    assert torch.equal(vectors["single_blocks.0.linear2"].bias, vectors["double_blocks.0.txt_mlp.2"].bias)
    assert len({float(v.bias[0]) for v in vectors.values()}) == 6


def test_a_gate_that_has_learnt_nothing_is_the_plain_sum(flux):
    adapters = StackedAdapters(SmallFlux(CONFIG), 1, 2)
    g = torch.Generator().manual_seed(3)
    from autolora_core.fusion.branches import Branch

    branches = [
        Branch(name, lora, down=torch.randn(2, flux.get_submodule(name).in_features, generator=g),
               up=0.1 * torch.randn(flux.get_submodule(name).out_features, 2, generator=g))
        for lora in (0, 1) for name in adapters.kinds
    ]  # fmt: skip
    network = Network(flux, torch.float32)
    outs = []
    for gates in (None, universal(flux, 0.0), universal(flux, 1.0)):
        plan = build_plan(branches, network.channels, gates=gates)
        with network.running(Course(plan=plan), 1) as velocity:
            outs.append(velocity(*inputs()))
    assert torch.allclose(outs[0], outs[1], atol=1e-5) and (outs[0] - outs[2]).abs().max() > 1e-3
