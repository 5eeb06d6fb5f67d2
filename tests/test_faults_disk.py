"""Proves that a library on a full, read-only or failing disk says what is wrong and what to do, is read as far as it
can be, loses nothing and goes on afterwards; that one of a newer version is left alone; and that no clock is needed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import emoji_factors, write_lora
from library_dump import dump

from autolora_core.encode.towers import LexicalTower
from autolora_core.errors import LibraryError, LibraryVersionError
from autolora_core.library import answer_store, store, texts
from autolora_core.library.answer_store import AnswerStore
from autolora_core.library.index import Library
from autolora_core.library.texts import TextStore


@pytest.fixture
def loras(tmp_path) -> Path:
    for seed, word in enumerate("otter fox ink neon castle rocket guitar cactus crown".split()):
        write_lora(tmp_path / "loras" / f"{word}.safetensors", emoji_factors(seed, blocks=1))
    return tmp_path / "loras"


@pytest.fixture
def made(tmp_path, loras) -> Path:
    with Library.open(tmp_path / "library") as library:
        library.scan([loras])
        library.fit(LexicalTower())
    return tmp_path / "library"


@pytest.fixture
def read_only(made):
    """The library's folder on a read-only mount; root alone may make one."""

    def mount(*arguments: str) -> int:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode

    if not hasattr(os, "geteuid") or os.geteuid() or mount("--bind", str(made), str(made)):
        pytest.skip("only root can mount")
    mount("-o", "remount,ro,bind", str(made))
    yield made
    subprocess.run(["umount", "-l", str(made)], check=True)


def test_a_read_only_library_is_read_and_says_why_it_is_not_written(read_only, loras, tmp_path):
    files = {path.name: path.read_bytes() for path in read_only.iterdir()}
    with Library.open(read_only) as library:
        assert library.store.read_only and len(library.entries()) == 9
        encoder = library.encoder("emoji")
        assert len(library.vectors("emoji", encoder.id).hashes) == 9
        assert library.compare_duplicates("emoji") == [] and library.grid("emoji").hashes
        tower = library.text_tower(LexicalTower())
        assert tower.encode(["otter"]).shape[0] == 1
        for write in (lambda: library.scan([loras]), lambda: library.fit(LexicalTower())):
            with pytest.raises(LibraryError, match=r"library\.sqlite.*What to do"):
                write()
    assert {path.name: path.read_bytes() for path in read_only.iterdir()} == files


def test_what_waits_to_be_merged_is_not_passed_over_in_silence(made):
    """A copy of a library that was in use, on a read-only share, without the file that SQLite keeps beside it."""
    before = Library.open(made)
    before.store.bump()
    copy = made.parent / "copy"
    shutil.copytree(made, copy)
    before.close()
    (copy / "library.sqlite-shm").unlink()
    assert (copy / "library.sqlite-wal").stat().st_size and store.open_to_read(copy / "library.sqlite") is None


@pytest.mark.parametrize("error,says", [
    ("database or disk is full", "the disk is full.*MB are free.*make room"),
    ("disk I/O error", "the disk failed.*MB are free.*check that the drive is there"),
    ("attempt to write a readonly database", "cannot be written.*writable"),
])  # fmt: skip
@pytest.mark.parametrize("when", ["INSERT INTO files", "COMMIT", "INSERT OR REPLACE INTO vectors"])
def test_a_disk_that_fails_is_told_and_the_work_goes_on_later(tmp_path, loras, monkeypatch, error, says, when):
    """SQLite may have rolled back by itself, and a ROLLBACK then fails too."""

    class Failing(sqlite3.Connection):
        broken, seen = False, 0

        def _go(self, statement):
            type(self).seen += statement.startswith(when)
            if self.broken and statement.startswith(when) and self.seen > 1:
                if self.in_transaction:
                    super().execute("ROLLBACK")
                raise sqlite3.OperationalError(error)

        def execute(self, statement, *values):
            self._go(statement)
            return super().execute(statement, *values)

        def executemany(self, statement, *values):
            self._go(statement)
            return super().executemany(statement, *values)

    connect = sqlite3.connect
    with Library.open(tmp_path / "undisturbed") as library:
        library.scan([loras])
        library.fit(LexicalTower())
        wanted = dump(library)
    monkeypatch.setattr("autolora_core.library.scan.COMMIT_FILES", 3)
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **{"factory": Failing, **k}))
    with Library.open(tmp_path / "library") as library:
        Failing.broken, Failing.seen = True, 1 if "vectors" in when else 0
        with pytest.raises(LibraryError, match=says):
            library.scan([loras])
            library.fit(LexicalTower())
        assert not library.store.db.in_transaction
        Failing.broken = False
        library.scan([loras])  # the same open library goes on
        library.fit(LexicalTower())
        assert dump(library) == wanted


