"""Proves that names and paths mean the same file on every system: separators, case, marks of letters, devices, lengths.

What needs another disk is simulated: a link stands for another spelling of one file on a disk that does not tell case.
"""

from __future__ import annotations

import os
import unicodedata

import pytest
import torch
from apply_world import sd3_fixtures
from comfy_local import pack_module
from conftest import emoji_factors, write_lora
from retrieve_worlds import digest

from autolora_core import portable
from autolora_core.encode.towers import LexicalTower
from autolora_core.errors import FileFormatError, LibraryError, SelectionError
from autolora_core.fusion.file_names import find_names
from autolora_core.fusion.merged.naming import merged_path
from autolora_core.fusion.training.outcome import gate_path
from autolora_core.library.folders import library_folder
from autolora_core.library.index import Library
from autolora_core.library.walk import Scope, walk
from autolora_core.lora.header import read_header
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.view import MemoryView, ViewEntry
from autolora_core.train.own import encoder_file

state, world = sd3_fixtures(64)
NFC = unicodedata.normalize("NFC", "Zoë.safetensors")
NFD = unicodedata.normalize("NFD", NFC)
DEVICES = ("con", "NUL", "aux.v1", "Com1", "lpt9.old", "prn ")
BAD_SIGNS = ("a<b", "a>b", 'a"b', "a|b", "a?b", "a*b")


def test_two_spellings_of_one_file_are_one_lora(world) -> None:
    """On a disk that does not tell case, ``Otter`` and ``otter`` are one file: strengths add, as for one name twice."""
    world.lora("Otter.safetensors", seed=1)
    os.link(world.loras / "Otter.safetensors", world.loras / "otter.safetensors")
    _, _, report = world.apply(("Otter.safetensors", 0.5), ("otter.safetensors", 0.25))
    assert "named 2 times" in report and "× 0.75" in report
    world.lora("other.safetensors", seed=2)
    _, _, report = world.apply(("Otter.safetensors", 0.5), ("other.safetensors", 0.25))
    assert "named 2 times" not in report


@pytest.mark.parametrize("stored", [NFC, NFD], ids=["NFC", "NFD"])
@pytest.mark.parametrize("asked", [NFC, NFD, NFC.upper(), "sub\\" + NFD], ids=["NFC", "NFD", "case", "backslash"])
def test_letters_with_marks_are_found_however_they_are_stored(world, stored, asked) -> None:
    world.lora("sub/" + stored, seed=1)
    _, _, report = world.apply((asked, 1.0))
    assert " × 1 (stack)" in report


def test_names_of_another_system_are_found_in_lists(monkeypatch) -> None:
    assert find_names("style\\" + NFD, ["style/" + NFC, NFC]) == ["style/" + NFC]
    assert find_names("style/" + NFC, ["style\\" + NFD]) == ["style\\" + NFD]


def test_pinned_and_banned_names_from_another_system() -> None:
    view = MemoryView([ViewEntry("sub\\" + NFD, digest("1")), ViewEntry("sub\\ink.safetensors", digest("2"))])

    def ask(**wishes):
        return retrieve(view, "x", family="emoji", tower=LexicalTower(), threshold=0.0, **wishes)

    assert [pick.hash for pick in ask(pinned=["sub/" + NFC], top_k=1).picks] == [digest("1")]
    banned = ask(banned=["SUB/*"])
    assert not banned.picks and not banned.misses
    same = MemoryView([ViewEntry("Ink.safetensors", digest("a")), ViewEntry("ink.safetensors", digest("b"))])
    for name, expected in (("Ink.safetensors", "a"), ("ink.safetensors", "b")):  # two files, on a disk that tells case
        picked = retrieve(same, "x", family="emoji", tower=LexicalTower(), pinned=[name], top_k=1).picks
        assert [pick.hash for pick in picked] == [digest(expected)]
    with pytest.raises(SelectionError, match="ambiguous"):
        retrieve(same, "x", family="emoji", tower=LexicalTower(), pinned=["INK"])


def test_an_index_made_on_windows_is_read_elsewhere(world, tmp_path) -> None:
    """Its names have backslashes; the files lie where this system's loras folder says."""
    name = world.lora("styles/ink.safetensors", seed=1).replace("/", "\\")
    pick = {"name": name, "hash": "", "path": "D:\\ComfyUI\\models\\loras\\styles\\ink.safetensors", "strength": 1.0}
    selection = {"format": "autolora-selection/1", "picks": [pick]}
    _, _, report = world.apply(selection=selection)
    assert "ink.safetensors × 1 (selection)" in report


def test_a_filter_of_an_index_takes_either_separator(tmp_path) -> None:
    for under in ("a/b", "a\\b"):
        wanted = Scope.of({"loras": tmp_path}, under, "").predicate()
        assert wanted("a/b/x.safetensors") and wanted("a\\b\\x.safetensors") and not wanted("a/bc/x.safetensors")


@pytest.mark.parametrize("name", [*DEVICES, *BAD_SIGNS, "dots.", "tab\tin it"])
def test_names_that_windows_does_not_take(name, tmp_path) -> None:
    assert portable.why_not_a_name(name)
    with pytest.raises(LibraryError):
        library_folder(name.strip() + ("x." if name == "tab\tin it" else ""), tmp_path)
    for path in (gate_path(tmp_path, "sd3", name), encoder_file(tmp_path, "sd3", "mine", name)):
        assert portable.why_not_a_name(path.name) is None and path.parent == tmp_path
        path.write_bytes(b"")


