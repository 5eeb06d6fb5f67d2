"""Proves that reading, fitting, comparing and asking a library run PyTorch on one thread, and give the setting back."""

from __future__ import annotations

import threading

import pytest
import torch
from retrieve_worlds import words_world

from autolora_core.encode.threads import halves, one_thread
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


def test_a_large_scan_is_shared_by_two_threads_of_one_each():
    """The second thread has PyTorch's one thread, the caller's setting stays, and an error of either comes out."""
    seen = {}

    def work(start: int, stop: int) -> None:
        seen[start, stop] = threading.get_ident(), torch.get_num_threads()

    with one_thread():
        halves(work, 10, True)
        assert seen.keys() == {(0, 5), (5, 10)} and {count for _, count in seen.values()} == {1}
        assert len({thread for thread, _ in seen.values()}) == 2 and torch.get_num_threads() == 1
        seen.clear()
        halves(work, 10, False)
        assert seen.keys() == {(0, 10)}
        with pytest.raises(ZeroDivisionError):
            halves(lambda start, stop: 1 / (5 - start), 10, True)


def test_who_gives_pytorch_one_thread_gets_no_second():
    seen = []
    torch.set_num_threads(1)
    with one_thread():
        halves(lambda start, stop: seen.append((start, stop)), 10, True)
    torch.set_num_threads(3)
    assert seen == [(0, 10)]
