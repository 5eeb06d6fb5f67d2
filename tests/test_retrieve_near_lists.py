"""Proves that neighbours read off kept lists are those that a search finds, whatever came and went since the lists were
made, and that a list that is damaged, cut short or of another state is not believed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from retrieve_worlds import TopicTower, digest

from autolora_core.library.array_file import open_arrays, said_of, save_arrays
from autolora_core.library.grid import Grid
from autolora_core.library.table import Table
from autolora_core.retrieve import near_lists, neighbours
from autolora_core.retrieve.near_lists import NearLists, shortened
from autolora_core.retrieve.prepare import prepare
from autolora_core.retrieve.view import MemoryView, ViewEntry, ViewText

COUNT, WIDTH = 260, 96


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A library of some hundred files is treated as a large one."""
    monkeypatch.setattr(neighbours, "LISTED_FROM", 0)
    monkeypatch.setattr(neighbours, "SAMPLED", 40)
    monkeypatch.setattr(neighbours, "LISTED_BLOCK", 32)


def world(folder, numbers, silent=3) -> MemoryView:
    """Files in families of seven that are more or less alike, some of them copies; every ``silent``-th has no words."""
    entries, rows = [], {}
    for i in numbers:
        rng = np.random.default_rng(i)
        head = np.random.default_rng(10_000 + i // 7).standard_normal(WIDTH)
        rows[digest(f"{i}")] = head + (0 if i % 11 == 0 else 0.3 + i % 5) * rng.standard_normal(WIDTH)
        text = ViewText() if i % silent == 0 else ViewText(title=f"thing {i}")
        entries.append(ViewEntry(f"{i}.safetensors", digest(f"{i}"), text=text))
    hashes = tuple(sorted(rows))
    grid = Grid("emoji", hashes, np.stack([rows[one] for one in hashes]).astype(np.float32))
    return MemoryView(entries, grids={"emoji": grid}, folder=folder)


def ready(view):
    return prepare(view, "emoji", TopicTower(), use_text=False).neighbourhood


def everything(found):
    return found.nearest(range(len(found.entries)))


def all_true(lists: NearLists, found) -> None:
    """Every list has exactly the rows with words that are ``down_to`` near."""
    unit = found.grid.rows.astype(np.float64) / np.linalg.norm(found.grid.rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    cosines[:, ~found._worded] = -2
    for row, low in enumerate(lists.down_to):
        mine = lists.rows[lists.starts[row] : lists.starts[row + 1]]
        assert {*np.flatnonzero(cosines[row] >= low + 1e-6)} <= {*mine.tolist()}
        assert (cosines[row, mine] >= low - 1e-6).all() or np.isinf(low)


def test_lists_tell_what_a_search_finds_and_nothing_is_searched(tmp_path, monkeypatch):
    view = world(tmp_path, range(COUNT))
    searched = everything(ready(view))
    assert sum(map(bool, searched)) > COUNT / 4
    ready(view).keep_lists()
    found = ready(view)
    all_true(found._lists, found)
    assert not len(found._lists.unknown)
    assert found._lists.complete
    monkeypatch.setattr(Table, "bounds", None)  # a search would fail
    monkeypatch.setattr(neighbours, "_spreads", None)  # and working out what is usual
    assert everything(found) == searched


def test_what_came_and_went_is_brought_up_to_date_without_comparing_all_again(tmp_path, monkeypatch):
    ready(world(tmp_path, range(COUNT))).keep_lists()
    later = world(tmp_path, [*range(9, COUNT), *range(1000, 1020)], silent=4)  # others are silent now, too
    fresh = everything(ready(world(None, [*range(9, COUNT), *range(1000, 1020)], silent=4)))
    found = ready(later)
    assert found._lists is None, "it is of another state"
    anew = []
    monkeypatch.setattr(
        neighbours.Neighbourhood, "_all_near",
        lambda self, rows, whole=neighbours.Neighbourhood._all_near: anew.extend(rows) or whole(self, rows),
    )  # fmt: skip
    found.keep_lists()
    assert {found.grid.hashes[row] for row in anew} == {digest(f"{i}") for i in range(1000, 1020)}
    opened = ready(later)
    all_true(opened._lists, opened)
    assert everything(opened) == fresh and any(fresh)


def test_of_long_lists_the_nearest_stay_and_nothing_more_is_promised(tmp_path, monkeypatch):
    monkeypatch.setattr(near_lists, "MOST", 3)
    view = world(tmp_path, range(COUNT))
    searched = everything(ready(view))
    ready(view).keep_lists()
    found = ready(view)
    all_true(found._lists, found)
    assert np.diff(found._lists.starts).max() == 3
    assert everything(found) == searched  # where a list may be too short it is searched


def test_equals_at_the_end_of_a_list_are_all_in_or_all_out(monkeypatch):
    monkeypatch.setattr(near_lists, "MOST", 3)
    rows, low = shortened(np.arange(5), np.array([0.5, 0.9, 0.5, 0.8, 0.5]), 0.1)
    assert rows.tolist() == [1, 3] and 0.5 < low < 0.8


def test_an_interruption_keeps_what_was_done(tmp_path):
    view = world(tmp_path, range(COUNT))
    searched = everything(ready(view))

    def stop(done, total):
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ready(view).keep_lists(stop)
    found = ready(view)
    assert len(found._lists.unknown) == COUNT - 64
    assert everything(found) == searched
    found.keep_lists()
    assert ready(view)._lists.complete


@pytest.mark.parametrize("harm", ["bit", "cut", "other"])
def test_a_damaged_file_is_not_believed_and_made_again(tmp_path, harm):
    view = world(tmp_path, range(COUNT))
    ready(view).keep_lists()
    (path,) = tmp_path.glob("near-*.arrays")
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes({"bit": data, "cut": path.read_bytes()[:-50], "other": b"something else"}[harm])
    assert ready(view)._lists is None
    ready(view).keep_lists()
    assert ready(view)._lists is not None


def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path):
    """Sound to its checksums, but written by somebody else."""
    view = world(tmp_path, range(COUNT))
    ready(view).keep_lists()
    (path,) = tmp_path.glob("near-*.arrays")
    kind = said_of(path)["rows"]
    lists = NearLists.open(path, kind)
    for rows in (lists.rows + COUNT, lists.rows - COUNT, lists.rows[1:]):
        replace(lists, rows=rows).save(path, kind)
        assert NearLists.open(path, kind) is None
    said, arrays = open_arrays(path)
    for wrong in ({**arrays, "rows": arrays["rows"].astype(float)}, {k: v for k, v in arrays.items() if k != "usual"}):
        save_arrays(path, said, wrong)
        assert NearLists.open(path, kind) is None
    lists.save(path, kind)
    assert NearLists.open(path, kind) is not None and NearLists.open(path, "other rows") is None
