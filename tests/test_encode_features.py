"""Proves that features are functions of ΔW alone, that fused and split files agree, and what absence does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encode_worlds import FakeUpdate, dense_of, lowrank, seeded

from autolora_core.encode.features import FeatureSchema, module_features, split_fused
from autolora_core.encode.sketch import SketchSize, _signs, leading_factors, sketch

SIZE = SketchSize(product=16, gram=8, diag=16)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_sketch_equals_its_dense_definition(kernel):
    update = lowrank("blocks.0.fc", 30, 14, 5, seed=1, kernel=kernel)
    row, log_norm = sketch(update, SIZE)
    delta = dense_of(update).flatten(1)
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    soft = s / s.sum()
    parts = []
    r_out = _signs("blocks.0.fc>out", 30, 32).double()
    r_in = _signs("blocks.0.fc>in", delta.shape[1], 32).double()
    parts.append((r_out[:, :16].T @ (delta / s.norm()) @ r_in[:, :16]).flatten() / 16)
    rows, columns = torch.triu_indices(8, 8)
    for r, p in ((r_out, (u * soft) @ u.T), (r_in, (vt.T * soft) @ vt)):
        gram = r[:, :8].T @ p @ r[:, :8] / 8
        parts.append(torch.where(rows == columns, gram[rows, columns], 2**0.5 * gram[rows, columns]))
    for r, p in ((r_out, (u * soft) @ u.T), (r_in, (vt.T * soft) @ vt)):
        parts.append(r[:, 16:].T @ (p.diagonal() - p.diagonal().mean()) * len(p) ** 0.5)
    np.testing.assert_allclose(row, torch.cat(parts).numpy(), atol=1e-6)
    assert log_norm == pytest.approx(float(s.norm().log()), abs=1e-9)


@pytest.mark.parametrize("rank, kernel", [(1, ()), (4, ()), (24, ()), (4, (3, 3))])
def test_refactoring_and_strength_change_nothing(rank, kernel):
    """A → RA, B → BR⁻¹ (condition 10⁴) and ΔW → −3ΔW's norm: at most 1e-6."""
    update = lowrank("m", 40, 18, rank, seed=2, kernel=kernel)
    scales = torch.diag(10.0 ** torch.linspace(-2, 2, rank, dtype=torch.float64))
    mix = torch.linalg.qr(torch.randn(rank, rank, generator=seeded(3), dtype=torch.float64))[0] @ scales
    mixed = replace(update, down=torch.tensordot(mix, update.down, 1), up=3 * update.up @ torch.linalg.inv(mix))
    (a, norm_a), (b, norm_b) = sketch(update, SIZE), sketch(mixed, SIZE)
    assert np.abs(a - b).max() <= 1e-6
    assert norm_b - norm_a == pytest.approx(np.log(3), abs=1e-6)


@pytest.mark.parametrize("shape", [(4, 2880), (2880, 4), (32, 33), (7, 7)])
def test_a_narrow_dense_update_has_as_many_directions_as_its_shorter_side(shape):
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    up, down = leading_factors(dense)
    assert up.shape[1] == min(shape) and torch.equal(up @ down, dense.double())


def test_dense_and_lowrank_agree():
    update = lowrank("m", 90, 70, 6, seed=4)
    dense = FakeUpdate("m", kind="dense", dense=dense_of(update))
    a, b = sketch(update, SIZE)[0], sketch(dense, SIZE)[0]
    assert np.abs(a - b).max() <= 1e-4, "float32 in the dense path"


def test_sketches_estimate_inner_products():
    """Over many modules the sketch cosine meets the true cosine within its noise: per module √(2/s) a side."""
    true, sketched = [], []
    for module in range(40):
        a = lowrank(f"b.{module}", 64, 64, 3, seed=module)
        b = replace(a, up=a.up + 0.8 * torch.randn(a.up.shape, generator=seeded(900 + module), dtype=torch.float64))
        x, y = dense_of(a), dense_of(b)
        true.append(float((x * y).sum() / x.norm() / y.norm()))
        sketched.append(float(sketch(a, SIZE)[0][:256] @ sketch(b, SIZE)[0][:256]))
    assert np.mean(sketched) == pytest.approx(np.mean(true), abs=2 * (2 * 2 / 16 / 40) ** 0.5)


