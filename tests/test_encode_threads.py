"""Proves that reading, fitting, comparing and asking a library run PyTorch on one thread, and give the setting back;
and that who samples meanwhile keeps all threads, whether it began before, or begins while a map is drawn."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import pytest
import torch
from retrieve_worlds import words_world

from autolora_core.encode.threads import _second, halves, one_thread, only_one
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


# -- other threads ----------------------------------------------------------------------------------------------------


def counts() -> set[int]:
    """What this thread has, as PyTorch, OpenMP and MKL (where it is there) say themselves."""
    told = re.findall(r"(?:get_num|get_max|max)_threads\(\) : (\d+)", torch.__config__.parallel_info())
    assert told, torch.__config__.parallel_info()
    return {int(one) for one in told}


class Sampler:
    """A thread as ComfyUI's that samples; it uses PyTorch for the first time at the first :meth:`count`."""

    def __init__(self):
        self.asked, self.answered, self.found = threading.Semaphore(0), threading.Semaphore(0), set()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            self.asked.acquire()
            torch.ones(200_000).exp_()  # large enough to be shared out
            self.found = counts()
            self.answered.release()

    def count(self) -> set[int]:
        self.asked.release()
        assert self.answered.acquire(timeout=30)
        return self.found


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_who_samples_while_a_map_is_drawn_keeps_all_threads():
    old, new = Sampler(), Sampler()
    assert old.count() == {3}
    seen = {}

    def draw() -> None:  # a thread of the panel
        with one_thread():
            with one_thread(share=False):
                seen["panel"], seen["old"], seen["new"] = counts(), old.count(), new.count()
            seen["panel, still"] = counts()
        seen["panel, afterwards"] = counts()

    in_a_thread(draw)
    assert seen == {"panel": {1}, "panel, still": {1}, "panel, afterwards": {3}, "old": {3}, "new": {3}}
    assert old.count() == new.count() == Sampler().count() == {3}


def test_threads_that_read_files_leave_others_theirs(tiny_lora, tmp_path):
    """Also while they are alive: a sampling may begin during a scan."""
    tiny_lora("a.safetensors", seed=1)
    seen = []
    with Library.open(tmp_path / "library") as library:
        library.scan({"loras": tmp_path / "loras"}, progress=lambda *now: seen.append(Sampler().count()))
    assert seen and all(found == {3} for found in seen)


def test_the_second_thread_of_a_scan_leaves_others_theirs():
    _second.cache_clear()  # it begins anew
    with one_thread():
        halves(lambda start, stop: None, 10, True)
        assert Sampler().count() == {3}


def test_one_for_good_is_for_the_calling_thread_alone():
    seen = []
    in_a_thread(lambda: seen.extend([only_one(), counts(), only_one(), Sampler().count()]))
    assert seen == [3, {1}, 1, {3}] and counts() == {3}


def test_where_one_is_the_setting_it_stays(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: pytest.fail("there is nothing to set"))
    with one_thread():
        assert counts() == {1}
    monkeypatch.undo()
    torch.set_num_threads(3)
