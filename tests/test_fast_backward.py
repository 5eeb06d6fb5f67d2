"""Proves that gradients of the fused gate are those of the gate as it is written down, that a gate in training gets
the same ones through it, and that nothing of a layer's output size is kept for them but what came in."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.fast import backward
from autolora_core.fusion.fast.packed import Packed, coefficients, moments_of
from autolora_core.fusion.gate import VECTORS, GateVectors
from autolora_core.fusion.training.fused import FusedLoras
from autolora_core.fusion.training.parameters import GateParameters, hooked_update

TOKENS, CHANNELS, RANKS, EPS = 11, 24, (1, 5, 3), 1e-5
SPREADS = [(1.0, 0.0), (1e-6, 0.0), (1.0, 30.0)]  # of the factors' columns; mean of their outputs


def random(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed + 7 * len(size)), dtype=torch.float64)


def factors(spread: float, offset: float) -> list[torch.Tensor]:
    return [random(CHANNELS, rank, seed=rank) * torch.logspace(0, math.log10(spread), rank) + offset for rank in RANKS]


def packed_of(ups) -> Packed:
    """Side by side without fill, statistics in float64."""
    found, ends = [moments_of(up) for up in ups], [0]
    for up in ups:
        ends.append(ends[-1] + up.shape[1])
    bounds = tuple(zip(ends, ends[1:], strict=False))
    root = torch.zeros(ends[-1], max(RANKS), dtype=torch.float64)
    for (first, last), (_, triangle) in zip(bounds, found, strict=True):
        root[first:last, : last - first] = triangle.T
    return Packed(torch.cat(ups, 1), torch.cat([mean for mean, _ in found]), root, torch.tensor(bounds), bounds)


def inputs() -> list[torch.Tensor]:
    """y0, hidden, knobs (scale, shift, gain) and the nine vectors, all asking for gradients."""
    knobs = torch.tensor([[0.7, 0.2, 1.1], [1.3, 0.0, 0.8], [-0.5, -0.4, 1.0]], dtype=torch.float64)
    made = [random(TOKENS, CHANNELS) * 2 + 1, random(TOKENS, sum(RANKS), seed=1), knobs]
    made += [random(CHANNELS, seed=2 + number) for number in range(len(VECTORS))]
    return [one.requires_grad_() for one in made]


def fused(packed):
    def run(y0, hidden, knobs, *vectors):
        table = coefficients(GateVectors.from_named(dict(zip(VECTORS, vectors, strict=True))), torch.float64)
        return backward.gated(y0, hidden, packed, table, knobs, EPS, tokens=4)

    return run


def written(ups):
    """The gate as it is written down, in float64: every branch output and its norm."""

    def run(y0, hidden, knobs, *vectors):
        w = GateVectors.from_named(dict(zip(VECTORS, vectors, strict=True)))
        norm, out, at = torch.nn.functional.layer_norm, y0, 0
        base = norm(y0, y0.shape[-1:], w.norm_base_weight, w.norm_base_bias, EPS)
        for up, (scale, shift, gain) in zip(ups, knobs.unbind(0), strict=True):
            y = scale * hidden[:, at : at + up.shape[1]] @ up.T
            lora = norm(y, y.shape[-1:], w.norm_lora_weight, w.norm_lora_bias, EPS)
            logits = base * w.weight_base + lora * w.weight_lora + base * lora * w.weight_cross + w.bias + shift
            out = out + gain * w.weight_out * torch.sigmoid(logits) * y
            at += up.shape[1]
        return out

    return run


@pytest.mark.parametrize(("spread", "offset"), SPREADS)
def test_gradients_are_those_of_finite_differences(spread, offset):
    """Float64, ragged ranks, ill-conditioned factors, and ones whose outputs are nearly all mean."""
    assert torch.autograd.gradcheck(fused(packed_of(factors(spread, offset))), inputs(), fast_mode=True)


@pytest.mark.parametrize(("spread", "offset"), SPREADS)
def test_gradients_are_those_of_the_gate_as_written(spread, offset):
    ups, asked = factors(spread, offset), inputs()
    push = random(TOKENS, CHANNELS, seed=40)
    found, wanted = (torch.autograd.grad(run(*asked), asked, push) for run in (fused(packed_of(ups)), written(ups)))
    for name, one, other in zip(("y0", "hidden", "knobs", *VECTORS), found, wanted, strict=True):
        assert (one - other).abs().max() < 1e-8 * other.abs().max(), name


def test_it_notices_a_wrong_statistic():
    """The comparison above can fail."""
    ups, asked = factors(1.0, 0.0), inputs()
    packed = packed_of(ups)
    wrong = Packed(packed.up, packed.mean, 1.01 * packed.root, packed.spans, packed.bounds)
    found, wanted = (torch.autograd.grad(run(*asked).sum(), asked[1])[0] for run in (fused(wrong), written(ups)))
    assert (found - wanted).abs().max() > 1e-4 * wanted.abs().max()


def test_only_what_asks_gets_a_gradient():
    asked = inputs()
    packed = packed_of(factors(1.0, 0.0))
    asked[0] = asked[0].detach()  # as at the first layer of a model
    fused(packed)(*asked).sum().backward()
    assert asked[0].grad is None and all(one.grad is not None for one in asked[1:])
    up = packed.up.clone().requires_grad_()
    grown = Packed(up, packed.mean, packed.root, packed.spans, packed.bounds)
    fused(grown)(*asked).sum().backward()
    assert up.grad.abs().max() > 0


# In training

LAYERS = {"a.qkv": 12, "a.fc": 10}


def low_rank(layer: str, lora: int, rank: int, span=None, dtype=torch.float32) -> Branch:
    width = span[1] - span[0] if span else LAYERS[layer]
    down, up = random(rank, 6, seed=lora), random(width, rank, seed=10 + lora)
    return Branch(layer, lora, down=down.to(dtype), up=up.to(dtype), scale=0.5 + lora, slice=span)


CASES = {
    "whole": ("a.fc", {0: [(4, None)], 1: [(2, None)], 4: [(7, None)]}),
    "fused qkv cut in three": ("a.qkv", {0: [(3, None)], 1: [(2, None)]}),
    "unfused, the last part not there": ("a.qkv", {0: [(3, (0, 4)), (2, (4, 8))], 2: [(5, None)]}),
    "two slices on one span, ranks beyond the channels": ("a.fc", {0: [(3, (0, 4)), (16, (6, 10))], 1: [(2, None)]}),
    "a part without any": ("a.qkv", {0: [(3, (8, 12))]}),
}


def learnt(layer: str) -> GateParameters:
    gate = GateParameters({layer: LAYERS[layer]})
    with torch.no_grad():
        for number, parameter in enumerate(gate.parameters()):
            parameter.add_(0.3 * random(*parameter.shape, seed=number).float())
    return gate


def both_ways(layer, loras, x, y0, dim, dtype):
    """(fused, eager) outputs of one layer in training, and the function of each, from the same branches."""
    roles, count, u = {0: "style", 1: "subject"}, float(len(loras)), 0.3
    heard = {
        lora: [torch.einsum("ri,n...i->n...r", b.down, x).movedim(-1, dim) * b.scale for b in own]
        for lora, own in loras.items()
    }

    def whole(lora):
        out = torch.zeros_like(y0)
        for branch, h in zip(loras[lora], heard[lora], strict=True):
            start, stop = branch.span(LAYERS[layer])
            out.narrow(dim, start, stop - start).add_((h.movedim(dim, -1) @ branch.up.T).movedim(-1, dim))
        return out

    gate = learnt(layer)
    ours = FusedLoras(layer, LAYERS[layer], loras).output(gate, y0, heard, roles, count, u, dim)
    yield gate, ours
    gate = learnt(layer)
    update = hooked_update(gate, layer, y0, {lora: whole(lora) for lora in loras}, roles, count, u, dim)
    yield gate, y0 + update.to(y0.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [-1, 1])
@pytest.mark.parametrize("case", CASES)
def test_training_through_it_is_training_through_the_gate(case, dim, dtype):
    """Outputs, gradients of vectors, roles and powers, and of the layer's input and output; convolutions too."""
    layer, told = CASES[case]
    loras = {n: [low_rank(layer, n, rank, span, dtype) for rank, span in own] for n, own in told.items()}
    size, results = (2, 3, 5) if dim == 1 else (2, 7), []
    for which in (0, 1):
        x = random(*size, 6, seed=3).to(dtype).requires_grad_()
        y0 = random(*size, LAYERS[layer], seed=5).to(dtype).movedim(-1, dim).requires_grad_()
        gate, out = [*both_ways(layer, loras, x, y0, dim, dtype)][which]
        out.float().square().sum().backward()
        asked = {"x": x, "y0": y0, **dict(gate.named_parameters())}
        results.append({"out": out.detach()} | {name: one.grad for name, one in asked.items()})
    close = 1e-4 if dtype == torch.float32 else 4e-2
    for name, one in results[0].items():
        other = results[1][name]
        if one is None or other is None:  # a span without LoRAs has no gate
            assert one is None and (other is None or not other.any()), name
            continue
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one - other).abs().max() <= close * max(1.0, other.abs().max()), name


