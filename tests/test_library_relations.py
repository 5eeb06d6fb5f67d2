"""Proves that what two files are to each other is decided from exact numbers: every measure equals a dense float64 one,
every way of copying, cutting and merging gets its own name with the right factor or weights, and a twin that is not
quite one does not."""

from __future__ import annotations

import pytest
import torch
from similar_files import SHAPES, averaged, cut_to, dense, drifted, flat, made, mixed, scaled, summed

from autolora_core.library.merges import find_merge
from autolora_core.library.relations import decide, measure, rounding_limit
from autolora_core.library.weights import Weights, cut, singular_values
from autolora_core.lora.adapters import Update

NAMES = sorted(SHAPES)


def weights(factors, dtype: torch.dtype = torch.float32) -> Weights:
    """As a file of ``dtype`` would be read."""
    return Weights.of(
        Update(name, "lowrank", down=down.to(dtype).float(), up=up.to(dtype).float())
        for name, (down, up) in factors.items()
    )


def related(a, b, dtype: torch.dtype = torch.float32):
    return decide(measure(weights(a), weights(b, dtype)))


@pytest.fixture(scope="module")
def lora():
    return made(1)


def test_cosines_and_factors_equal_dense_ones():
    a, b = made(1), made(2, rank=3)
    b = {name: (down + a[name][0][:3], up + a[name][1][:, :3]) for name, (down, up) in b.items()}
    del a[NAMES[0]], b[NAMES[1]]
    x, y = flat(a, NAMES), flat(b, NAMES)
    shared = sorted(a.keys() & b.keys())
    xs, ys = flat(a, shared), flat(b, shared)
    found = measure(weights(a), weights(b))
    assert found.cosine == pytest.approx(float(x @ y / (x.norm() * y.norm())), abs=1e-12)
    assert found.common_cosine == pytest.approx(float(xs @ ys / (xs.norm() * ys.norm())), abs=1e-12)
    assert found.factor == pytest.approx(float(xs @ ys / (ys @ ys)), abs=1e-12)
    each = [float((dense(a)[n] * dense(b)[n]).sum() / dense(b)[n].square().sum()) for n in shared]
    assert found.factors == pytest.approx((min(each), max(each)), abs=1e-12)
    left = sum((dense(a)[n] - f * dense(b)[n]).square().sum() for n, f in zip(shared, each, strict=True))
    assert found.residual_by_layer == pytest.approx(float((left / (xs @ xs)).sqrt()), abs=1e-7)
    assert (found.shared, found.only_a, found.only_b) == (2, 1, 1)


def test_a_truncation_reaches_what_its_rank_allows_and_nothing_else_does(lora):
    small = cut_to(lora, 2)
    shares = [torch.linalg.svdvals(matrix).square() for matrix in dense(lora).values()]
    best = float((sum(s[:2].sum() for s in shares) / sum(s.sum() for s in shares)).sqrt())
    found = measure(weights(lora), weights(small))
    assert found.common_cosine == pytest.approx(best, abs=1e-6) and found.shortfall_b == pytest.approx(0, abs=1e-6)
    assert found.shortfall_a is None
    not_the_best = {name: (down[::2], up[:, ::2]) for name, (down, up) in cut_to(lora, 4).items()}
    assert measure(weights(lora), weights(not_the_best)).shortfall_b > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_saved_again_in_any_format(lora, dtype):
    found = related(lora, lora, dtype)
    assert found.kind == "resaved" and found.measured.factor == pytest.approx(1, abs=0.02)


def test_rounding_is_told_by_the_values_not_by_the_file(lora):
    once = {name: (down.bfloat16().float(), up.bfloat16().float()) for name, (down, up) in lora.items()}
    assert weights(once).rounding == weights(lora, torch.bfloat16).rounding == 1.6e-3
    assert weights(lora).rounding < 1e-6 and weights(lora, torch.float16).rounding == 2e-4
    # And the error claimed for a format is the error that rounding to it makes.
    for dtype, claimed in ((torch.float16, 2e-4), (torch.bfloat16, 1.6e-3), (torch.float8_e4m3fn, 2.6e-2)):
        x = torch.rand(100_000) + 1
        error = float(((x.to(dtype).float() - x) / x).square().mean().sqrt())
        assert claimed == pytest.approx(error, rel=0.35)


@pytest.mark.parametrize("by", [0.5, 1.3, 2.0, -1.0, 0.1])
def test_rescaled_names_the_factor(lora, by):
    found = related(lora, scaled(lora, by), torch.float16)
    assert found.kind == "rescaled" and found.measured.factor == pytest.approx(1 / by, rel=1e-3)
    root = {name: (down * abs(by) ** 0.5, up * by / abs(by) ** 0.5) for name, (down, up) in lora.items()}
    assert related(lora, root).kind == "rescaled"


def test_rescaled_layer_by_layer(lora):
    found = related(lora, {name: (down, up * (1 + i)) for i, (name, (down, up)) in enumerate(lora.items())})
    assert found.kind == "rescaled" and found.measured.factors == pytest.approx((0.25, 1), rel=1e-5)


def test_refactorised(lora):
    assert related(lora, mixed(lora)).kind == related(lora, mixed(lora), torch.bfloat16).kind == "refactorised"
    louder = related(lora, scaled(mixed(lora), 2))
    assert louder.kind == "refactorised" and louder.measured.factor == pytest.approx(0.5, rel=1e-5)
    assert related(lora, cut_to(lora, 4)).kind == "refactorised"  # nothing was cut off


