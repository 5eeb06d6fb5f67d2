"""Proves that a slow drive holds up nobody but itself, and that a library read by its headers is found by its words at
once and ends, whatever order and interruptions its files are read in, as one that was read at the start."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from conftest import emoji_factors, write_lora
from test_library_crash import dump

from autolora_core.encode.towers import LexicalTower
from autolora_core.library import one_pass, roots
from autolora_core.library.headers import read_headers
from autolora_core.library.index import Library
from autolora_core.library.later import Later, note_words, unread, words_wait
from autolora_core.library.locks import writing
from autolora_core.library.walk import Scope, walk
from autolora_core.retrieve.retrieve import retrieve

NAMES = ("otter", "fox", "castle", "ink")


@pytest.fixture
def loras(tmp_path) -> Path:
    """Four files with words of their own; the first is the oldest."""
    for seed, name in enumerate(NAMES):
        path = write_lora(tmp_path / "loras" / f"{name}.safetensors", emoji_factors(seed, blocks=1))
        os.utime(path, ns=(10**18 + seed, 10**18 + seed))
    (tmp_path / "loras" / "fox.civitai.info").write_text(json.dumps({"model": {"name": "Red Fox"}}), encoding="utf-8")
    return tmp_path / "loras"


@pytest.fixture
def library(tmp_path):
    with Library.open(tmp_path / "library") as opened:
        yield opened


# -- roots -------------------------------------------------------------------------------------------------------------


class Drive:
    """A root whose listing waits for :meth:`wake`."""

    def __init__(self, monkeypatch, root: Path):
        self._go, real = threading.Event(), roots.walk

        def slow(folder, *what):
            if folder == str(root):
                self._go.wait(20)
            yield from real(folder, *what)

        monkeypatch.setattr(roots, "walk", slow)
        monkeypatch.setattr(roots, "TOGETHER_SECONDS", 0.05)

    def wake(self) -> None:
        self._go.set()


def test_a_slow_drive_holds_up_nobody_but_itself(tmp_path, loras, library, monkeypatch):
    slow = tmp_path / "network"
    write_lora(slow / "far.safetensors", emoji_factors(9, blocks=1))
    drive, heard = Drive(monkeypatch, slow), []

    def progress(done: int, total: int, name: str) -> None:
        heard.append((done, total, name))
        if name == f"waiting for {slow}":
            assert done == total == len(NAMES), "the others were not read while it was awaited"
            assert len(library.entries()) == len(NAMES)
            drive.wake()

    report = library.scan({"slow": slow, "quick": loras}, progress=progress)
    assert report.added == 5 and heard[-1][:2] == (5, 5)
    assert any(name.startswith("waiting for") for _, _, name in heard)


def test_a_scan_that_waits_for_a_drive_can_be_stopped(tmp_path, loras, library, monkeypatch):
    slow = tmp_path / "network"
    slow.mkdir()
    drive, began = Drive(monkeypatch, slow), time.monotonic()
    report = library.scan([slow, loras], should_stop=lambda: time.monotonic() - began > 1)
    drive.wake()
    assert report.stopped and report.added == len(NAMES) and time.monotonic() - began < 10


def test_trouble_in_a_listing_is_not_lost(loras, library, monkeypatch):
    def broken(*_):
        raise RuntimeError("the listing broke")
        yield

    monkeypatch.setattr(roots, "walk", broken)
    with pytest.raises(RuntimeError, match="the listing broke"):
        library.scan([loras])


# -- headers -----------------------------------------------------------------------------------------------------------


def test_headers_alone_are_found_by_words(loras, library, monkeypatch):
    monkeypatch.setattr(one_pass.Pass, "tensors", lambda *_: pytest.fail("a tensor is read"))
    report = library.scan([loras], headers_only=True)
    assert (report.added, report.bytes_read, report.encoded) == (4, 0, 0) and unread(library) == 4
    by_name = {entry.name: entry for entry in library.entries()}
    fox = by_name["fox.safetensors"]
    assert fox.by_header and fox.autov2 == "" and (fox.family, fox.kind, fox.rank) == ("emoji", "lora", 2)
    assert len(library.modules(fox.hash)) == 8 and library.unencoded() == [] and library.exact_copies() == []
    found = retrieve(library, "a red fox", family="emoji", tower=LexicalTower())
    assert [pick.name for pick in found.picks][:1] == ["fox.safetensors"]
    assert library.scan([loras], headers_only=True).unchanged == 4


def test_reading_later_ends_as_reading_at_once(tmp_path, loras, library):
    library.scan([loras], headers_only=True)
    report = library.scan([loras])
    assert (report.unchanged, report.encoded, report.added, report.changed) == (4, 4, 0, 0)
    with Library.open(tmp_path / "at once") as other:
        other.scan([loras])
        assert dump(library) == dump(other)
    before = dump(library)
    assert library.scan([loras], headers_only=True, force=True).unchanged == 4
    assert dump(library) == before, "a header says less than what was read"


def test_a_file_that_goes_before_it_is_read_leaves_nothing(loras, library):
    library.scan([loras], headers_only=True)
    os.rename(loras / "ink.safetensors", loras / "moved.safetensors")
    (loras / "otter.safetensors").unlink()
    library.scan([loras], headers_only=True)
    names = [entry.name for entry in library.entries(include_missing=True)]
    assert names == ["castle.safetensors", "fox.safetensors", "moved.safetensors"]
    assert library.store.db.execute("SELECT count(*) FROM contents").fetchone() == (3,)


def test_a_known_file_that_is_moved_keeps_its_place_through_a_look_at_headers(loras, library):
    library.scan([loras])
    os.rename(loras / "fox.safetensors", loras / "lisa.safetensors")
    library.scan([loras], headers_only=True)
    report = library.scan([loras])
    assert report.renamed == 1 and report.encoded == 0
    assert [e.name for e in library.entries(include_missing=True)].count("fox.safetensors") == 0


def test_damaged_headers_say_what_a_whole_reading_says(tmp_path, library):
    root = tmp_path / "odd"
    root.mkdir()
    good = write_lora(root / "good.safetensors", emoji_factors(1, blocks=1), metadata={"a": '}},"b": {'}).read_bytes()
    write_lora(root / "same.safetensors", emoji_factors(2, blocks=1), metadata={"a": "x},", "b": "},"})
    (root / "cut.safetensors").write_bytes(good[:-100])
    (root / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (root / "twice.safetensors").write_bytes(good.replace(b'{"__metadata__":{', b'{"__metadata__":{"a":"x",', 1))
    (root / "empty.safetensors").write_bytes(b"")
    library.scan([root], headers_only=True)
    told = {entry.name: (entry.family, entry.kind, entry.problems, entry.text) for entry in library.entries()}
    library.scan([root])
    assert told == {entry.name: (entry.family, entry.kind, entry.problems, entry.text) for entry in library.entries()}
    assert told["good.safetensors"][0] == "emoji" and told["twice.safetensors"][1] == "not_a_lora"


def test_one_table_of_tensors_is_worked_out_once(tmp_path, monkeypatch):
    for seed in range(3):
        write_lora(
            tmp_path / f"{seed}.safetensors", emoji_factors(seed, blocks=1), metadata={"ss_output_name": str(seed)}
        )
    items = list(walk(str(tmp_path), lambda name: True, print))
    first = read_headers(items[0])
    monkeypatch.setattr("autolora_core.library.headers.sort_modules", lambda header: pytest.fail("worked out again"))
    for number, item in enumerate(items):
        found = read_headers(item)
        assert found.metadata["ss_output_name"] == str(number) and found.content.modules == first.content.modules


# -- order and stops ---------------------------------------------------------------------------------------------------


def read_order(monkeypatch) -> list[str]:
    """Names of the files whose tensors are read, in order."""
    seen, real = [], one_pass.Pass.tensors
    monkeypatch.setattr(
        one_pass.Pass, "tensors", lambda self, *w: (seen.append(Path(self.path).stem), real(self, *w))[1]
    )
    return seen


def test_order_and_limit(loras, library, monkeypatch):
    library.scan([loras], headers_only=True)
    seen = read_order(monkeypatch)
    later = Later(library.folder, lambda: False, nothing, nothing)
    later.want(["castle.safetensors"])
    report = library.scan([loras], order=later.order, limit=2, workers=1)
    assert report.stopped and seen == ["castle", "ink"] and unread(library) == 2
    later.want(["otter.safetensors"])
    library.scan([loras], order=later.order, workers=1)
    assert seen == ["castle", "ink", "otter", "fox"] and unread(library) == 0


def nothing(library: Library, should_stop) -> bool:
    return True


def wait_for(what) -> None:
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < 20, "it does not come"
        time.sleep(0.02)


@pytest.fixture
def quick_looks(monkeypatch):
    monkeypatch.setattr("autolora_core.library.later.PAUSE_SECONDS", 0.02)


def test_the_reader_keeps_still_while_prompts_run(loras, library, quick_looks):
    library.scan([loras], headers_only=True)
    busy, fits = threading.Event(), []
    busy.set()
    later = Later(library.folder, busy.is_set, nothing, lambda *what: bool(fits.append(what)))
    later.start(Scope.of([loras]))
    time.sleep(0.3)
    assert later.running and unread(library) == 4
    busy.clear()
    wait_for(lambda: unread(library) == 0 and not later.running)
    assert len(fits) == 1 and all(entry.hash for entry in library.entries())
    assert not any(entry.by_header for entry in library.entries())


def test_a_prompt_in_the_middle_stops_it_and_it_goes_on(loras, library, quick_looks, monkeypatch):
    library.scan([loras], headers_only=True)
    busy, real = threading.Event(), one_pass.Pass.rest

    def prompt_comes(self):
        found = real(self)
        if not busy.is_set() and len(library.entries()) and unread(library) == 3:
            busy.set()
        return found

    monkeypatch.setattr(one_pass.Pass, "rest", prompt_comes)
    monkeypatch.setattr("autolora_core.library.later.ROUND_FILES", 1)
    later = Later(library.folder, busy.is_set, nothing, nothing)
    later.start(Scope.of([loras]))
    wait_for(busy.is_set)
    time.sleep(0.2)
    left = unread(library)
    assert left >= 2 and later.running
    monkeypatch.setattr(one_pass.Pass, "rest", real)
    busy.clear()
    wait_for(lambda: unread(library) == 0)
    later.stop()


def test_it_waits_for_another_writer_and_ends_when_told(loras, library, quick_looks):
    library.scan([loras], headers_only=True)
    later = Later(library.folder, lambda: False, nothing, nothing)
    with Library.open(library.folder) as other, writing(other.store, 5.0, None):
        later.start(Scope.of([loras]))
        time.sleep(0.15)
        assert later.running and unread(library) == 4
        later.stop()
        assert not later.running
    later.start(Scope.of([loras]))
    wait_for(lambda: unread(library) == 0)


def test_words_are_encoded_first_and_once(loras, library, quick_looks):
    library.scan([loras], headers_only=True)
    assert not words_wait(library, "tower")  # a library that never put it off
    note_words(library, "")
    assert words_wait(library, "tower")
    told = []

    def words(opened: Library, should_stop) -> bool:
        told.append(unread(opened))
        note_words(opened, "tower")
        return True

    later = Later(library.folder, lambda: False, words, nothing)
    later.start(Scope.of([loras]))
    wait_for(lambda: not later.running)
    assert told[0] == 4 and not words_wait(library, "tower") and words_wait(library, "another")
