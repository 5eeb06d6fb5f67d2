"""Proves that reading, fitting, comparing and asking a library run PyTorch on one thread, and give the setting back."""

from __future__ import annotations

import pytest
import torch
from retrieve_worlds import words_world

from autolora_core.encode.threads import one_thread
from autolora_core.encode.towers import LexicalTower
from autolora_core.library.index import Library
from autolora_core.retrieve.prepare import warm
from autolora_core.retrieve.retrieve import retrieve


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


@pytest.fixture
def seen() -> list[int]:
    """Thread counts at every call of :func:`counting`'s function."""
    return []


def counting(seen: list[int]):
    return lambda *now: seen.append(torch.get_num_threads())


def test_a_library_is_scanned_fitted_and_compared_on_one_thread(tiny_lora, tmp_path, seen):
    tiny_lora("a.safetensors", seed=1)
    tiny_lora("b.safetensors", seed=1, metadata={"modelspec.title": "another"})
    with Library.open(tmp_path / "library") as library:
        library.scan({"loras": tmp_path / "loras"}, progress=counting(seen))
        library.fit(LexicalTower(), progress=counting(seen))
        library.compare_duplicates("emoji", counting(seen))
    assert len(seen) >= 6 and set(seen) == {1}


def test_a_prompt_is_answered_on_one_thread(seen):
    view = words_world(["otter", "fox"])
    warm(view, "emoji", LexicalTower(), counting(seen))
    retrieve(view, "an otter", tower=LexicalTower(), progress=counting(seen))
    assert len(seen) >= 2 and set(seen) == {1}


def test_the_setting_comes_back_after_an_interrupt():
    with pytest.raises(KeyboardInterrupt), one_thread(), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt
