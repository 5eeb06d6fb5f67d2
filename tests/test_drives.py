"""Proves that the files of several drives are read side by side: a drive that is slow, hangs or is given up costs its
own files alone, what the others bring is in the index meanwhile, and the index comes out as from one drive."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import emoji_factors, write_lora
from library_dump import dump
from test_roots_and_later import Drive

from autolora_core.library import ahead, later, one_pass, roots, scan
from autolora_core.library.ahead import ReadAhead
from autolora_core.library.index import Library
from autolora_core.library.reading import read_file
from autolora_core.library.walk import Found, walk

ROOT = Path(__file__).resolve().parents[1]
NEAR, FAR = 6, 3


@pytest.fixture
def two(tmp_path, monkeypatch) -> dict[str, Path]:
    """Two roots, each a drive by itself."""
    roots = {"far": tmp_path / "far", "near": tmp_path / "near"}
    for seed in range(NEAR + FAR):
        name = "near" if seed < NEAR else "far"
        write_lora(roots[name] / f"{seed}.safetensors", emoji_factors(seed, blocks=1))
    monkeypatch.setattr(Found, "drive", property(lambda item: item.root))
    return roots


class Hanging:
    """Reading a file of ``root`` waits for :meth:`wake`; ``asked`` counts the files of each root."""

    def __init__(self, monkeypatch, root: Path):
        self.go, self.asked = threading.Event(), Counter()

        def slow(item, tick, **how):
            self.asked[item.root] += 1
            if item.root == str(root):
                assert self.go.wait(30), "nobody woke the drive"
            return read_file(item, tick, **how)

        monkeypatch.setattr(scan, "read_file", slow)
        monkeypatch.setattr(scan, "LONG_SECONDS", 0.2)

    def wake(self) -> None:
        self.go.set()


def test_what_other_drives_bring_is_in_the_index_while_one_hangs(tmp_path, two, monkeypatch):
    hanging, seen = Hanging(monkeypatch, two["far"]), []
    monkeypatch.setattr(scan, "COMMIT_SECONDS", 0.1)

    def progress(done: int, total: int, name: str) -> None:
        if name == f"waiting for {two['far']}":
            with Library.open(tmp_path / "library") as another:
                seen.append((done, total, len(another.entries())))
            hanging.wake()

    with Library.open(tmp_path / "library") as library:
        report = library.scan(two, progress=progress, workers=2)
        assert seen[0] == (NEAR, NEAR + FAR, NEAR), "its files were not read, or not written, while the other hung"
        assert (report.added, report.encoded, report.problems) == (NEAR + FAR, NEAR + FAR, [])
        whole = dump(library)
    monkeypatch.undo()
    with Library.open(tmp_path / "one drive") as library:
        library.scan(two, workers=1)
        assert dump(library) == whole


def test_a_scan_that_is_ended_gives_a_drive_that_hangs_up(tmp_path, two, monkeypatch, caplog):
    hanging = Hanging(monkeypatch, two["far"])
    monkeypatch.setattr(ahead, "END_SECONDS", 0.2)
    with Library.open(tmp_path / "library") as library:
        begun = []

        def stop() -> bool:
            begun.append(hanging.asked[str(two["far"])] > 0)
            return begun[-1] and len(begun) > 20

        with caplog.at_level(logging.WARNING):
            report = library.scan(two, workers=2, should_stop=stop)
        assert report.stopped and not hanging.go.is_set()
        assert "is given up" in caplog.text
        hanging.wake()
        assert library.scan(two).stopped is False
        assert len(library.entries()) == NEAR + FAR


def test_no_file_is_begun_after_the_end(tmp_path, two, monkeypatch):
    hanging = Hanging(monkeypatch, two["far"])
    monkeypatch.setattr(ahead, "END_SECONDS", 0.2)
    far = str(two["far"])
    with Library.open(tmp_path / "library") as library:
        library.scan({"far": far}, workers=2, should_stop=lambda: hanging.asked[far] == 2)
        assert gc.isenabled()
        hanging.wake()
        time.sleep(0.1)
        assert hanging.asked == {far: 2}, "files that nobody waits for were begun"


def test_nothing_is_switched_off_while_a_drive_is_waited_for(tmp_path, two, monkeypatch):
    """Making the table of a header takes no collections of garbage; the drive may take minutes to give it."""
    seen = []
    real = one_pass.Pass._read

    def read(self, count):
        seen.append(gc.isenabled())
        return real(self, count)

    monkeypatch.setattr(one_pass.Pass, "_read", read)
    with Library.open(tmp_path / "library") as library:
        library.scan(two, workers=1)
    assert seen and all(seen)


def test_a_drive_that_is_listed_late_is_read_although_another_hangs(tmp_path, two, monkeypatch):
    """The one that hangs was listed first; the other's files come into the index meanwhile."""
    hanging, late, done = Hanging(monkeypatch, two["far"]), Drive(monkeypatch, two["near"]), []
    monkeypatch.setattr(scan, "COMMIT_SECONDS", 0.1)

    def progress(count: int, total: int, name: str) -> None:
        if hanging.asked[str(two["far"])]:
            late.wake()
        if count == NEAR and name.startswith("waiting for"):
            with Library.open(tmp_path / "library") as another:
                done.append(len(another.entries()))
            hanging.wake()

    with Library.open(tmp_path / "library") as library:
        assert library.scan(two, progress=progress, workers=2).added == NEAR + FAR
    assert done[0] == NEAR


def test_what_was_read_is_committed_while_a_listing_is_awaited(tmp_path, two, monkeypatch):
    monkeypatch.setattr(scan, "COMMIT_SECONDS", 0.1)
    monkeypatch.setattr(scan, "SAY_SECONDS", 0.2)
    late, done = Drive(monkeypatch, two["far"]), []

    def progress(count: int, total: int, name: str) -> None:
        if count == total == NEAR and name == f"waiting for {two['far']}":
            with Library.open(tmp_path / "library") as another:
                done.append(len(another.entries()))
            if done[-1] == NEAR or len(done) > 20:
                late.wake()

    with Library.open(tmp_path / "library") as library:
        library.scan(two, progress=progress, workers=2)
    assert done[-1] == NEAR


def test_nothing_is_waited_for_when_all_is_listed_and_nothing_to_be_read(tmp_path, two, monkeypatch):
    real, listings = roots.Roots.wait, []

    def wait(self, seconds):
        listings.append(len(self._left))
        real(self, seconds)

    with Library.open(tmp_path / "library") as library:
        library.scan(two)
        monkeypatch.setattr(roots.Roots, "wait", wait)
        assert library.scan(two).unchanged == NEAR + FAR
    assert all(listings), "a listing was awaited when there was none to come"


def test_a_drive_that_hangs_does_not_keep_the_process_from_ending():
    program = """
import sys, threading
from autolora_core.library import ahead
ahead.END_SECONDS = 0.1
with ahead.ReadAhead(2) as reading:
    results = reading.results(iter([[1, 2, 3]]), lambda item: (lambda: threading.Event().wait() if item > 1 else item))
    print(next(results)[1].result(), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


def test_one_worker_is_one_whatever_the_number_of_drives(tmp_path, two, monkeypatch):
    running, most, lock = [0], [], threading.Lock()

    def counted(item, tick, **how):
        with lock:
            running[0] += 1
            most.append(running[0])
        try:
            return read_file(item, tick, **how)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr(scan, "read_file", counted)
    with Library.open(tmp_path / "library") as library:
        library.scan(two, workers=1)
    assert len(most) == NEAR + FAR and max(most) == 1


def test_an_order_that_was_asked_for_is_that_of_all_drives(tmp_path, two):
    heard = []
    with Library.open(tmp_path / "library") as library:
        order = later.Later(tmp_path, lambda: False, None, None).order
        for seed in range(NEAR + FAR):
            path = two["near" if seed < NEAR else "far"] / f"{seed}.safetensors"
            os.utime(path, ns=(10**18 + seed * 7 % 9, 10**18 + seed * 7 % 9))
        library.scan(two, order=order, workers=1, progress=lambda done, total, name: heard.append(name))
    named = [int(name.partition(".")[0]) for name in heard if name]
    assert named == sorted(range(NEAR + FAR), key=lambda seed: -(seed * 7 % 9))


def test_files_say_which_drive_they_lie_on(tmp_path):
    path = write_lora(tmp_path / "a" / "b.safetensors", emoji_factors(0, blocks=1))
    (found,) = walk(str(tmp_path), lambda name: True, lambda path, why: None)
    assert found.device == found.drive == path.parent.stat().st_dev
    assert Found("/loras", "a", "/loras/a", 1, 1, {}).drive == "/loras", "where the system has no number for it"


# -- the threads of a drive --------------------------------------------------------------------------------------------


class Bench:
    """Jobs of drives ``a`` and ``b`` that wait until they are let go; ``most`` that ran at a time, by drive."""

    def __init__(self):
        self.go = {"a": threading.Event(), "b": threading.Event()}
        self.running, self.most, self._lock = Counter(), Counter(), threading.Lock()

    def work(self, item: str):
        def job() -> str:
            drive = item[0]
            with self._lock:
                self.running[drive] += 1
                self.most[drive] = max(self.most[drive], self.running[drive])
            assert self.go[drive].wait(20)
            with self._lock:
                self.running[drive] -= 1
            return item

        return job


class Processes:
    """Stands for processes that read; nothing here asks one."""

    def __init__(self, count: int):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def stop(self):
        pass


def until(true) -> None:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    assert true()


def test_drives_share_the_processes_and_the_last_one_has_them_all(monkeypatch):
    monkeypatch.setattr(ahead, "Readers", Processes)
    bench, items = Bench(), [f"{drive}{number}" for number in range(12) for drive in "ab"]
    with ReadAhead(1) as reading:
        reading.enlist(4)
        results = reading.results(iter([items]), bench.work, lambda item: item[0])
        bench.go["b"].set()
        got = [next(results)[0] for _ in range(12)]
        assert got == [f"b{number}" for number in range(12)], "the drive that hangs was waited for"
        assert bench.most["a"] <= 2, "a drive that hangs took more than its part"
        taken = threading.Thread(target=lambda: got.extend(item for item, _ in results))
        taken.start()
        until(lambda: bench.most["a"] == 4)
        bench.go["a"].set()
        taken.join(20)
    assert got[12:] == [f"a{number}" for number in range(12)]


def test_without_processes_every_drive_has_its_threads():
    bench, items = Bench(), [f"{drive}{number}" for number in range(5) for drive in "ab"]
    with ReadAhead(3) as reading:
        results = reading.results(iter([items]), bench.work, lambda item: item[0])
        got = []
        taken = threading.Thread(target=lambda: got.extend(item for item, _ in results))
        taken.start()
        until(lambda: bench.most == {"a": 3, "b": 3})
        for go in bench.go.values():
            go.set()
        taken.join(20)
    assert sorted(got) == sorted(items)
    assert [item for item in got if item[0] == "a"] == [f"a{number}" for number in range(5)]


@pytest.mark.parametrize("drives, threads", [(1, 4), (2, 4), (4, 2), (100, 1)])
def test_many_drives_do_not_start_threads_without_end(drives, threads):
    with ReadAhead(4) as reading:
        assert reading._share(drives) == threads
