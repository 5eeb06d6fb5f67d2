"""The soak's arithmetic, and a short soak on a real server: nothing of the pack is left behind."""

from __future__ import annotations

import random

import pytest
from e2e_world import StandIn

from benchmarks.reliability.soak import Soak, figures, growth, server, soak
from benchmarks.reliability.soak_graphs import COMMON, OTHERS, Ask, asks
from benchmarks.slopes import block_medians, theil_sen

SUBJECTS, STYLES = ("otter", "castle", "volcano", "sunflower", "rocket"), ("pixel art style", "watercolour style")


def memory(slope, count=500, jump=0.0):
    """MB after each prompt: warming up, noise, now and then a spike that goes again, and ``slope`` MB a prompt."""
    draw = random.Random(1)
    spikes = [30.0 * (draw.random() < 0.05) for _ in range(count)]
    return [1000 + 80 * min(n / 60, 1) + draw.gauss(0, 1) + spike + slope * n + jump * (n > 300)
            for n, spike in enumerate(spikes)]  # fmt: skip


def test_the_slope_is_that_of_most_pairs_and_its_interval_holds_it():
    found = theil_sen(range(9), [2.0 * n for n in range(8)] + [500.0])
    assert found.low <= found.value == 2.0 <= found.high
    wide = theil_sen(range(40), [random.Random(n).gauss(0, 1) for n in range(40)])
    assert wide.low < 0 < wide.high
    with pytest.raises(ValueError, match="3 points"):
        theil_sen([1, 2], [1, 2])


def test_blocks_are_middles_and_medians():
    assert block_medians([1, 9, 2, 8, 8, 8, 5], 3) == ([1, 4], [2, 8])


@pytest.mark.parametrize(("slope", "low", "high"), [(0.0, -0.5, 0.5), (0.02, 1.5, 2.5), (0.5, 48, 52)])
def test_growth_of_a_process_that_leaks_and_of_one_that_does_not(slope, low, high):
    found = growth(memory(slope))
    assert low < found.value < high and found.low <= found.value <= found.high


def test_what_grew_is_told():
    counts = {"pack": 900, "patchers": 3, "networks": 1, "tensors": 946, "tensor_bytes": 2**27, "blocks": 2_000_000}
    seen = Soak(memory(0.0), [1.0] * 500, [["a"], ["b"]] * 250)
    seen.objects = [{"prompts": 25, **counts}, {"prompts": 500, **counts, "patchers": 500}]
    told = figures(seen, memory(0.0))
    assert told["soak_objects_growth"] == 497 and told["soak_pick_sets"] == 2
    assert told["soak_first_last_equal"] == told["soak_base_equal"] == 0.0


def test_the_asks_use_every_mode_and_differ():
    made = asks(100)
    assert {ask.mode for ask in made} == {*COMMON, *OTHERS} and len(set(made)) == 100
    assert made[:50] == asks(50) and {ask.top_k for ask in made} == {1, 2, 3}


@pytest.mark.slow
def test_a_short_soak_leaves_nothing_behind(tmp_path):
    world = StandIn(tmp_path / "models")
    pairs = [f"the {subject}, {style}" for subject in SUBJECTS for style in STYLES]
    modes = [mode for pair in zip(COMMON * 4, OTHERS + COMMON, strict=True) for mode in pair]
    short = [Ask(pairs[n % len(pairs)], mode, n % 3 + 1, 0.5 + n / 40, n) for n, mode in enumerate(modes)]
    with server(tmp_path / "base", world.models()) as started:
        seen = soak(started, short, every=8)
    assert len(seen.memory) == 25 and len({tuple(names) for names in seen.picks}) >= 8
    assert seen.first_last and seen.base_equal and seen.weights_equal and seen.fused_left == 0
    first, last = seen.objects[0], seen.objects[-1]
    for kind in ("pack", "patchers", "networks"):
        assert last[kind] <= first[kind], (kind, seen.objects)
    assert last["tensor_bytes"] - first["tensor_bytes"] < 2**20
