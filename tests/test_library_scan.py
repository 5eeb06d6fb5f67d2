"""Proves that a scan follows the folders exactly (new, changed, moved, copied, gone, back), reads each content once,
never writes beside the files, and gets past any file it meets."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import emoji_factors, real_loras, write_lora

from autolora_core.encode.sample import layer_of, sampled
from autolora_core.errors import LibraryError, LibraryVersionError
from autolora_core.library import scan_rows
from autolora_core.library.index import Library
from autolora_core.library.walk import Scope, folder_state


@pytest.fixture
def roots(tmp_path) -> Path:
    """Three files: two at the top, one in a folder."""
    root = tmp_path / "loras"
    for seed, name in enumerate(("otter.safetensors", "fox.safetensors", "styles/ink.safetensors")):
        write_lora(root / name, emoji_factors(seed, blocks=1))
    return root


@pytest.fixture
def library(tmp_path):
    with Library.open(tmp_path / "library", wait=0.3) as opened:
        yield opened


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """Hashes of the contents that were encoded, in order."""
    seen, real = [], scan_rows.store_sketch
    monkeypatch.setattr(scan_rows, "store_sketch", lambda db, h, *rest: (seen.append(h), real(db, h, *rest))[1])
    return seen


def names(library: Library, **how) -> list[str]:
    return [entry.name for entry in library.entries(**how)]


def snapshot(folder: Path) -> dict[str, tuple]:
    """Everything an outsider can see of a folder: names, sizes, times, contents."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def test_first_scan_and_unchanged_scan(library, roots, encoded):
    heard = []
    report = library.scan({"loras": roots}, progress=lambda *args: heard.append(args))
    assert (report.added, report.files, report.encoded) == (3, 3, 3)
    assert report.bytes_read == sum(path.stat().st_size for path in roots.rglob("*.safetensors"))
    assert report.bytes_per_second > 0 and report.families == {"emoji": 3} and report.kinds == {"lora": 3}
    assert heard[0] == (0, 3, "") and heard[-1][:2] == (3, 3)
    assert names(library) == ["fox.safetensors", "otter.safetensors", os.path.join("styles", "ink.safetensors")]
    entry = library.entries()[1]
    content = (roots / "otter.safetensors").read_bytes()
    assert entry.hash == hashlib.sha256(content).hexdigest() and entry.autov2 == entry.hash[:10]
    assert (entry.family, entry.kind, entry.rank, entry.size) == ("emoji", "lora", 2, len(content))
    assert entry.text.title == "otter" and entry.path == str(roots / "otter.safetensors")
    assert len(library.modules(entry.hash)) == 8
    before = library.generation
    again = library.scan({"loras": roots})
    assert (again.unchanged, again.files, again.bytes_read, again.encoded) == (3, 3, 0, 0)
    assert library.generation == before and len(encoded) == 3


def test_added_changed_and_touched(library, roots, encoded):
    library.scan({"loras": roots})
    write_lora(roots / "new.safetensors", emoji_factors(9, blocks=1))
    write_lora(roots / "fox.safetensors", emoji_factors(8, blocks=1))
    os.utime(roots / "otter.safetensors", ns=(1, 1))  # same bytes, another time
    report = library.scan({"loras": roots})
    assert (report.added, report.changed, report.unchanged) == (1, 1, 2)
    assert len(encoded) == 5 and report.shared == 1


def test_move_keeps_vectors_and_copy_shares_them(library, roots, encoded):
    library.scan({"loras": roots})
    vectors = library.module_features("emoji")
    (roots / "animals").mkdir()
    os.rename(roots / "otter.safetensors", roots / "animals" / "lutra.safetensors")
    shutil.copyfile(roots / "fox.safetensors", roots / "fox copy.safetensors")
    report = library.scan({"loras": roots})
    assert (report.renamed, report.added, report.missing) == (1, 1, 0)
    assert len(encoded) == 3 and report.shared == 2
    assert "otter.safetensors" not in names(library, include_missing=True)
    assert library.module_features("emoji").keys() == vectors.keys()
    [group] = library.exact_copies()
    assert [entry.name for entry in group] == ["fox copy.safetensors", "fox.safetensors"]


def test_vanished_file_is_kept_marked_and_comes_back(library, roots, encoded):
    library.scan({"loras": roots})
    os.rename(roots / "fox.safetensors", roots.parent / "aside")
    report = library.scan({"loras": roots})
    assert report.missing == 1
    assert "fox.safetensors" not in names(library) and "fox.safetensors" in names(library, include_missing=True)
    os.rename(roots.parent / "aside", roots / "fox.safetensors")
    report = library.scan({"loras": roots})
    assert (report.returned, report.missing, report.bytes_read) == (1, 0, 0)
    assert "fox.safetensors" in names(library) and len(encoded) == 3


