"""Proves that the benchmark of duplicates makes what it says, against dense float64 matrices, and judges fairly."""

from __future__ import annotations

import pytest
import torch
from similar_files import dense, made, summed

from autolora_core.library.merges import Merge
from autolora_core.library.shelf import MergeFound
from benchmarks import duplicate_files
from benchmarks.duplicate_counts import Count, merge_is_true
from benchmarks.duplicate_files import Origin, copies, merges, read, truth, write
from benchmarks.duplicate_margins import Sides
from benchmarks.duplicates import halves, shipped

NAMES = ("joint_blocks.0.x_block.attn.qkv", "joint_blocks.0.context_block.mlp.fc1", "joint_blocks.2.x_block.mlp.fc2")
SHAPES = dict(zip(NAMES, ((96, 32), (64, 32), (32, 64)), strict=True))


def close(a, b, limit: float) -> bool:
    left, right = dense(a), dense(b)
    return left.keys() == right.keys() and all(
        float((left[n] - right[n]).norm() / right[n].norm()) < limit for n in left
    )


@pytest.mark.parametrize("keys", ["kohya", "diffusers", "peft", "native"])
def test_files_say_what_was_written_in_every_format(tmp_path, keys):
    lora = made(1, shapes=SHAPES)
    path = write(tmp_path / "x.safetensors", lora, keys, "float16", alpha=0.5)
    assert close(read(path), lora, 2e-3)


def test_copies_are_what_they_are_called():
    lora = made(2, shapes=SHAPES)
    seen = set()
    for origin, factors, _ in copies("run", lora):
        seen.add(origin.kind)
        if origin.kind in ("resaved", "refactorised"):
            assert close(factors, lora, 1e-5)
        elif origin.kind == "rescaled":
            assert close(factors, {n: (d, u * origin.scale) for n, (d, u) in lora.items()}, 1e-6)
        elif origin.kind == "part":
            assert set(factors) == set(NAMES[:2])
        else:
            for name, matrix in dense(factors).items():
                u, s, vt = torch.linalg.svd(dense(lora)[name], full_matrices=False)
                k = len(factors[name][0])
                best = (u[:, :k] * s[:k]) @ vt[:k] * origin.scale
                assert float((matrix - best).norm() / best.norm()) < 1e-5
    assert seen == {"resaved", "rescaled", "refactorised", "truncated", "part"}


def test_merges_are_weighted_sums():
    held = {"a": made(1, shapes=SHAPES), "b": made(2, shapes=SHAPES)}
    seen = []
    for origin, factors, _ in merges(["a", "b"], held):
        (one, x), (other, y) = origin.parts
        seen.append(origin.how)
        total = dense(summed(held[one], x, held[other], y))
        if origin.how == "sum":
            assert all(torch.allclose(matrix, total[n], atol=1e-5) for n, matrix in dense(factors).items())
        elif origin.how == "matrices":
            down = factors[NAMES[0]][0]
            assert torch.allclose(down, x**0.5 * held[one][NAMES[0]][0] + y**0.5 * held[other][NAMES[0]][0])
    assert set(seen) == {"sum", "truncated", "matrices"}


def test_truth_of_two_files():
    base = Origin("r")
    cases = {
        "resaved": Origin("r", "resaved"),
        "rescaled": Origin("r", "rescaled", scale=2.0),
        "refactorised": Origin("r", form="mixed", scale=2.0),
        "truncated": Origin("r", cut="2", form="svd"),
        "part": Origin("r", part="blocks"),
        "epoch": Origin("r", step=9),
    }
    for kind, origin in cases.items():
        assert truth(base, origin) == truth(origin, base) == {kind}
    assert truth(base, Origin("other")) == set()
    merge = Origin("r+s", parts=(("r", 0.5), ("s", 0.5)), how="sum")
    assert truth(base, merge) == set()
    assert truth(merge, duplicate_files.replace(merge, how="truncated")) == {"truncated"}
    assert "resaved" not in truth(cases["truncated"], Origin("r", cut="3", form="svd"))


def test_a_merge_is_true_with_the_right_parts_and_weights():
    origin = {
        "w": Origin("a+b", parts=(("a", 0.7), ("b", 0.3)), how="sum"), "a": Origin("a"), "b": Origin("b"),
        "a2": Origin("a", scale=2.0), "c": Origin("c"),
    }  # fmt: skip

    def said(first: str, second: str, *weights: float) -> bool:
        merge = Merge(weights, "sum", 0.0, (1.0, 1.0), 1, False)
        return merge_is_true(MergeFound("w", first, second, merge), origin)

    assert said("a", "b", 0.7, 0.3) and said("b", "a2", 0.3, 0.35)
    assert not said("a", "b", 0.6, 0.3) and not said("a", "c", 0.7, 0.3) and not said("a2", "b", 0.7, 0.3)


def test_counts_become_precision_and_recall():
    count = Count()
    count.wanted["resaved"], count.found["resaved"] = 4, 3
    for other in (Origin("r"), Origin("r"), Origin("q")):
        count.pair("resaved", Origin("r", "resaved"), other, 0.9)
    figures = count.figures("x_")
    assert figures["x_resaved_precision"] == pytest.approx(2 / 3) and figures["x_resaved_recall"] == 0.75
    assert [row["truth"] for row in count.wrong] == [[]]


def test_margins_count_what_lies_on_the_wrong_side():
    side = Sides("x", 0.5)
    for value, below in ((0.1, True), (0.6, True), (0.9, False), (0.4, False)):
        side.add(value, below)
    row = side.row()
    assert (row["highest_below"], row["lowest_above"], row["wrong"]) == (0.6, 0.4, 2)


def test_halves_of_the_shipped_loras_share_nothing():
    origins = shipped()
    dev, test = halves(origins, 24)
    assert len(dev) == len(test) == 24 and not set(dev) & set(test)
    assert sum(origin.kind != "original" for origin in origins.values()) == 7
