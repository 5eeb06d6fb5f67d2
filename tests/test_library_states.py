"""Proves that a model is asked for a text once, on disk for a library's own texts and in memory for prompts, and that a
damaged or foreign cache is never believed."""

from __future__ import annotations

import numpy as np
import pytest

from autolora_core.encode.response import TextStates
from autolora_core.library import states as module
from autolora_core.library.states import FILE_NAME, CachedStates, StateStore, shared_memory

SPACES = ("first", "second")


class Source:
    """Made-up states: one token a word, whose numbers are the word's length and the space's number."""

    def __init__(self, name: str = "base", lasting: bool = True):
        self.id, self.lasting, self.asked = name, lasting, []

    def record(self, texts, spaces, progress=None) -> TextStates:
        self.asked += texts
        counts = np.array([len(text.split()) for text in texts], int)
        tokens = {
            space: np.array([[len(word), SPACES.index(space), 0.5] for text in texts for word in text.split()])
            for space in spaces
            if space in SPACES
        }
        return TextStates(counts, tokens)


@pytest.fixture
def store(tmp_path):
    opened = StateStore(tmp_path)
    yield opened
    opened.close()


def test_states_come_in_the_order_asked(store):
    source = Source()
    held = CachedStates(source, store)
    held.states(["otter", "a red fox"], SPACES, keep=True)
    found = held.states(["a red fox", "owl", "otter", "owl"], SPACES, keep=True)
    assert found.counts.tolist() == [3, 1, 1, 1]
    assert found.tokens["second"].tolist() == [[n, 1, 0.5] for n in (1, 3, 3, 3, 5, 3)]
    assert source.asked == ["otter", "a red fox", "owl"]


def test_what_is_kept_is_there_tomorrow(store, tmp_path):
    CachedStates(Source(), store).states(["otter", "fox"], SPACES, keep=True)
    later, again = Source(), StateStore(tmp_path)
    found = CachedStates(later, again).states(["fox", "otter"], SPACES, keep=True)
    assert later.asked == [] and found.tokens["first"][:, 0].tolist() == [3, 5]
    CachedStates(later, again).states(["fox"], ["first"], keep=True)
    CachedStates(other := Source("another base"), again).states(["fox"], SPACES, keep=True)
    assert later.asked == [] and other.asked == ["fox"]
    again.close()


def test_prompts_and_patched_models_stay_in_memory(store):
    source = Source()
    held = CachedStates(source, store)
    held.states(["a prompt"], SPACES)
    held.states(["a prompt"], SPACES)
    assert source.asked == ["a prompt"] and store.read("base", "first", ["a prompt"]) == {}
    patched = Source("patched", lasting=False)
    CachedStates(patched, store).states(["otter"], SPACES, keep=True)
    assert store.read("patched", "first", ["otter"]) == {}


def test_prompts_are_remembered_by_who_was_asked():
    for name, asked in (("one", ["fox"]), ("two", ["fox"]), ("one", []), ("three", ["fox"]), ("two", ["fox"])):
        source = Source(name)
        CachedStates(source, memory=shared_memory(name)).states(["fox"], SPACES)
        assert source.asked == asked, name


def test_spaces_that_the_model_lacks_are_left_out(store):
    held = CachedStates(source := Source(), store)
    for _ in range(2):
        assert set(held.states(["otter"], [*SPACES, "third"], keep=True).tokens) == set(SPACES)
    assert source.asked == ["otter"]


def test_no_texts(store):
    found = CachedStates(Source(), store).states([], SPACES)
    assert len(found) == 0 and not found.tokens


def test_bases_used_long_ago_make_room(store, monkeypatch):
    monkeypatch.setattr(module, "MAX_SOURCES", 2)
    for name in ("a", "b", "c"):
        CachedStates(Source(name), store).states(["otter"], SPACES, keep=True)
    kept = [name for name in "abc" if store.read(name, "first", ["otter"])]
    assert kept == ["b", "c"]


def test_a_broken_file_is_started_anew(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"not a database" * 100)
    store = StateStore(tmp_path)
    CachedStates(Source(), store).states(["otter"], SPACES, keep=True)
    assert store.read("base", "first", ["otter"])["otter"].tolist() == [[5, 0, 0.5]]
    store.close()


def test_without_a_file_the_model_is_asked_again(tmp_path):
    store = StateStore(tmp_path)
    store.close()
    source = Source()
    held = CachedStates(source, store)
    for _ in range(2):
        assert held.states(["otter"], SPACES, keep=True).counts.tolist() == [1]
    assert source.asked == ["otter", "otter"]
