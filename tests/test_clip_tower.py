"""Proves that a ComfyUI CLIP can be the text side of an encoder: its vectors, its name, and that Train learns for it
and Retrieve uses what was learnt, and only then."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from comfy_local import pack_module
from retrieve_worlds import TopicTower
from train_worlds import world
from word_clip import WordClip

from autolora_core.encode.towers import TextTower
from autolora_core.library.index import Library

TEXTS = ["red fox", "otter", "a very long text about a fox"]


@pytest.fixture
def module(comfy):
    return pack_module("nodes.clip_tower")


class NoPooled(WordClip):
    """As a language model has it."""

    def encode_from_tokens_scheduled(self, tokens: dict, show_pbar: bool = True) -> list:
        ((states, _),) = super().encode_from_tokens_scheduled(tokens)
        return [[states, {"pooled_output": None}]]


class Silent(WordClip):
    def encode_from_tokens_scheduled(self, tokens: dict, show_pbar: bool = True) -> list:
        ((states, _),) = super().encode_from_tokens_scheduled(tokens)
        return [[torch.zeros_like(states), {}]]


def test_the_pooled_output_is_the_vector(module):
    clip = WordClip()
    tower = module.ClipTower(clip)
    assert isinstance(tower, TextTower)
    found = tower.encode(TEXTS)
    wanted = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][1]["pooled_output"][0] for text in TEXTS]
    wanted = torch.nn.functional.normalize(torch.stack(wanted), dim=1).detach().numpy()
    assert found.dtype == np.float32 and found.shape == (3, tower.dim) and np.allclose(found, wanted, atol=1e-6)
    assert np.array_equal(tower.encode(TEXTS[1:2])[0], found[1]), "the same bits in any batch"
    assert tower.encode([]).shape == (0, tower.dim)


def test_without_one_it_is_the_mean_of_the_text_s_own_tokens(module):
    clip = NoPooled()
    (found,) = module.ClipTower(clip).encode(["red fox"])
    states = clip.encode_from_tokens_scheduled(clip.tokenize("red fox"))[0][0][0].detach()
    wanted = states[1:4].mean(dim=0)  # the words and the end token
    assert np.allclose(found, (wanted / wanted.norm()).numpy(), atol=1e-6)


def test_it_is_known_by_weights_and_options(module):
    one, again, skipping = WordClip(), WordClip(), WordClip()
    skipping.layer_idx = -2
    ids = [module.ClipTower(clip).id for clip in (one, again, skipping, WordClip(width=8))]
    assert ids[0] == ids[1] and len(set(ids)) == 3 and all(name.startswith("comfy-") for name in ids)


def test_a_clip_that_says_nothing_is_an_error(module):
    errors = pack_module("autolora_core.errors")
    with pytest.raises(errors.TowerError, match="makes nothing of 'fox'.*disconnect it"):
        module.ClipTower(Silent()).encode(["fox"])


class OtherTower(TopicTower):
    """Another name for the same words."""

    id = "comfy-0123456789ab"


def test_train_learns_for_it_and_retrieve_uses_what_was_learnt(comfy, tmp_path, monkeypatch):
    train, retrieve = pack_module("nodes.train_encoder"), pack_module("nodes.retrieve")
    tower = OtherTower()
    for module in (train, retrieve):
        monkeypatch.setattr(module, "shared_tower", lambda folders=(): TopicTower())
    monkeypatch.setattr(pack_module("nodes.clip_tower"), "ClipTower", lambda clip: tower)
    monkeypatch.setattr(comfy, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(comfy, "get_user_directory", lambda: str(tmp_path / "user"))
    monkeypatch.setattr(train, "PACK_MODELS", tmp_path / "pack")
    with Library.open(tmp_path / "user" / "autolora" / "mine") as library:
        library.scan({"loras": world(tmp_path)})
        library.fit(TopicTower())
        index = json.loads(json.dumps(library.handle))
        assert retrieve._tower_for(library, "emoji", "clip") is None, "nothing was learnt for this CLIP"
    out = train.AutoLoRATrainEncoder().train(index=index, epochs=0, clip="clip")
    with Library.from_handle(out["result"][0]) as library:
        assert library.encoder("emoji", tower.id).tower == tower.id
        assert library.encoder("emoji", TopicTower().id) is not None, "what MiniLM has stays"
        assert retrieve._tower_for(library, "emoji", "clip") is tower
        assert retrieve._tower_for(library, "emoji", None) is None
        assert retrieve._tower_for(library, None, "clip") is None
