"""Proves that leave-one-out is what refitting without the row gives, and that an encoder file is the encoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from encode_worlds import lowrank
from safetensors import safe_open
from safetensors.numpy import save_file

from autolora_core.encode.encoder import RidgeEncoder, WeightEncoder
from autolora_core.encode.features import FeatureSchema, module_features
from autolora_core.encode.ridge import KernelRidge
from autolora_core.encode.sketch import SketchSize
from autolora_core.encode.text_cache import CachedTower
from autolora_core.encode.towers import LexicalTower, TextTower
from autolora_core.errors import FileFormatError

SIZE = SketchSize(4, 2, 4)


def problem(n=14, F=9, d=5, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, F)).astype(np.float32)
    return X, X @ rng.normal(size=(F, d)) + rng.normal(size=(n, d)), rng.uniform(0.2, 3, n)


def primal(X, Y, w, lam):
    """Weighted ridge by the normal equations in feature space: an independent formula."""
    X = X.astype(np.float64)
    return np.linalg.solve(X.T @ (w[:, None] * X) + lam * np.eye(X.shape[1]), X.T @ (w[:, None] * Y))


@pytest.mark.parametrize("n, F", [(14, 9), (6, 40), (1, 3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_fit_and_leave_one_out_equal_brute_force(n, F, weighted):
    X, Y, w = problem(n, F)
    model = KernelRidge.fit(X, Y, w if weighted else None)
    w = w if weighted else np.ones(n)
    fresh = problem(5, F, seed=1)[0]
    np.testing.assert_allclose(model.predict(fresh), fresh @ primal(X, Y, w, model.lam), atol=1e-6)
    for i in range(n):
        rest = np.arange(n) != i
        refit = X[i] @ primal(X[rest], Y[rest], w[rest], model.lam)
        np.testing.assert_allclose(model.loo()[i], refit, atol=1e-6)


def test_lambda_is_the_best_of_the_grid_by_refits():
    X, Y, w = problem(12, 30, seed=3)
    grid = (1e-3, 1e-1, 10.0)
    base = np.trace(X.astype(np.float64) @ X.T.astype(np.float64)) / 12

    def error(lam):
        parts = []
        for i in range(12):
            rest = np.arange(12) != i
            parts.append(w[i] * np.sum((Y[i] - X[i] @ primal(X[rest], Y[rest], w[rest], lam)) ** 2))
        return sum(parts)

    best = min((base * g for g in grid), key=error)
    assert KernelRidge.fit(X, Y, w, grid).lam == pytest.approx(best)


def test_noise_gives_no_prediction_and_bad_input_is_refused():
    rng = np.random.default_rng(5)
    X, Y = rng.normal(size=(30, 200)), rng.normal(size=(30, 8))
    assert np.abs(KernelRidge.fit(X, Y).loo()).mean() < 0.1
    with pytest.raises(ValueError, match="rows differ"):
        KernelRidge.fit(X, Y[:3])
    with pytest.raises(ValueError, match="finite"):
        KernelRidge.fit(X * np.nan, Y)
    with pytest.raises(ValueError, match="positive"):
        KernelRidge.fit(X, Y, np.zeros(30))


def made(seeds):
    return [
        module_features([lowrank(name, 12, 10, 2, seed=97 * seed + i) for i, name in enumerate("abc")], SIZE)
        for seed in seeds
    ]


@pytest.fixture(scope="module")
def encoder():
    files = made(range(10))
    schema = FeatureSchema.learn("emoji", files, SIZE)
    vectors = np.stack([schema.assemble(file).vector for file in files])
    texts = [f"thing number {i}" if i % 2 else (f"thing {i}", "in two words") for i in range(10)]
    return RidgeEncoder.fit(schema, vectors, texts, LexicalTower(), np.linspace(1, 2, 10))


def test_a_training_file_gets_its_left_out_prediction(encoder):
    vector = encoder.encode(encoder.schema.assemble(made([4])[0]))
    expected = encoder.ridge.loo()[4] / np.linalg.norm(encoder.ridge.loo()[4])
    np.testing.assert_allclose(vector, expected, atol=1e-6)
    inside = encoder.ridge.predict(encoder.ridge.X[4:5])[0]
    assert np.abs(vector - inside / np.linalg.norm(inside)).max() > 1e-3


def test_encoding_does_not_depend_on_company(encoder):
    assert isinstance(encoder, WeightEncoder) and encoder.usable
    vectors = np.stack([encoder.schema.assemble(file).vector for file in made([4, 50, 51])])
    together = encoder.encode_many(vectors)
    assert np.array_equal(together[2], encoder.encode_many(vectors[2:])[0])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert not encoder.encode_many(np.zeros((1, encoder.schema.width))).any()


def test_file_round_trip_is_exact(encoder, tmp_path):
    again = RidgeEncoder.load(encoder.save(tmp_path / "e.safetensors"))
    assert again.id == encoder.id and again.texts == encoder.texts and again.schema.modules == encoder.schema.modules
    vectors = np.stack([encoder.schema.assemble(file).vector for file in made([3, 60])])
    np.testing.assert_array_equal(again.encode_many(vectors), encoder.encode_many(vectors))
    assert [p.name for p in tmp_path.iterdir()] == ["e.safetensors"]


def test_extending_is_fitting_on_both(encoder):
    fresh = np.stack([encoder.schema.assemble(file).vector for file in made([70, 71])])
    longer = encoder.extended(fresh, ["a new one", "another"], LexicalTower())
    assert len(longer.texts) == 12 and longer.id != encoder.id
    np.testing.assert_array_equal(longer.ridge.X[:10], encoder.ridge.X)


def test_row_weights_are_kept_and_extending_counts_them(encoder, tmp_path):
    """A refit in float64, with each row as often as its weight says, is what extending must give."""
    rows, fresh = encoder.ridge.X, np.stack([encoder.schema.assemble(file).vector for file in made([70])])
    counts = np.arange(1, 11)
    weighed = RidgeEncoder.fit(encoder.schema, rows, encoder.texts, LexicalTower(), counts.astype(float))
    kept = RidgeEncoder.load(weighed.save(tmp_path / "e.safetensors"))
    longer = kept.extended(fresh, ["a new one"], LexicalTower(), np.array([3.0]))
    assert weighed.id != encoder.id and longer.ridge.weights.tolist() == [*counts, 3.0]
    X = np.repeat(longer.ridge.X.astype(np.float64), longer.ridge.weights.astype(int), axis=0)
    words = [list(own) for own in longer.texts]
    targets = np.stack([LexicalTower().encode(own).mean(axis=0) for own in words]) - longer.centre
    targets = np.repeat(targets / np.linalg.norm(targets, axis=1)[:, None], longer.ridge.weights.astype(int), axis=0)
    expected = X @ X.T @ np.linalg.solve(X @ X.T + longer.ridge.lam * np.eye(len(X)), targets)
    first = np.concatenate([[0], np.cumsum(longer.ridge.weights.astype(int))[:-1]])
    np.testing.assert_allclose(longer.ridge.predict(longer.ridge.X), expected[first], atol=1e-6)


def test_a_file_from_before_row_weights_is_read(encoder, tmp_path):
    """Such a file was named without its weights, whatever they were."""
    encoder = replace(encoder, ridge=replace(encoder.ridge, weights=np.ones(10)))
    path = encoder.save(tmp_path / "e.safetensors")
    with safe_open(path, "numpy") as stream:
        metadata, tensors = stream.metadata(), {name: stream.get_tensor(name) for name in stream.keys()}
    del tensors["weights"]
    save_file(tensors, path, metadata)
    again = RidgeEncoder.load(path)
    assert again.id == encoder.id and again.ridge.weights.tolist() == [1.0] * 10
    save_file({**tensors, "weights": np.full(10, 2.0)}, path, metadata)
    with pytest.raises(FileFormatError, match="do not match its id"):
        RidgeEncoder.load(path)


def test_damaged_encoder_files_are_named(encoder, tmp_path):
    path = tmp_path / "e.safetensors"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(FileFormatError, match="e.safetensors"):
        RidgeEncoder.load(path)
    save_file({"x": np.zeros(1)}, path)
    with pytest.raises(FileFormatError, match="not a ridge encoder"):
        RidgeEncoder.load(path)
    encoder.save(path)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 0x40
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match="do not match its id"):
        RidgeEncoder.load(path)


class CountingTower(LexicalTower):
    seen = 0

    def encode(self, texts):
        self.seen += len(texts)
        return super().encode(texts)


def test_cached_tower_gives_the_same_bits_and_asks_once():
    tower = CountingTower()
    cache = CachedTower(tower)
    assert isinstance(cache, TextTower)
    texts = ["otter", "axolotl", "otter"]
    assert np.array_equal(cache.encode(texts), LexicalTower().encode(texts)) and tower.seen == 2
    assert np.array_equal(cache.encode(["axolotl", "new"]), LexicalTower().encode(["axolotl", "new"]))
    assert tower.seen == 3 and cache.encode([]).shape == (0, tower.dim)