def saved_bytes(run) -> tuple[int, torch.Tensor]:
    """Bytes of the storages that autograd keeps of what ``run`` computes, each counted once; and what it returns."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address is used twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), out


@pytest.mark.parametrize("count", [1, 3, 8])
def test_what_is_kept_does_not_grow_with_the_loras(count):
    """Of 4 bytes a number of the layer's output: ours keeps the base's output once, the gate as written six and more
    of that size a LoRA."""
    tokens, channels, rank = 256, 512, 4
    y0 = random(tokens, channels).float().requires_grad_()
    heard = {lora: [random(tokens, rank, seed=lora).float().requires_grad_()] for lora in range(count)}
    loras = {n: [Branch("a", n, down=torch.zeros(rank, 6), up=random(channels, rank, seed=n).float())] for n in heard}
    gate, (roles, u) = GateParameters({"a": channels}), ({}, 0.5)
    ours = FusedLoras("a", channels, loras)
    small, out = saved_bytes(lambda: ours.output(gate, y0, heard, roles, float(count), u, -1))
    assert out.requires_grad
    whole = {lora: own[0] @ loras[lora][0].up.T for lora, own in heard.items()}
    large, _ = saved_bytes(lambda: y0 + hooked_update(gate, "a", y0, whole, roles, float(count), u, -1))
    one = y0.numel() * 4
    assert small < 1.5 * one, small / one
    assert large > 6 * count * one, large / one