def test_offline_root_keeps_everything_even_when_copied_elsewhere(library, roots, tmp_path, encoded):
    other = tmp_path / "other"
    other.mkdir()
    report = library.scan({"a": roots, "b": other, "never": tmp_path / "never"})
    assert report.offline == []  # ComfyUI lists folders that nobody made
    os.rename(roots, tmp_path / "unplugged")
    shutil.copyfile(tmp_path / "unplugged" / "fox.safetensors", other / "fox2.safetensors")
    report = library.scan({"a": roots, "b": other})
    assert report.offline == [str(roots)] and report.missing == 3 and report.renamed == 0
    assert len(names(library, include_missing=True)) == 4 and names(library) == ["fox2.safetensors"]
    os.rename(tmp_path / "unplugged", roots)
    report = library.scan({"a": roots, "b": other})
    assert report.returned == 3 and len(names(library)) == 4 and len(encoded) == 3


def test_only_the_scope_is_touched(library, roots):
    library.scan({"loras": roots})
    os.remove(roots / "fox.safetensors")
    report = library.scan(Scope.of({"loras": roots}, under="styles"))
    assert (report.files, report.missing) == (1, 0)  # the fox is outside the scope, so nothing is said of it
    view = library.view(Scope.of({"loras": roots}, names="-fox"))
    assert names(view) == ["otter.safetensors", os.path.join("styles", "ink.safetensors")]
    handle = json.loads(json.dumps(library.view(Scope.of({"loras": roots}, under="styles")).handle))
    with Library.from_handle(handle) as opened:
        assert names(opened) == [os.path.join("styles", "ink.safetensors")]


def test_bad_handles_are_refused(tmp_path):
    for bad in (None, "x", {}, {"format": "other"}):
        with pytest.raises(LibraryError, match="not a LoRA index"):
            Library.from_handle(bad)
    with pytest.raises(LibraryError, match="not there any more"):
        Library.from_handle({"format": "autolora-index/1", "folder": str(tmp_path / "no"), "roots": {}})
    assert not (tmp_path / "no").exists()


def test_same_name_in_two_roots_shows_the_one_comfyui_loads(library, roots, tmp_path):
    second = tmp_path / "second"
    write_lora(second / "fox.safetensors", emoji_factors(7, blocks=1))
    library.scan({"a": roots, "b": second})
    [fox] = [entry for entry in library.entries() if entry.name == "fox.safetensors"]
    assert fox.root == str(roots)
    assert len(library.entries(include_shadowed=True)) == 4
    os.remove(roots / "fox.safetensors")
    library.scan({"a": roots, "b": second})
    [fox] = [entry for entry in library.entries() if entry.name == "fox.safetensors"]
    assert fox.root == str(second)


def test_force_reads_everything_again(library, roots, encoded):
    library.scan({"loras": roots})
    report = library.scan({"loras": roots}, force=True)
    assert report.unchanged == 3 and report.bytes_read > 0 and len(encoded) == 6


def test_new_sidecar_changes_words_without_reading_weights(library, roots, encoded):
    library.scan({"loras": roots})
    (roots / "fox.civitai.info").write_text(json.dumps({"model": {"name": "Red Fox"}, "trainedWords": ["vlps"]}))
    library.scan({"loras": roots})
    fox = library.entries()[0]
    assert (fox.text.title, fox.text.triggers) == ("Red Fox", ("vlps",)) and len(encoded) == 3


