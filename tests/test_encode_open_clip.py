"""Proves that a CLIP text tower in either naming gives what transformers gives, and that other files are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autolora_core.encode.open_clip_tower import OpenClipTower, open_clip_names
from autolora_core.encode.towers import TextTower
from autolora_core.errors import TowerError

TEXTS = ["an otter", "a much longer prompt about a lighthouse in pixel art style", ""]


@pytest.fixture(scope="module", params=[True, False], ids=["quick_gelu", "gelu"])
def made(request, tmp_path_factory):
    """A tiny random CLIP text model of transformers, its file, and its own vectors of TEXTS."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=128, intermediate_size=320, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=24, hidden_act="quick_gelu" if request.param else "gelu", eos_token_id=49407,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config).eval()
    path = tmp_path_factory.mktemp("clip") / "clip_l.safetensors"
    weights = {k: v.detach().clone() for k, v in model.state_dict().items() if "position_ids" not in k}
    save_file(weights, path)
    with torch.no_grad():
        vectors = model(input_ids=SimpleTokenizer(context_length=77)(TEXTS)).text_embeds
    return request.param, path, torch.nn.functional.normalize(vectors, dim=1).numpy()


def test_equals_transformers(made):
    quick, path, expected = made
    tower = OpenClipTower(path, quick_gelu=quick)
    assert isinstance(tower, TextTower) and tower.dim == 24 and tower.id.startswith("clip-")
    np.testing.assert_allclose(tower.encode(TEXTS), expected, atol=1e-5)
    assert np.array_equal(tower.encode(TEXTS)[1], tower.encode(TEXTS[1:2])[0])
    assert tower.id != OpenClipTower(path, quick_gelu=not quick).id


def test_open_clips_own_names(made, tmp_path):
    from safetensors.torch import load_file

    quick, path, expected = made
    own = {f"text.{k}": v.contiguous() for k, v in open_clip_names(load_file(path)).items()}
    own |= {"visual.conv1.weight": torch.zeros(1), "logit_scale": torch.zeros(1)}
    save_file(own, tmp_path / "open.safetensors")
    np.testing.assert_allclose(OpenClipTower(tmp_path / "open.safetensors", quick).encode(TEXTS), expected, atol=1e-5)


def test_other_files_are_named(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(TowerError, match="not a CLIP text tower.*x.safetensors"):
        OpenClipTower(tmp_path / "x.safetensors").load()
    (tmp_path / "y.safetensors").write_bytes(b"no")
    with pytest.raises(TowerError, match="cannot be read"):
        OpenClipTower(tmp_path / "y.safetensors").load()


def test_without_open_clip_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip.tokenizer", None)
    with pytest.raises(TowerError, match="pip install open_clip_torch"):
        OpenClipTower(tmp_path / "x.safetensors").load()
