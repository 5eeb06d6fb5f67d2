"""Proves that a library's name is one folder name on every system, or is refused with the reason."""

from __future__ import annotations

import unicodedata

import pytest

from autolora_core.errors import LibraryError
from autolora_core.library.folders import library_folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [("my index", "my index"), ("", "default"), ("  ", "default"), (" fox ", "fox"), ("v1.2-b", "v1.2-b"),
     ("console", "console"), ("com10", "com10"), ("nullity.old", "nullity.old"), ("Zoë", "Zoë"), ("図書館", "図書館")],
)  # fmt: skip
def test_plain_names(tmp_path, name, expected):
    assert library_folder(name, tmp_path) == tmp_path / "autolora" / expected
    assert list(tmp_path.iterdir()) == [], "asking makes no folder"


@pytest.mark.parametrize(
    "name",
    ["CON", "con", "Prn", "AUX", "nul", "NUL.txt", "nul.tar.gz", "Com1", "lpt9", "COM0", "com¹", "lpt³.x", "aux .old"],
)
def test_names_that_windows_keeps_for_devices(tmp_path, name):
    with pytest.raises(LibraryError, match="Windows keeps this name.*What to do"):
        library_folder(name, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../up",
        "a/b",
        "a\\b",
        ".",
        "..",
        ".hidden",
        "x" * 65,
        "a:b",
        "nul\0",
        "end.",
        "end. ",
        "end...",
        "a*",
        "a?",
        "a|b",
    ],
)
def test_names_that_are_no_folder_name(tmp_path, name):
    with pytest.raises(LibraryError, match="library name"):
        library_folder(name, tmp_path)


def test_capitals_make_no_second_library(tmp_path):
    (tmp_path / "autolora" / "Anime").mkdir(parents=True)
    (tmp_path / "autolora" / "straße").mkdir()
    for name in ("anime", "ANIME", "Anime"):
        assert library_folder(name, tmp_path).name == "Anime"
    assert library_folder("STRASSE", tmp_path).name == "straße"
    assert library_folder("animes", tmp_path).name == "animes"


def test_two_libraries_that_are_there_keep_their_own_names(tmp_path):
    """Made on Linux by an earlier version: neither is lost."""
    for name in ("anime", "Anime"):
        (tmp_path / "autolora" / name).mkdir(parents=True, exist_ok=True)
    if len(list((tmp_path / "autolora").iterdir())) == 2:  # not so where capitals make no difference
        assert [library_folder(name, tmp_path).name for name in ("anime", "Anime")] == ["anime", "Anime"]
    assert library_folder("ANIME", tmp_path).name == "Anime"


def test_accents_may_be_stored_in_two_ways(tmp_path):
    apart, together = (unicodedata.normalize(form, "Zoë") for form in ("NFD", "NFC"))
    assert apart != together and library_folder(apart, tmp_path).name == together
    (tmp_path / "autolora" / apart).mkdir(parents=True)
    assert library_folder(together, tmp_path).is_dir()


def test_a_file_of_that_name_is_not_taken_for_the_library(tmp_path):
    (tmp_path / "autolora").mkdir()
    (tmp_path / "autolora" / "NOTES").write_text("x")
    assert library_folder("notes", tmp_path).name == "notes"