def test_fused_and_split_files_agree():
    fused = lowrank("joint_blocks.0.x_block.attn.qkv", 36, 12, 4, seed=5)
    split = [
        replace(fused, module=f"{fused.module}[{12 * i}:{12 * i + 12}]", up=fused.up[12 * i : 12 * i + 12])
        for i in range(3)
    ]
    a, b = module_features([fused], SIZE), module_features(split[::-1], SIZE)
    assert a.modules == b.modules and len(a.modules) == 3
    np.testing.assert_array_equal(a.rows, b.rows)


@pytest.mark.parametrize(
    "module, out, inputs, names",
    [
        ("single_blocks.3.linear1", 70, 10, ["[0:10]", "[10:20]", "[20:30]", "[30:70]"]),
        ("layers.0.attention.qkv", 20, 12, ["[0:12]", "[12:16]", "[16:20]"]),
        ("txt_in.linear1", 70, 10, [""]),
        ("blocks.0.attn.qkv[0:12]", 12, 12, [""]),
        ("blocks.0.mlp.fc1", 36, 12, [""]),
    ],
)
def test_what_counts_as_fused(module, out, inputs, names):
    parts = list(split_fused(lowrank(module, out, inputs, 2, seed=6)))
    assert [part.module for part in parts] == [module + name for name in names]


def file_of(seed: int, modules=("a", "b", "c")):
    return module_features([lowrank(m, 20, 16, 3, seed=seed * 31 + i) for i, m in enumerate(modules)], SIZE)


def test_schema_is_the_union_in_name_order():
    files = [file_of(1, ("c", "a")), file_of(2, ("b",)), file_of(3, ("a", "d"))]
    schema = FeatureSchema.learn("emoji", files)
    assert schema.modules == ("a", "b", "c", "d")
    features = schema.assemble(files[1])
    assert features.mask.tolist() == [False, True, False, False]
    grid = features.vector.reshape(4, SIZE.width)
    assert not grid[[0, 2, 3]].any() and grid[1].any()
    other = FeatureSchema.learn("emoji", files[::-1])
    np.testing.assert_allclose(schema.mean, other.mean, atol=1e-7)
    np.testing.assert_allclose(schema.scale, other.scale, atol=1e-6)


def test_vectors_are_standardised_and_partial_files_are_not_quieter():
    files = [file_of(seed) for seed in range(40)]
    schema = FeatureSchema.learn("emoji", files)
    vectors = np.stack([schema.assemble(file).vector for file in files])
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=1e-6)
    assert np.mean(np.square(vectors).sum(axis=1)) == pytest.approx(1, abs=0.02)
    partial = schema.assemble(file_of(7, ("a",)))
    assert np.linalg.norm(partial.vector) == pytest.approx(1, abs=0.35)
    stranger = schema.assemble(file_of(8, ("unheard_of",)))
    assert not stranger.vector.any() and not stranger.mask.any()


def test_schema_id_follows_its_contents():
    one, two = (FeatureSchema.learn("emoji", [file_of(seed) for seed in seeds]) for seeds in ((1, 2, 3), (1, 2, 4)))
    again = FeatureSchema.learn("emoji", [file_of(seed) for seed in (1, 2, 3)])
    assert one.id == again.id != two.id
    assert FeatureSchema.learn("flux", [file_of(1)], SIZE).id != FeatureSchema.learn("emoji", [file_of(1)], SIZE).id


def test_zero_nan_and_unknown_updates_are_named_not_counted():
    good = lowrank("good", 8, 8, 2, seed=9)
    bad = [
        replace(good, module="zero", up=torch.zeros_like(good.up)),
        replace(good, module="nan", down=good.down * float("nan")),
        FakeUpdate("oft", kind="not_additive", rule="oft"),
    ]
    found = module_features([good, *bad], SIZE)
    assert found.modules == ("good",) and sorted(found.skipped) == ["nan", "oft", "zero"]
    assert module_features(bad, SIZE).rows.shape == (0, SIZE.width)
    assert FeatureSchema.learn("emoji", [module_features(bad, SIZE)]).width == 0
