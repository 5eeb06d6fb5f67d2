"""Proves that long products in chunks are those of the whole factors: whatever the lengths, however few numbers a chunk
has, where parts share a factor, and in buffers that other shapes left behind."""

from __future__ import annotations

import pytest
import torch

from autolora_core.encode import long_products
from autolora_core.encode.long_products import Side
from autolora_core.encode.signs import SignCache
from autolora_core.encode.sketch import SketchSize, _signs

SIZE = SketchSize(product=6, gram=4, diag=8)
LENGTHS = (300, 70, 300, 1000, 1)


def factors(tall: bool, rank: int, seed: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn((n, rank) if tall else (rank, n), generator=g) for n in LENGTHS]


@pytest.mark.parametrize("numbers", [1 << 20, 3000, 1])
@pytest.mark.parametrize("tall", [True, False])
@pytest.mark.parametrize("dtype, kept", [(torch.float32, torch.float16), (torch.float64, torch.float32)])
def test_chunks_make_no_difference(monkeypatch, tall, numbers, dtype, kept):
    monkeypatch.setattr(long_products, "CHUNK_NUMBERS", numbers)
    for rank in (7, 3):  # the second finds the buffers of the first
        given = [factor.to(kept) for factor in factors(tall, rank, rank)]
        names = [[f"m{i}.{part}" for part in range(1 if tall else 1 + i % 3)] for i in range(len(given))]
        bases = torch.randn(sum(map(len, names)), rank, rank, generator=torch.Generator().manual_seed(9)).double()
        side = Side(given, names, tall, SIZE, dtype)
        gram, seen = side.first()
        spread, place = side.second(bases), 0
        close = {"rtol": 0, "atol": 2e-3 if dtype == torch.float32 else 1e-9}
        for i, factor in enumerate(given):
            whole = factor.double() if tall else factor.double().T
            torch.testing.assert_close(gram[i], whole.T @ whole, **close)
            for name in names[i]:
                signs = _signs(name, len(whole), SIZE.product + SIZE.diag).T.double()
                torch.testing.assert_close(seen[place], signs[: SIZE.product] @ whole, **close)
                diagonal = (whole @ bases[place]).square().sum(dim=1)
                wanted = signs[SIZE.product :] @ (diagonal - diagonal.mean()) * len(whole) ** 0.5
                torch.testing.assert_close(spread[place], wanted, rtol=1e-4, atol=close["atol"] * len(whole) ** 0.5)
                place += 1


def test_signs_are_those_of_the_sketch_and_are_dropped_by_age():
    cache, bytes_each = SignCache(most=3 * 15 * 40), 15 * 40
    made = [cache.of(name, 40, SIZE) for name in "abc"]
    both = torch.cat([made[0].product, made[0].spread])
    assert torch.equal(both[:-1].float(), _signs("a", 40, 14).T) and (both[-1] == 1).all()
    assert made[0].total.tolist() == _signs("a", 40, 14).T[6:].sum(dim=1).tolist()
    assert cache.of("a", 40, SIZE) is made[0] and cache._bytes == 3 * bytes_each
    cache.of("d", 40, SIZE)
    assert cache._bytes == 3 * bytes_each and cache.of("a", 40, SIZE) is made[0]
    assert cache.of("b", 40, SIZE) is not made[1], "it was used longest ago"
    cache.clear()
    assert cache._bytes == 0 and not cache._kept