def test_damage_alone_is_a_reason_to_make_a_library_again(made):
    path = made / "library.sqlite"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(LibraryError, match="no library.*move the file away"):
        Library.open(made)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_library_of_a_newer_version_is_left_as_it_is(made, mode):
    with sqlite3.connect(made / "library.sqlite", isolation_level=None) as db:
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("PRAGMA user_version=99")
    db.close()
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    with pytest.raises(LibraryVersionError, match="format 99.*update ComfyUI-AutoLoRA"):
        Library.open(made)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_an_index_of_a_newer_version_says_so():
    with pytest.raises(LibraryVersionError, match="autolora-index/9.*update"):
        Library.from_handle({"format": "autolora-index/9", "folder": "x"})


def test_a_cache_in_use_or_on_a_full_disk_is_not_thrown_away(tmp_path, monkeypatch):
    kept = TextStore(tmp_path)
    kept["tower\ntext"] = b"1234"
    kept.close()
    connect = sqlite3.connect

    class Full(sqlite3.Connection):
        def execute(self, statement, *values):
            if statement.startswith(("CREATE", "INSERT")):
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(statement, *values)

    with monkeypatch.context() as patched:
        own = {"factory": Full}
        patched.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **({} if k.get("uri") else own), **k))
        full = TextStore(tmp_path)
        full["tower\nother"] = b"5678"
        assert full["tower\ntext"] == b"1234" and full["tower\nother"] == b"5678"
        full.close()
    again = TextStore(tmp_path)
    assert again["tower\ntext"] == b"1234" and "tower\nother" not in again
    again.close()
    (tmp_path / texts.FILE_NAME).write_bytes(b"damaged" * 1000)
    anew = TextStore(tmp_path)
    anew["tower\ntext"] = b"1234"
    assert "tower\nother" not in anew and anew["tower\ntext"] == b"1234"
    anew.close()


def test_answers_are_kept_when_the_clock_was_set_back(tmp_path, monkeypatch):
    """What is new is used last, whatever the clock says: with it a year back it would be the first to go."""
    kept, times = AnswerStore(tmp_path), iter(range(2_000_000_000, 0, -100_000))
    monkeypatch.setattr(answer_store.time, "time", lambda: float(next(times)))
    for number in range(8):
        kept.write(f"base {number}", f"files-{number}", ["a"], {"text": np.ones(1, np.float32) * number})
        found = kept.read(f"base {number}", f"files-{number}", ["a"], ["text"])
        assert found["text"].tolist() == [number]
    kept.close()


def test_libraries_made_in_one_moment_never_share_a_generation(tmp_path, monkeypatch):
    """Entries are remembered by folder and generation: one made anew after the clock was set back must not repeat."""
    monkeypatch.setattr("time.time", lambda: 1e9)
    seen = set()
    for _ in range(5):
        with Library.open(tmp_path / "library") as library:
            seen.add(library.generation)
        shutil.rmtree(tmp_path / "library")
    assert len(seen) == 5


def test_the_name_of_who_writes_is_no_reason_not_to(made, loras, monkeypatch):
    """The lock's own text does not fit on a full disk; what is there is brought up to date as far as it goes."""
    monkeypatch.setattr("autolora_core.library.locks.os.getpid", lambda: (_ for _ in ()).throw(OSError(28, "full")))
    with Library.open(made) as library:
        assert library.scan([loras]).unchanged == 9
    assert os.path.getsize(made / "writer.lock") >= 0
