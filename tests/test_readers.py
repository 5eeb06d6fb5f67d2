"""Proves that processes that read files for a scan leave the very index that the scan's own threads leave, that losing
one, or having none, costs nothing but time, that none is left behind, and that a small scan starts none."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import emoji_factors, real_loras, write_lora
from library_dump import dump

from autolora_core.library import ahead, readers, scan
from autolora_core.library.content import damaged
from autolora_core.library.index import Library
from autolora_core.library.reader_wire import BadFrame, answer, answered, read_frame, request, requested, write_frame
from autolora_core.library.reading import read_file, words_of
from autolora_core.library.walk import Found, walk

ROOT = Path(__file__).resolve().parents[1]
made: list[readers.Readers] = []


class Waited(readers.Readers):
    """All are ready before the first file is read."""

    def __init__(self, count: int):
        super().__init__(count)
        made.append(self)
        self.wait_ready()


@pytest.fixture
def waited(monkeypatch):
    made.clear()
    monkeypatch.setattr(ahead, "Readers", Waited)
    yield made
    assert all(reader._process.poll() is not None for some in made for reader in some._all), "one is left behind"


def folder_of_all(place: Path) -> Path:
    """Real files, made ones, damaged ones and one that is no LoRA, under names that are hard to pass on."""
    folder = place / "LoRAs von Zoë 猫"
    for number in range(4):
        write_lora(folder / f"{number} ёлка.safetensors", emoji_factors(number, blocks=1), dtype=torch.float32)
    for path in real_loras():
        shutil.copyfile(path, folder / path.name)
    (folder / "cut.safetensors").write_bytes((folder / "0 ёлка.safetensors").read_bytes()[:-100])
    (folder / "words.safetensors").write_bytes(b"no LoRA at all")
    broken = emoji_factors(9, blocks=1)
    next(iter(broken.values()))[1][0, 0] = float("nan")
    write_lora(folder / "broken.safetensors", broken, dtype=torch.float32)
    (folder / "0 ёлка.txt").write_text("ein Tännchen", encoding="utf-8")
    if sys.platform == "linux":
        shutil.copyfile(folder / "1 ёлка.safetensors", os.fsencode(folder) + b"/odd \xff.safetensors")
    return folder


def scanned(folder: Path, place: Path, **how):
    with Library.open(place) as library:
        report = library.scan({"loras": folder}, **how)
        return dump(library), report


def test_the_index_is_that_of_threads(tmp_path, monkeypatch, waited):
    folder = folder_of_all(tmp_path)
    wanted, told = scanned(folder, tmp_path / "threads", workers=2)
    monkeypatch.setattr(scan, "read_file", lambda *what, **how: pytest.fail("it was read here"))
    found, report = scanned(folder, tmp_path / "processes", workers=2, processes=2)
    assert found == wanted
    assert (report.encoded, report.problems, report.bytes_read) == (told.encoded, told.problems, told.bytes_read)


def test_a_killed_process_costs_nothing(tmp_path, monkeypatch, waited):
    folder = folder_of_all(tmp_path)
    wanted, _ = scanned(folder, tmp_path / "threads")

    class Killed(Waited):
        def __init__(self, count):
            super().__init__(count)
            for reader in self._all:
                reader._process.kill()

    monkeypatch.setattr(ahead, "Readers", Killed)
    assert scanned(folder, tmp_path / "processes", workers=2, processes=2)[0] == wanted
    assert len(made[0]._all) == 4, "two in place of the two"


def test_a_file_that_ends_every_process_is_told_and_tried_again(tmp_path, monkeypatch, waited):
    write_lora(tmp_path / "loras" / "a.safetensors", emoji_factors(1, blocks=1))
    with monkeypatch.context() as patched:
        lost = lambda *what: (_ for _ in ()).throw(readers.Lost("it ended with -9"))  # noqa: E731
        patched.setattr(readers._Reader, "read", lost)
        _, report = scanned(tmp_path / "loras", tmp_path / "library", processes=1)
        assert "2 processes ended while they read it" in report.problems[0][1]
    _, report = scanned(tmp_path / "loras", tmp_path / "library")
    assert (report.encoded, report.problems) == (1, [])


def test_an_interrupted_scan_leaves_no_process(tmp_path, waited):
    folder = folder_of_all(tmp_path)

    def stop(done, total, name):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scanned(folder, tmp_path / "library", processes=2, progress=stop)
    assert len(made) == 1


def test_where_no_process_can_be_started_threads_read_and_say_so_once(tmp_path, monkeypatch, caplog, waited):
    def refused():
        raise ValueError("this is no Python")

    monkeypatch.setattr(readers, "_command", refused)
    folder = folder_of_all(tmp_path)
    _, report = scanned(folder, tmp_path / "library", processes=3)
    assert report.encoded >= 4
    assert sum("no process could be started" in line for line in caplog.messages) == 1


def test_one_that_says_something_else_is_not_used(tmp_path, monkeypatch, caplog, waited):
    monkeypatch.setattr(readers, "_command", lambda: [sys.executable, "-c", "print('hello, this is no frame at all')"])
    write_lora(tmp_path / "loras" / "a.safetensors", emoji_factors(1, blocks=1))
    assert scanned(tmp_path / "loras", tmp_path / "library", processes=1)[1].encoded == 1
    assert sum("no process could be started" in line for line in caplog.messages) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_end_when_the_one_that_started_them_is_killed():
    code = "from autolora_core.library.readers import Readers\nimport time\nif 1:\n    some = Readers(1)\n"
    code += "    some._starting[0].join()\n    print(some._all[0]._process.pid, flush=True)\n    time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    until = time.monotonic() + 20
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def found(size: int) -> Found:
    return Found("/loras", "a", "/loras/a", size, 1, {})


@pytest.mark.parametrize(
    ("processors", "files", "workers", "count"),
    [(8, 100, None, 7), (8, 100, 3, 3), (8, 100, 1, 0), (32, 100, None, 8), (2, 100, None, 0), (8, 10, None, 0)],
)
def test_processes_are_for_much_work_on_many_processors(monkeypatch, processors, files, workers, count):
    monkeypatch.setattr(readers, "processors", lambda: processors)
    monkeypatch.setattr(readers, "_room", lambda: 100)
    assert readers.wanted([found(300_000_000)] * files, workers) == count
    monkeypatch.setattr(readers, "_room", lambda: 1)
    assert readers.wanted([found(300_000_000)] * files, workers) == 0


def test_a_small_scan_starts_none(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "processors", lambda: 16)
    monkeypatch.setattr(ahead, "Readers", lambda count: pytest.fail("a process for two files"))
    for number in range(2):
        write_lora(tmp_path / "loras" / f"{number}.safetensors", emoji_factors(number, blocks=1))
    assert scanned(tmp_path / "loras", tmp_path / "library")[1].encoded == 2


# -- the wire ----------------------------------------------------------------------------------------------------------


def there_and_back(head, arrays=()):
    pipe = io.BytesIO()
    write_frame(pipe, head, arrays)
    pipe.seek(0)
    return read_frame(pipe)


def test_what_was_read_comes_back_as_it_was(tmp_path):
    for item in walk(str(folder_of_all(tmp_path)), lambda name: True, print):
        read = read_file(item, lambda size: None)
        words = words_of(item, read, None)
        again, said = answered(*there_and_back(*answer(read, words)))
        assert (again.digest, again.content, again.bytes_read, said) == (
            read.digest,
            read.content,
            read.bytes_read,
            words,
        )
        assert (again.encoded is None) == (read.encoded is None)
        if read.encoded is not None and read.encoded.features is not None:
            one, other = read.encoded.features, again.encoded.features
            assert (one.modules, one.skipped) == (other.modules, other.skipped)
            np.testing.assert_array_equal(one.rows, other.rows)
            np.testing.assert_array_equal(one.log_norms, other.log_norms)
        if read.encoded is not None and read.encoded.response is not None:
            assert list(again.encoded.response.rows) == list(read.encoded.response.rows)


def test_a_request_comes_back_as_it_was():
    item = Found("/l", "\udcff.safetensors", "/l/\udcff.safetensors", 1, 2, {"a.txt": [3, 4]})
    known = damaged(ValueError("broken"), "0" * 64, 5)
    assert requested(there_and_back(request(item, True, known))[0]) == (item, True, known)


@pytest.mark.parametrize(
    "data",
    [b"\1", b"\xff" * 16, (2).to_bytes(8, "little") + bytes(8) + b"[]", (90).to_bytes(8, "little") + bytes(8) + b"{}",
     (25).to_bytes(8, "little") + bytes(8) + b'{"arrays": [["|O", [1]]]}'],
)  # fmt: skip
def test_what_is_no_frame_is_told(data):
    with pytest.raises(BadFrame):
        read_frame(io.BytesIO(data))
    assert read_frame(io.BytesIO(b"")) is None
