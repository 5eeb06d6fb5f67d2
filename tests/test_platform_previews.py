"""Proves, on a disk that refuses as Windows does, that one picture that is open in a viewer does not end a run of
previews: its LoRA is named, the others are rendered, and the next run makes it up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image
from test_previews import KEYS, SETTINGS, WANTED, Painter
from windows_disk import make_windows_disk

from autolora_core import portable
from autolora_core.errors import NotWrittenError
from autolora_core.previews.run import WITHOUT, render
from autolora_core.previews.shelf import PreviewShelf, without_key
from autolora_core.previews.words import preview_report

OTHER = replace(SETTINGS, strength=0.5)
NAMES = [lora.name for lora in WANTED]


@pytest.fixture
def shelf(monkeypatch, tmp_path) -> PreviewShelf:
    """Four LoRAs rendered with ``SETTINGS``, two pictures each; the disk is Windows' from now on."""
    made = PreviewShelf(tmp_path)
    render(made, SETTINGS, WANTED, Painter(), kept=2)
    monkeypatch.setattr(portable, "WINDOWS", True)
    monkeypatch.setattr(portable, "WAITS", (0.001, 0.001, 0.001))
    make_windows_disk(monkeypatch)
    return made


def test_a_picture_in_a_viewer_is_named_and_the_next_run_makes_it_up(shelf):
    told = []
    with open(shelf.picture(KEYS[1]), "rb"):
        found = render(shelf, OTHER, WANTED, Painter(), tick=lambda done, total, name: told.append((done, name)))
    assert list(found.rendered) == [NAMES[0], *NAMES[2:]] and found.in_use == [NAMES[1]] == list(found.failed)
    report = preview_report(found, OTHER, ())
    assert f"- {NAMES[1]}: {KEYS[1]}.webp: the file cannot be replaced" in report and "close it there" in report
    assert sorted(told) == told, "the bar runs back"
    assert list(shelf.rendered()) == [KEYS[0], *KEYS[2:]], "it counts as rendered"
    again = render(shelf, OTHER, WANTED, Painter())
    assert list(again.rendered) == [NAMES[1]] and len(again.there) == 3 and not again.failed and not again.in_use


def test_the_run_goes_on_beyond_one_that_a_limit_would_have_counted(shelf):
    with open(shelf.picture(KEYS[0]), "rb"):
        found = render(shelf, OTHER, WANTED, Painter(), limit=1)
    assert (list(found.rendered), found.in_use, found.left) == ([NAMES[1]], [NAMES[0]], 2)


def test_an_older_second_picture_that_is_held_is_not_taken_for_a_new_one(shelf):
    second = shelf.picture(KEYS[2], 2)
    with open(second, "rb"):
        found = render(shelf, OTHER, WANTED, Painter(), kept=1)
    assert found.in_use == [NAMES[2]] and second.name in found.failed[NAMES[2]]
    assert not shelf.holds(KEYS[2], OTHER.id, 2) and shelf.holds(KEYS[2], SETTINGS.id, 1) is False


def test_the_pictures_without_a_lora_in_a_viewer(shelf):
    key = without_key(SETTINGS.without)
    shelf.picture(key, 2).unlink()  # one more is wanted than is there
    with open(shelf.picture(key), "rb"):
        found = render(shelf, OTHER, WANTED, Painter(), kept=2)
    assert list(found.rendered) == NAMES and list(found.failed) == found.in_use == [WITHOUT]
    again = Painter()
    render(shelf, replace(OTHER, strength=0.7), WANTED[:1], again, kept=2)
    assert again.taken == 2 + 2 and len(shelf.pictures(key)) == 2, "they are made up"


def test_a_full_disk_still_ends_the_run(shelf, monkeypatch):
    def full(path, data):
        raise portable.not_written(path, OSError(28, "No space left on device"))

    monkeypatch.setattr("autolora_core.previews.shelf.write_bytes", full)
    with pytest.raises(NotWrittenError, match="make room"):
        render(shelf, OTHER, WANTED, Painter())


def test_a_record_that_is_held_stays_that_of_the_older_settings(shelf):
    record = shelf.folder / f"{KEYS[3]}.safetensors"
    with open(record, "rb"):
        found = render(shelf, OTHER, WANTED, Painter())
    assert found.in_use == [NAMES[3]] and not shelf.holds(KEYS[3], OTHER.id, 1)
    assert shelf.record(KEYS[3]).settings == SETTINGS.id
    with Image.open(shelf.picture(KEYS[3])) as picture:
        picture.load()  # whole
    assert list(render(shelf, OTHER, WANTED, Painter()).rendered) == [NAMES[3]]