@pytest.mark.parametrize("name", ["con", "sub/nul", "aux/mix", "a?b", "a|b/mix", "x*"])
def test_a_merged_lora_gets_no_name_that_windows_does_not_take(name, tmp_path) -> None:
    with pytest.raises(SelectionError, match="on every system"):
        merged_path(tmp_path, name)


def test_a_merged_lora_may_lie_in_a_folder_that_is_there(tmp_path) -> None:
    (tmp_path / "what?").mkdir()
    assert merged_path(tmp_path, "what?/mix") == tmp_path / "what?" / "mix.safetensors"


@pytest.mark.parametrize("name", ["水彩", "mix v1.5", "Zoë", ".hidden", "console", "nullify", "a-b_c"])
def test_names_that_every_system_takes(name, tmp_path) -> None:
    assert portable.why_not_a_name(name) is None
    assert merged_path(tmp_path, name).name == f"{name}.safetensors"


def test_names_are_cut_by_bytes_between_letters(tmp_path) -> None:
    for path in (gate_path(tmp_path, "sd3", "水" * 200), encoder_file(tmp_path, "sd3", "mine", "水" * 200)):
        assert len(path.name.encode("utf-8")) < 255 and "�" not in path.name
        portable.write_bytes(path, b"x")


def test_a_file_with_the_longest_name_a_disk_takes_is_replaced(tmp_path) -> None:
    """The temporary file beside it must not have a longer one."""
    path = tmp_path / ("x" * 243 + ".safetensors")
    portable.write_bytes(path, b"old")
    portable.write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_a_library_in_a_deep_folder(tmp_path) -> None:
    deep = tmp_path
    for _ in range(12):
        deep = deep / ("folder" * 6)
    write_lora(deep / "loras" / "otter.safetensors", emoji_factors(1, blocks=1))
    assert len(str(deep)) > 400
    with Library.open(deep.parents[5] / "library") as library:
        assert len(str(library.folder)) > 230
        library.scan({"loras": deep / "loras"})
        library.fit(LexicalTower())
        assert [entry.name for entry in library.entries()] == ["otter.safetensors"]
    with pytest.raises(LibraryError, match="characters, more than SQLite takes.*--user-directory"):
        Library.open(deep / "library")


LONG = "C:\\" + "\\".join(["folder"] * 45) + "\\a.safetensors"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("C:\\short\\a.safetensors", "C:\\short\\a.safetensors"),
        (LONG, "\\\\?\\" + LONG),
        (LONG.replace("\\", "/"), "\\\\?\\" + LONG),
        ("\\\\?\\" + LONG, "\\\\?\\" + LONG),
        ("\\\\nas\\share\\" + LONG[3:], "\\\\?\\UNC\\nas\\share\\" + LONG[3:]),
        (LONG[3:], LONG[3:]),  # a relative path stays: the prefix is for whole ones
    ],
)
def test_long_paths_are_opened_with_a_prefix_on_windows(path, expected, monkeypatch) -> None:
    monkeypatch.setattr(portable, "WINDOWS", True)
    assert portable.openable(path) == expected
    monkeypatch.setattr(portable, "WINDOWS", False)
    assert portable.openable(path) == path


def test_files_are_opened_by_that_path_and_told_by_their_own(tmp_path, monkeypatch) -> None:
    """``openable`` stands for the prefix here: it leads elsewhere, and what is stored does not."""
    write_lora(tmp_path / "real" / "a.safetensors", emoji_factors(1, blocks=1))

    def elsewhere(path):
        return os.fspath(path).replace("long", "real")

    for module in ("lora.header", "library.walk", "library.metadata"):
        monkeypatch.setattr(f"autolora_core.{module}.openable", elsewhere)
    header = read_header(tmp_path / "long" / "a.safetensors")
    assert header.path == str(tmp_path / "long" / "a.safetensors")
    [found] = walk(str(tmp_path / "long"), lambda name: True, lambda path, why: pytest.fail(why))
    assert (found.name, found.path) == ("a.safetensors", str(tmp_path / "long" / "a.safetensors"))
    with pytest.raises(FileFormatError, match="long"):
        read_header(tmp_path / "long" / "b.safetensors")


def test_a_listing_that_lags_behind_is_no_writer(tmp_path, monkeypatch) -> None:
    """Windows tells size and time of a file from a copy in its folder, which may be old."""
    path = write_lora(tmp_path / "loras" / "a.safetensors", emoji_factors(1, blocks=1))
    [found] = walk(str(path.parent), lambda name: True, lambda path, why: None)
    os.utime(path, ns=(1, 1))
    now = os.stat(path)
    assert not found.steady(now, now)
    monkeypatch.setattr(portable, "WINDOWS", True)
    assert found.steady(now, now)
    with path.open("ab") as stream:
        stream.write(b"more")
    assert not found.steady(now, os.stat(path))


def test_nothing_of_ours_makes_links(world, monkeypatch, tmp_path) -> None:
    """Windows gives the right to make symbolic links to administrators only."""
    monkeypatch.setattr(os, "symlink", lambda *paths, **how: pytest.fail("a symbolic link was made"))
    world.lora("a.safetensors", seed=1)
    with Library.open(tmp_path / "library") as library:
        library.scan({"loras": world.loras})
        library.fit(LexicalTower())
    world.apply(("a.safetensors", 1.0))
    pack_module("autolora_core.fusion.files").replace_file(tmp_path / "g.safetensors", {"x": torch.zeros(1)}, {})
