"""Proves that a CLIP image tower read from a local file gives transformers' vectors, from either naming, that pictures
are prepared as open_clip prepares them, and that a file without an image tower is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clip import tiny_clip

from autolora_core.encode.open_clip_images import OpenClipImageTower, image_weights, prepare
from autolora_core.errors import TowerError

SHAPES = ((40, 64), (64, 40), (32, 32), (7, 90))


def pictures() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.rand(height, width, 3, generator=g) for height, width in SHAPES]


@pytest.fixture(scope="module", params=[True, False], ids=["quick_gelu", "gelu"])
def made(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    return request.param, path, tiny_clip(path, quick=request.param)


def test_equals_transformers(made):
    quick, path, model = made
    tower = OpenClipImageTower(path, quick_gelu=quick)
    assert (tower.dim, tower.size) == (24, 32) and tower.id.startswith("clip-image-")
    pixels = torch.stack([prepare(picture, 32) for picture in pictures()])
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=pixels).pooler_output
        expected = torch.nn.functional.normalize(model.visual_projection(hidden), dim=1).numpy()
    np.testing.assert_allclose(tower.encode(pictures()), expected, atol=1e-5)
    assert np.array_equal(tower.encode(pictures())[1], tower.encode(pictures()[1:2])[0])
    assert tower.id != OpenClipImageTower(path, quick_gelu=not quick).id
    assert tower.encode([]).shape == (0, 24)


def test_text_half_of_the_same_file_is_in_the_same_space(made):
    quick, path, model = made
    text = OpenClipImageTower(path, quick_gelu=quick).text
    from open_clip.tokenizer import SimpleTokenizer

    with torch.no_grad():
        hidden = model.text_model(input_ids=SimpleTokenizer(context_length=77)(["an otter"])).pooler_output
        expected = torch.nn.functional.normalize(model.text_projection(hidden), dim=1).numpy()
    np.testing.assert_allclose(text.encode(["an otter"]), expected, atol=1e-5)


def test_open_clips_own_names(made, tmp_path):
    quick, path, _ = made
    own = {f"visual.{key}": value.contiguous() for key, value in image_weights(load_file(path)).items()}
    save_file(own, tmp_path / "open.safetensors")
    tower = OpenClipImageTower(tmp_path / "open.safetensors", quick)
    assert tower.text is None
    np.testing.assert_allclose(tower.encode(pictures()), OpenClipImageTower(path, quick).encode(pictures()), atol=1e-6)


def test_vision_file_without_a_projection(made, tmp_path):
    quick, path, model = made
    bare = {key: value for key, value in load_file(path).items() if key.startswith("vision_model.")}
    save_file(bare, tmp_path / "vision.safetensors")
    tower = OpenClipImageTower(tmp_path / "vision.safetensors", quick)
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=prepare(pictures()[0], 32)[None]).pooler_output
    assert tower.dim == 64 and tower.text is None
    expected = torch.nn.functional.normalize(pooled, dim=1).numpy()
    np.testing.assert_allclose(tower.encode(pictures()[:1]), expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_are_prepared_as_open_clip_does(shape):
    """open_clip's own transform works on 8-bit PIL pictures: equal to a level or two of rounding."""
    from open_clip.transform import image_transform

    x, y = torch.meshgrid(torch.linspace(0, 6, shape[0]), torch.linspace(0, 9, shape[1]), indexing="ij")
    smooth = torch.stack([(x + i).sin() * y.cos() * 0.4 + 0.5 for i in range(3)], dim=-1)
    levels = (smooth * 255).round().to(torch.uint8)
    theirs = image_transform(32, is_train=False)(Image.fromarray(levels.numpy()))
    ours = prepare(levels.float() / 255, 32)
    assert ours.shape == theirs.shape == (3, 32, 32)
    assert float((ours - theirs).abs().max()) < 2.5 / 255 / 0.26


def test_fourth_channel_is_left_out():
    picture = pictures()[0]
    assert torch.equal(prepare(torch.cat([picture, torch.rand(*picture.shape[:2], 1)], -1), 32), prepare(picture, 32))


def test_other_files_are_named(made, tmp_path):
    text = {key: value for key, value in load_file(made[1]).items() if key.startswith("text_")}
    save_file(text, tmp_path / "clip_l.safetensors")
    with pytest.raises(TowerError, match="no image tower.*text half.*clip_l.safetensors.*What to do: choose"):
        OpenClipImageTower(tmp_path / "clip_l.safetensors").load()
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(TowerError, match="nothing in it looks like a CLIP"):
        OpenClipImageTower(tmp_path / "x.safetensors").load()
    save_file({"visual.conv1.weight": torch.zeros(64, 3, 8, 8)}, tmp_path / "half.safetensors")
    with pytest.raises(TowerError, match="not a CLIP image tower.*half.safetensors"):
        OpenClipImageTower(tmp_path / "half.safetensors").load()
    (tmp_path / "y.safetensors").write_bytes(b"no")
    with pytest.raises(TowerError, match="cannot be read"):
        OpenClipImageTower(tmp_path / "y.safetensors").load()


def test_without_open_clip_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip.transformer", None)
    with pytest.raises(TowerError, match="pip install open_clip_torch"):
        OpenClipImageTower(tmp_path / "x.safetensors").load()
