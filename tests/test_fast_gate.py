"""Proves that the gated sum without branch outputs is the gated sum: statistics from small matrices in float64, the
chunked torch path and, in Triton's interpreter, the kernel."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from triton_interpreter import needs_triton, passed

from autolora_core.fusion.fast import chunked, in_place
from autolora_core.fusion.fast.packed import BLOCK, coefficients, moments_of, pack
from autolora_core.fusion.gate import VECTORS, GateVectors, Tilt, gated_update

TOKENS, CHANNELS, EPS = 37, 200, 1e-5
RANKS, SCALES = (4, 16, 40), (0.7, 1.3, -0.5)
TILTS = (Tilt((0.3, 0.2), (0.1, -0.4)), Tilt(), Tilt((-0.3, 0.0), (0.2, 0.0)))
SHARE = 0.3


def world(spread: float = 1.0, offset: float = 0.0):
    """Base output, hidden parts, up factors whose columns fall to ``spread`` and share the mean ``offset``, a gate."""
    dice = torch.Generator().manual_seed(0)

    def random(*size):
        return torch.randn(*size, generator=dice)

    ups = [random(CHANNELS, r) * torch.logspace(0, torch.tensor(spread).log10().item(), r) + offset for r in RANKS]
    vectors = GateVectors.from_named({name: random(CHANNELS) for name in VECTORS})
    return random(TOKENS, CHANNELS) * 2 + 1, [random(TOKENS, r) for r in RANKS], ups, vectors


def exact(y0, hidden, ups, vectors, tilts=None):
    """The gate as it is written down (see :mod:`autolora_core.fusion.gate`), in float64."""
    wide = GateVectors.from_named({name: value.double() for name, value in vectors.named().items()})
    norm, y0 = torch.nn.functional.layer_norm, y0.double()
    base = norm(y0, y0.shape[-1:], wide.norm_base_weight, wide.norm_base_bias, EPS)
    out, way = y0.clone(), 2 * SHARE - 1
    for h, up, scale, tilt in zip(hidden, ups, SCALES, tilts or [Tilt()] * len(ups), strict=True):
        y = scale * h.double() @ up.double().T
        lora = norm(y, y.shape[-1:], wide.norm_lora_weight, wide.norm_lora_bias, EPS)
        logits = base * wide.weight_base + lora * wide.weight_lora + base * lora * wide.weight_cross + wide.bias
        gain = math.exp(tilt.gain[0] + tilt.gain[1] * way)
        out += gain * wide.weight_out * torch.sigmoid(logits + tilt.shift[0] + tilt.shift[1] * way) * y
    return out


def test_the_reference_is_the_shipped_gate():
    y0, hidden, ups, vectors = world()
    branches = (s * h @ up.T for s, h, up in zip(SCALES, hidden, ups, strict=True))
    shipped = y0 + gated_update(y0, branches, vectors, tilts=TILTS, u=SHARE)
    torch.testing.assert_close(exact(y0, hidden, ups, vectors, TILTS).float(), shipped, rtol=1e-4, atol=1e-4)


def side_by_side(hidden, packed):
    out = torch.zeros(TOKENS, packed.columns)
    for (first, _), h in zip(packed.bounds, hidden, strict=True):
        out[:, first : first + h.shape[1]] = h
    return out


def knobs(tilts=None):
    way = 2 * SHARE - 1
    rows = []
    for scale, tilt in zip(SCALES, tilts or [Tilt()] * 3, strict=True):
        shift, gain = (part[0] + part[1] * way for part in (tilt.shift, tilt.gain))
        rows.append([scale, shift, torch.tensor(gain).exp().item()])
    return torch.tensor(rows)


@pytest.mark.parametrize("rank", [1, 16, 256])
def test_statistics_follow_from_hidden_parts(rank):
    """Mean and variance over the channels, without the output: float64, ranks above the number of channels too."""
    dice = torch.Generator().manual_seed(rank)
    up = torch.randn(CHANNELS, rank, generator=dice, dtype=torch.float64) + 3
    h = torch.randn(TOKENS, rank, generator=dice, dtype=torch.float64)
    mean, root = moments_of(up)
    y = h @ up.T
    torch.testing.assert_close(h @ mean, y.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((h @ root.T).square().sum(1), y.var(1, correction=0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("spread", "offset"), [(1.0, 0.0), (1e-6, 0.0), (1.0, 10.0)])
@pytest.mark.parametrize("tilts", [None, TILTS])
def test_chunked_is_the_gate(spread, offset, tilts):
    """Ill-conditioned factors, and ones whose outputs are nearly all mean."""
    y0, hidden, ups, vectors = world(spread, offset)
    packed = pack(ups)
    out = chunked.gated(y0, side_by_side(hidden, packed), packed, coefficients(vectors), knobs(tilts), EPS, tokens=16)
    wanted = exact(y0, hidden, ups, vectors, tilts)
    size = (wanted - y0).abs().max()
    assert (out.double() - wanted).abs().max() < 2e-5 * size  # float32 in between


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("threads", "tokens"), [(1, 16), (2, 16), (2, 5), (3, 64)])
def test_wide_layers_go_in_tiles_of_channels(monkeypatch, dtype, threads, tokens):
    """Tiles with a narrower last one, rests of tokens, shares that come out even or not: all the same as float64, and
    nothing beside the rows and channels that are meant is touched."""
    monkeypatch.setattr(in_place, "WHOLE", 100)
    monkeypatch.setattr(in_place, "TILE", 64)
    y0, hidden, ups, vectors = world()
    packed = pack(ups, torch.promote_types(dtype, torch.float32))
    around = torch.zeros(TOKENS, CHANNELS + 8, dtype=dtype)
    around[:, 3:-5] = y0
    start, hidden = around[:, 3:-5].clone(), side_by_side(hidden, packed).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        in_place.add_gated(around[:, 3:-5], hidden, packed, coefficients(vectors), knobs(TILTS).tolist(), EPS, tokens)
    finally:
        torch.set_num_threads(before)
    parts = [hidden[:, first : first + up.shape[1]] for (first, _), up in zip(packed.bounds, ups, strict=True)]
    wanted = exact(start, parts, ups, vectors, TILTS)
    room = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 2e-5 / 30)  # half a last place of the largest
    assert (around[:, 3:-5].double() - wanted).abs().max() <= room * wanted.abs().max()
    assert not around[:, :3].any() and not around[:, -5:].any()


@pytest.mark.parametrize(("tokens", "most"), [(1, 64), (77, 64), (1024, 102), (1000, 102), (5, 2)])
def test_pieces_are_of_one_size_but_for_a_last_that_is_hardly_smaller(monkeypatch, tokens, most):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    count = in_place._evenly(tokens, most)
    pieces = -(-tokens // count)
    assert count <= most and pieces == -(-tokens // most) and pieces * count - tokens < 2 * pieces


def test_it_notices_a_wrong_statistic():
    """The comparison above can fail: a mean that is off by a tenth shows."""
    y0, hidden, ups, vectors = world()
    packed = pack(ups)
    wrong = replace(packed, mean=packed.mean + 0.1)
    out = chunked.gated(y0, side_by_side(hidden, packed), wrong, coefficients(vectors), knobs(), EPS)
    wanted = exact(y0, hidden, ups, vectors)
    assert (out.double() - wanted).abs().max() > 1e-3 * (wanted - y0).abs().max()


def test_ragged_ranks_are_filled_up():
    packed = pack([torch.ones(8, 3), torch.ones(8, 17)])
    assert packed.bounds == ((0, BLOCK), (BLOCK, 3 * BLOCK))
    assert packed.up[:, 3:BLOCK].abs().max() == 0 and packed.up[:, BLOCK + 17 :].abs().max() == 0


@pytest.mark.slow
@needs_triton
def test_kernel_in_the_interpreter():
    """Every launch, dtype and rank, against float64; in a process of its own, as Triton reads its switch at import."""
    assert passed("triton_side.py") == 10