def test_layout_does_not_matter(lora):
    """Fused q, k and v against three slices of it."""
    whole = weights({NAMES[0]: lora[NAMES[0]]})
    down, up = lora[NAMES[0]]
    slices = Weights.of(
        Update(f"{NAMES[0]}[{start}:{start + 32}]", "lowrank", down=down, up=up[start : start + 32])
        for start in (0, 32, 64)
    )
    assert decide(measure(whole, slices)).kind == decide(measure(slices, whole)).kind == "resaved"
    assert torch.equal(cut(slices.modules[NAMES[0]], 16, 48)[0] @ cut(slices.modules[NAMES[0]], 16, 48)[1],
                       up[16:48].double() @ down.double())  # fmt: skip


def test_part(lora):
    part = {name: value for name, value in lora.items() if name != NAMES[0]}
    found = related(lora, scaled(part, 2), torch.float16)
    assert (found.kind, found.smaller, found.measured.factor) == ("part", "b", pytest.approx(0.5, rel=1e-3))
    assert related(part, lora).smaller == "a"
    other = {name: value for name, value in lora.items() if name != NAMES[1]}
    assert related(part, other).kind == "part" and related(part, other).smaller is None


def test_truncated(lora):
    found = related(lora, scaled(cut_to(lora, 2), 2), torch.float16)
    assert (found.kind, found.smaller) == ("truncated", "b")
    assert found.measured.factor == pytest.approx(0.5, rel=1e-2)
    assert related(cut_to(lora, 1), lora).smaller == "a"


def test_another_step_of_the_training(lora):
    assert related(lora, drifted(lora, 0.3)).kind == "epoch"
    # Other matrices: it may as well be a merge with something that is not at hand.
    assert related(lora, mixed(drifted(lora, 0.3))).kind == "alike"
    far = related(lora, drifted(lora, 0.45))  # less is left, but its matrices still lie the same way
    assert far.kind == "epoch" and far.measured.common_cosine < 0.9
    assert related(lora, mixed(drifted(lora, 0.7))).kind == "alike"


def test_alike_and_unlike(lora):
    assert related(lora, made(2)).kind == "unlike"
    shared = {name: (torch.cat([down, made(3)[name][0]]), torch.cat([0.5 * up, made(3)[name][1]], 1))
              for name, (down, up) in lora.items()}  # fmt: skip
    assert related(lora, shared).kind == "alike"
    assert related({NAMES[0]: lora[NAMES[0]]}, {NAMES[1]: lora[NAMES[1]]}).kind == "unlike"
    # One layer of many in common, and alike there: that does not make it a version.
    one = {name: lora[name] if name == NAMES[0] else made(4)[name] for name in NAMES}
    apart = {f"joint_blocks.2.x_block.{i}": value for i, value in enumerate(made(5).values())}
    assert related({**apart, NAMES[0]: lora[NAMES[0]]}, drifted(one, 0.1)).kind in ("alike", "unlike")


def test_weights_of_a_merge_equal_a_dense_least_squares():
    one, other, noise = made(1), made(2, rank=3), made(3, rank=1)
    whole = summed(summed(one, 0.7, other, -0.4), 1.0, noise, 0.001)
    columns = torch.stack([flat(one, NAMES), flat(other, NAMES)], dim=1)
    solved = torch.linalg.lstsq(columns, flat(whole, NAMES)[:, None])
    found = find_merge(weights(whole), weights(one), weights(other))
    assert found.how == "sum" and found.weights == pytest.approx(solved.solution[:, 0].tolist(), abs=1e-9)
    rest = (flat(whole, NAMES) - (columns @ solved.solution)[:, 0]).norm() / flat(whole, NAMES).norm()
    assert found.left_over == pytest.approx(float(rest), abs=1e-7)


@pytest.mark.parametrize("x, y", [(0.5, 0.5), (0.8, 0.2), (1.0, -0.6)])
def test_merges_of_three_kinds(x, y):
    one, other = made(1), made(2)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        exact = find_merge(weights(summed(one, x, other, y), dtype), weights(one), weights(other))
        assert exact.how == "sum" and exact.weights == pytest.approx((x, y), rel=0.01)
        small = find_merge(weights(cut_to(summed(one, x, other, y), 5), dtype), weights(one), weights(other))
        assert small.how == "truncated" and small.weights == pytest.approx((x, y), rel=0.02)
    if y > 0:
        each = find_merge(weights(averaged(one, x, other, y), torch.float16), weights(one), weights(other))
        assert each.how == "matrices" and each.weights == pytest.approx((x, y), rel=0.01)


def test_what_is_no_merge():
    one, other, third = made(1), made(2), made(3)
    assert find_merge(weights(third), weights(one), weights(other)) is None
    assert find_merge(weights(summed(one, 0.5, third, 0.5)), weights(one), weights(other)) is None
    assert find_merge(weights(one), weights(one), weights(other)) is None  # the second brings nothing
    assert find_merge(weights(one), weights(scaled(one, 2)), weights(mixed(one))) is None  # one LoRA twice
    # What a merge and one of its parts have in common is the other part, not made of them.
    mixture = summed(one, 0.8, other, -0.5)
    assert find_merge(weights(cut_to(one, 3)), weights(mixture), weights(other)) is None
    assert find_merge(weights(one), weights(mixture), weights(other)) is None
    later, latest = drifted(one, 0.2), drifted(drifted(one, 0.2), 0.2, seed=4)
    assert find_merge(weights(later), weights(one), weights(latest)) is None


def test_singular_values_equal_dense_ones(lora):
    down, up = lora[NAMES[1]]
    expected = torch.linalg.svdvals(up.double() @ down.double())
    assert torch.allclose(singular_values(up.double(), down.double()), expected[:4], atol=1e-12)


def test_limits_grow_with_the_rounding():
    assert rounding_limit(0) == 2e-3 and rounding_limit(1.6e-3) > rounding_limit(2e-4)