def test_lora_folders_are_never_written_to(library, roots):
    (roots / "fox.civitai.info").write_text("{broken")
    for path in [roots, *roots.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(roots)
    library.scan({"loras": roots})
    library.scan({"loras": roots}, force=True)
    library.compare_duplicates("emoji")
    assert snapshot(roots) == before
    for path in [roots, *roots.rglob("*")]:
        path.chmod(0o755)


class Interrupt(Exception):
    """Stands for ComfyUI's own interrupt."""


def test_interrupt_keeps_what_was_done(library, roots):
    def interrupt(done: int, total: int, name: str) -> None:
        if done == 2:
            raise Interrupt

    with pytest.raises(Interrupt):
        library.scan({"loras": roots}, progress=interrupt)
    assert len(names(library)) == 2
    report = library.scan({"loras": roots})
    assert (report.unchanged, report.added) == (2, 1)


def test_stop_marks_nothing_missing(library, roots):
    library.scan({"loras": roots})
    os.remove(roots / "otter.safetensors")
    report = library.scan({"loras": roots}, should_stop=lambda: True)
    assert report.stopped and len(names(library)) == 3


def test_newer_library_is_refused(tmp_path):
    with Library.open(tmp_path) as opened:
        opened.store.db.execute("PRAGMA user_version = 99")
    with pytest.raises(LibraryVersionError, match="99.*library.sqlite"):
        Library.open(tmp_path)


def test_damaged_database_is_named(tmp_path):
    (tmp_path / "library.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(LibraryError, match=r"library\.sqlite.*What to do"):
        Library.open(tmp_path)


def test_folder_state_changes_exactly_when_a_scan_would(roots):
    scope = Scope.of({"loras": roots})
    states = [folder_state(scope)]
    assert folder_state(scope) == states[0] and folder_state(scope, "x") != states[0]
    write_lora(roots / "new.safetensors", emoji_factors(9, blocks=1))
    states.append(folder_state(scope))
    (roots / "new.civitai.info").write_text("{}")
    states.append(folder_state(scope))
    (roots / "unrelated.log").write_text("x")
    assert folder_state(scope) == states[-1]
    os.utime(roots / "fox.safetensors", ns=(5, 5))
    states.append(folder_state(scope))
    assert len(set(states)) == 4


def hostile_files(root: Path) -> dict[str, bytes]:
    good = (root / "fox.safetensors").read_bytes()
    return {
        "lfs pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n",
        "page.safetensors": b"<!DOCTYPE html><html>404</html>",
        "pickle.safetensors": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix.",
        "truncated.safetensors": good[: len(good) // 2],
        "lying.safetensors": (2**40).to_bytes(8, "little") + b"{}",
        "empty.safetensors": b"",
        "n" * 240 + ".safetensors": good[:100],
        "old.pt": b"\x80\x04pickle",
    }


def test_hostile_files_become_rows_and_the_scan_goes_on(library, roots):
    hostile = hostile_files(roots)
    for name, content in hostile.items():
        (roots / name).write_bytes(content)
    factors = emoji_factors(5, blocks=1)
    factors["joint_blocks.0.x_block.mlp.fc1"][1][0, 0] = float("nan")
    write_lora(roots / "nan.safetensors", factors, dtype=torch.float32)
    write_lora(roots / "zero.safetensors", {name: (down, up * 0) for name, (down, up) in emoji_factors(6).items()})
    os.mkdir(roots / "folder.safetensors")
    os.mkfifo(roots / "pipe.safetensors")
    os.symlink(roots, roots / "styles" / "loop")
    os.symlink(roots / "nowhere", roots / "dangling.safetensors")
    report = library.scan({"loras": roots})
    entries = {entry.name: entry for entry in library.entries()}
    for name in [*hostile, "pipe.safetensors", "dangling.safetensors", "nan.safetensors", "zero.safetensors"]:
        assert entries[name].problems, name
    assert entries["zero.safetensors"].kind == "all_zero"
    assert "folder.safetensors" not in entries
    assert [path for path, why in report.problems if "leads back" in why] == [str(roots / "styles" / "loop")]
    assert {name for name, entry in entries.items() if entry.kind == "lora"} >= {"fox.safetensors", "otter.safetensors"}
    assert entries["old.pt"].hash == "" and "pickle" in entries["old.pt"].problems[0]
    again = library.scan({"loras": roots})
    assert again.bytes_read == 0 and again.files == report.files


def test_names_that_are_not_utf8_survive(library, roots):
    name = os.fsdecode(b"caf\xe9 \xff.safetensors")
    try:
        shutil.copyfile(roots / "fox.safetensors", roots / name)
    except OSError:  # the file system refuses such names, so none can occur
        return
    library.scan({"loras": roots})
    [entry] = [entry for entry in library.entries() if entry.name == name]
    assert os.path.samefile(entry.path, roots / name) and entry.family == "emoji"
    assert json.loads(json.dumps(entry.path)) == entry.path


def test_a_file_still_being_written_is_left_for_later(library, roots, monkeypatch):
    path = roots / "fox.safetensors"

    def grow(done: int, total: int, name: str) -> None:
        if done == 0:
            with open(path, "ab") as stream:
                stream.write(b"more")

    library.scan({"loras": roots}, progress=grow)
    [fox] = [entry for entry in library.entries() if entry.name == "fox.safetensors"]
    assert fox.hash == "" and "written" in fox.problems[0]
    path.write_bytes(path.read_bytes()[:-4])
    library.scan({"loras": roots})
    assert library.entries()[0].family == "emoji"


@pytest.mark.parametrize("path", real_loras(), ids=lambda path: path.stem)
def test_real_files(library, path, tmp_path):
    root = tmp_path / "real"
    root.mkdir()
    shutil.copyfile(path, root / path.name)
    expected = {entry["file"]: entry for entry in json.loads((path.parent / "index.json").read_text())}[path.name]
    library.scan({"real": root})
    [entry] = library.entries()
    assert (entry.hash, entry.size) == (expected["sha256"], expected["bytes"])
    assert entry.kind == ("text_encoder_only" if "text_encoder_only" in path.name else "lora")
    assert entry.family == "sd15" or entry.kind == "text_encoder_only"
    if entry.kind == "lora":
        features = library.module_features("sd15")[entry.hash]
        layers = {layer_of(name) for name in (*features.modules, *features.skipped)}
        assert layers == sampled("sd15", [name for name, _, _ in library.modules(entry.hash)])
        assert len(features.modules) > 15


def test_a_library_made_anew_shows_nothing_of_the_old_one(roots, tmp_path):
    with Library.open(tmp_path / "library") as first:
        first.scan([roots])
        old = first.generation, names(first)
    shutil.rmtree(tmp_path / "library")
    (roots / "fox.safetensors").unlink()
    with Library.open(tmp_path / "library") as second:
        second.scan([roots])
        assert second.generation != old[0] and names(second) == [name for name in old[1] if name != "fox.safetensors"]
