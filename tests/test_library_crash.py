"""Proves that a killed scan loses nothing that was committed, that the next one finishes the work, and that the result
is that of an undisturbed run; and that two processes neither corrupt nor block each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import emoji_factors, write_lora
from library_dump import dump

from autolora_core.encode.towers import LexicalTower
from autolora_core.errors import LibraryError
from autolora_core.library.index import Library
from autolora_core.library.locks import writer_lock
from autolora_core.library.store import write_atomically

FILES = 14
MOMENTS = (
    "file:1", "file:6", f"file:{FILES + 1}", "sketch:2", "sketch:9", "commit:1", "commit:3", "commit:5", "vectors:1",
    "replace:1", "replace:2",
)  # fmt: skip


def finish(folder: Path, loras: Path) -> tuple[dict, int]:
    """Scan and fit to the end; the whole content, and how many files had to be encoded."""
    with Library.open(folder) as library:
        report = library.scan({"loras": loras})
        library.fit(LexicalTower())
        encoder = library.encoder("emoji")
        assert len(library.vectors("emoji", encoder.id).hashes) == FILES
        return dump(library), report.encoded


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """LoRA folder, and one library per moment whose scan died there."""
    base = tmp_path_factory.mktemp("crash")
    loras = base / "loras"
    words = "otter fox ink neon castle rocket guitar cactus crown harbour violin lynx".split()
    for seed in range(FILES):
        name = words[seed] if seed < len(words) else f"lora_{seed:06}"
        write_lora(loras / f"{name}.safetensors", emoji_factors(seed, blocks=1))
    script = Path(__file__).with_name("library_victim.py")
    command = [sys.executable, str(script), str(loras), str(base), *MOMENTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return loras, base, json.loads(done.stdout)


@pytest.fixture(scope="module")
def undisturbed(crashed):
    loras, base, _ = crashed
    return finish(base / "undisturbed", loras)[0]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at(crashed, undisturbed, moment):
    loras, base, endings = crashed
    assert endings[moment] == -9, f"the scan ended with {endings[moment]} instead of being killed"
    folder = base / moment.replace(":", "-")
    with Library.open(folder) as library:
        assert library.store.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        kept = dump(library)
    for table in ("contents", "features"):
        assert set(kept[table]) <= set(undisturbed[table]), "what was committed is not what a whole run writes"
    finished, encoded = finish(folder, loras)
    assert finished == undisturbed
    assert encoded == FILES - len(kept["features"]), "something committed was encoded again, or something was lost"


def test_late_kills_keep_early_work(crashed):
    _, base, _ = crashed
    done = {}
    for moment in ("file:1", "sketch:9", f"file:{FILES + 1}"):
        with Library.open(base / moment.replace(":", "-")) as library:
            done[moment] = library.store.db.execute("SELECT count(*) FROM files").fetchone()[0]
    assert done["sketch:9"] >= 4 and done[f"file:{FILES + 1}"] >= 12


def test_second_writer_waits_then_says_who_holds_the_library(tmp_path):
    (tmp_path / "loras").mkdir()
    with Library.open(tmp_path / "library", wait=0.2) as library:
        with writer_lock(library.folder), pytest.raises(LibraryError, match=f"process {os.getpid()}.*What to do: wait"):
            library.scan([tmp_path / "loras"])
        library.scan([tmp_path / "loras"])


def test_waiting_can_be_interrupted(tmp_path):
    with Library.open(tmp_path / "library") as library, writer_lock(library.folder):
        with pytest.raises(LibraryError, match="stopped while waiting"):
            library.scan([tmp_path], should_stop=lambda: True)


def test_readers_are_not_blocked_and_see_the_last_commit(tmp_path):
    write_lora(tmp_path / "loras" / "fox.safetensors", emoji_factors(0, blocks=1))
    with Library.open(tmp_path / "library") as writer, Library.open(tmp_path / "library") as reader:
        writer.scan([tmp_path / "loras"])
        with writer_lock(writer.folder):
            writer.store.db.execute("BEGIN IMMEDIATE")
            writer.store.db.execute("UPDATE files SET missing = 1")
            assert [entry.name for entry in reader.entries()] == ["fox.safetensors"]
            writer.store.bump()
            writer.store.db.execute("COMMIT")
        assert reader.entries() == []


def test_lock_of_a_dead_process_is_free(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from autolora_core.library.locks import writer_lock\n"
        "with writer_lock(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, timeout=60, check=False)
    assert done.returncode == -9
    with writer_lock(tmp_path, wait=0):
        assert b"process" in (tmp_path / "writer.lock").read_bytes()


def test_atomic_write_leaves_old_or_new(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]
