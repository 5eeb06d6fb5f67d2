"""Proves that leaving groups out equals refitting without them, and that the report tells content from recipe."""

from __future__ import annotations

import json

import numpy as np
import pytest
from retrieve_worlds import SIZE, TopicTower, file_updates

from autolora_core.encode import train
from autolora_core.encode.encoder import RidgeEncoder
from autolora_core.encode.features import FeatureSchema, module_features


def test_leaving_groups_out_equals_refitting():
    rng = np.random.default_rng(0)
    X, Y, groups = rng.normal(size=(12, 30)), rng.normal(size=(12, 4)), np.arange(12) % 5
    found = train.leave_groups_out(X, Y, groups, 0.7)
    for group in range(5):
        rest = groups != group
        weights = np.linalg.solve(X[rest].T @ X[rest] + 0.7 * np.eye(30), X[rest].T @ Y[rest])
        np.testing.assert_allclose(found[~rest], X[~rest] @ weights, atol=1e-9)


def test_report_tells_content_from_recipe():
    """Two files a topic by different creators, same layers, similar norms: content is found, the recipe is not."""
    labels = [f"topic{i // 2}" for i in range(100)]
    sketches = [module_features(file_updates(label, i % 7, i, 0.3), SIZE) for i, label in enumerate(labels)]
    schema = FeatureSchema.learn("emoji", sketches, SIZE)
    features = [schema.assemble(sketch) for sketch in sketches]
    encoder = RidgeEncoder.fit(schema, np.stack([f.vector for f in features]), labels, TopicTower())
    report = train.measure(encoder, features, labels, TopicTower())
    assert (report.files, report.labels, report.chance) == (100, 50, 0.02)
    assert report.unseen_file.top1 > 0.9 >= report.unseen_label.top5
    assert report.unseen_file.mean_rank < report.unseen_label.mean_rank < 0.35
    assert report.recipe.top1 < 0.2


def test_known_files_are_read_and_missing_ones_named(tmp_path, caplog):
    (tmp_path / "b.safetensors").write_bytes(b"")
    (tmp_path / "a.safetensors").write_bytes(b"")
    rows = [{"file": f"{n}.safetensors", "label": n, "creator": "x"} for n in "bac"]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    known = train.read_known(tmp_path, tmp_path / "captions.json")
    assert [each.label for each in known] == ["a", "b"] and "c.safetensors is not there" in caplog.text


def test_families_are_not_mixed(monkeypatch, tmp_path):
    class Fake:
        def __init__(self, path):
            self.family = type("Family", (), {"name": path.stem})

    monkeypatch.setattr(train.LoraFile, "open", Fake)
    with pytest.raises(train.AutoLoRAError, match="flux, sdxl"):
        train.fit_files([train.Known(tmp_path / "flux", "a"), train.Known(tmp_path / "sdxl", "b")], TopicTower())
