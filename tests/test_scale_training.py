"""Proves that the large zoo's trainer resumes, trains each LoRA as if alone, and that what it stores reads back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from autolora_core.lora.file import LoraFile
from zoo import scale_data, train_scale
from zoo.mmdit import MMDiT
from zoo.scale_plan import ScaleSpec, creators, plan
from zoo.scale_sets import TrainingSet
from zoo.train_scale import Engine, Shape, cheaper_gelu, groups_of, missing, progress_line


class Bank:
    """Random text states."""

    index = {"": 0, "x": 1, "y": 2}

    def rows(self, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        context, pooled = torch.randn(3, 24, 384, generator=generator), torch.randn(3, 384, generator=generator)
        return context[ids], pooled[ids]


def random_base() -> MMDiT:
    torch.manual_seed(0)
    model = MMDiT()
    for p in model.parameters():
        if p.abs().sum() == 0:
            torch.nn.init.normal_(p, std=0.05)
    return model.requires_grad_(False)


def spec(name: str, layer_set: str, seed: str, **changes) -> ScaleSpec:
    fields = {"rank": 3, "steps": 4, "batch": 2, "layer_set": layer_set, "dtype": "float32", "alpha": 0.5}
    creator = replace(creators()[name], **(fields | changes))
    return ScaleSpec(seed, "otter", None, "plain", "train", creator, 1)


FIRST, SECOND = spec("alder", "all", "aaaaaaaaaa"), spec("bramble", "early", "bbbbbbbbbb", steps=2, rank=2)


def training_set(seed: int) -> TrainingSet:
    latents = np.random.default_rng(seed).normal(size=(3, 16, 16, 16)).astype(np.float16)
    return TrainingSet(latents, [["x"], ["y"], ["x", "y"]])


@pytest.fixture(scope="module")
def engine() -> Engine:
    patch = pytest.MonkeyPatch()
    patch.setattr(train_scale, "SAMPLES", 4)
    patch.setattr(train_scale, "load_base", random_base)
    yield Engine(Shape(4, 2), Bank(), False)
    patch.undo()


@pytest.fixture(scope="module")
def trained(engine) -> dict[str, dict[str, torch.Tensor]]:
    return engine.run([FIRST, SECOND], [training_set(1), training_set(2)], lambda *_: None)


@pytest.fixture
def shelf(tmp_path, monkeypatch, trained):
    """A zoo of one finished LoRA, the plan's first, with the factors of ``FIRST``."""
    for module in (train_scale, scale_data):
        monkeypatch.setattr(module, "folder", lambda: tmp_path)
    one = plan()[0]
    train_scale.store(trained[FIRST.id], train_scale.finished(one))
    return one


def test_groups_hold_everyone_once_and_fit_their_shape():
    groups = groups_of(plan())
    assert sorted(s.id for g in groups for s in g) == sorted(s.id for s in plan())
    for group in groups:
        assert len({Shape.of(s) for s in group}) == 1 and len(group) <= Shape.of(group[0]).count
        assert max(s.creator.rank for s in group) <= Shape.of(group[0]).rank
    spent = sum(Shape.of(g[0]).count * max(s.creator.steps * s.creator.batch for s in g) for g in groups)
    assert spent < 1.12 * sum(s.creator.samples for s in plan()), "too much padding"


def test_a_finished_lora_is_not_trained_again(shelf):
    groups = groups_of(plan())
    left = missing(groups, lambda s: train_scale.finished(s).exists())
    assert {s.id for s in plan()} - {s.id for g in left for s in g} == {shelf.id}
    assert missing(groups, lambda s: True) == []


def test_a_changed_recipe_is_another_file(shelf):
    other = replace(shelf, creator=replace(shelf.creator, lr=shelf.creator.lr * 2))
    assert train_scale.finished(shelf).exists() and not train_scale.finished(other).exists()


def test_only_the_creators_layers_are_trained(trained):
    modules = {key.split("|")[0] for key in trained[SECOND.id]}
    assert all(m.startswith(("joint_blocks.0.", "joint_blocks.1.")) for m in modules) and len(modules) == 16
    assert len({key.split("|")[0] for key in trained[FIRST.id]}) == 29
    for flat in trained.values():
        assert all(t.dtype == torch.float16 and t.isfinite().all() for t in flat.values())
        assert all(t.abs().sum() > 0 for t in flat.values())


def test_company_does_not_matter(engine, trained):
    again = engine.run([SECOND, FIRST], [training_set(2), training_set(1)], lambda *_: None)
    for name, flat in trained.items():
        for key, tensor in flat.items():
            torch.testing.assert_close(again[name][key], tensor, atol=2e-3, rtol=2e-2)


def test_cheaper_gelu_is_gelu():
    model, plain = random_base(), random_base()
    cheaper_gelu(model)
    x = torch.linspace(-8, 8, 512).reshape(2, 256)
    ours, theirs = model.joint_blocks[0].x_block.mlp(x), plain.joint_blocks[0].x_block.mlp(x)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_rows_tell_what_a_benchmark_needs(shelf, monkeypatch):
    monkeypatch.setattr(scale_data.Pictures, "load", classmethod(lambda cls: None))
    monkeypatch.setattr(scale_data, "captions", lambda spec, pictures: [["b", "a"], ["a"]])
    monkeypatch.setattr(scale_data, "copy_kind", lambda spec: "louder")
    one, copied = scale_data.rows()
    assert (one["id"], one["label"], one["captions"], one["part"]) == (shelf.id, shelf.label, ["a", "b"], shelf.part)
    assert one["rank"] == shelf.creator.rank and one["creator"] == shelf.creator.name and one["copy_of"] is None
    assert copied["copy_of"] == shelf.id and copied["keys"] != one["keys"] and copied["file_name"] != one["file_name"]
    assert scale_data.rows(copies=False) == [one]
    assert scale_data.rows(parts=[p for p in ("train", "test", "validation") if p != shelf.part]) == []


def updates(path) -> dict[str, torch.Tensor]:
    """Module name and rows -> update, through the pack's own reader."""
    return {u.module: torch.as_tensor(u.delta()) for u in LoraFile.open(path).updates()}


@pytest.mark.parametrize("keys", ["kohya", "diffusers", "peft", "native"])
def test_a_written_file_is_the_same_update(shelf, tmp_path, keys):
    file_spec = scale_data.file_spec(shelf)
    creator = replace(file_spec.creator, keys=keys, dtype="float32", alpha=0.5)
    factors = scale_data.factors(shelf.id)
    path = scale_data.write_factors(factors, replace(file_spec, creator=creator), tmp_path / "x.safetensors")
    read = updates(path)
    for name, (down, up) in factors.items():
        whole = (up.double() @ down.double()).float()
        pieces = [(k, v) for k, v in read.items() if k.partition("[")[0] == name]
        pieces.sort(key=lambda p: int(p[0].partition("[")[2].partition(":")[0] or 0))
        torch.testing.assert_close(torch.cat([v.float() for _, v in pieces]), whole, atol=1e-6, rtol=1e-4)


def test_copies_are_the_same_or_less(shelf):
    whole = {n: up.double() @ down.double() for n, (down, up) in scale_data.factors(shelf.id).items()}
    for kind, share in (("resaved", 1.0), ("louder", 1.3), ("refactorised", 1.0)):
        for name, (down, up) in scale_data.factors(f"{shelf.id}-{kind}").items():
            torch.testing.assert_close(up.double() @ down.double(), whole[name] * share, atol=1e-5, rtol=1e-3)
    for name, (down, up) in scale_data.factors(f"{shelf.id}-lower-rank").items():
        u, s, vh = torch.linalg.svd(whole[name])
        assert down.shape[0] == 1
        torch.testing.assert_close(up.double() @ down.double(), u[:, :1] * s[0] @ vh[:1], atol=1e-5, rtol=1e-3)


def test_a_trigger_file_does_not_tell_its_name(shelf, tmp_path):
    hidden = next(s for s in plan() if s.trigger and s.metadata == "rich" and s.kind == "subject")
    factors, path = scale_data.factors(shelf.id), tmp_path / "t.safetensors"
    scale_data.write_factors(factors, scale_data.file_spec(hidden), path)
    text = " ".join(LoraFile.open(path).metadata.values())
    assert hidden.trigger in text and hidden.label not in text


def test_progress_says_how_many_and_how_long():
    line = progress_line(100, 500, 2000, 0.25, 600)
    assert "600/2000 LoRAs" in line and "600 an hour" in line and "30 min" in line
    assert line.count("#") == 7
