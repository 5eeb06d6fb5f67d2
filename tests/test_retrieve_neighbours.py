"""Proves that a pick says whose weights it is nearest to, that only what stands out is said, and that nothing but the
weights decides it: not the order of the files, not an encoder, and no file is opened for it."""

from __future__ import annotations

import json

import numpy as np
from encode_worlds import FakeUpdate
from retrieve_worlds import TopicTower, digest
from similar_files import dense, drifted, made, mixed, summed

from autolora_core.encode.features import module_features, size_for
from autolora_core.library.grid import Grid, row_of
from autolora_core.library.index import Library
from autolora_core.lora.file import LoraFile
from autolora_core.retrieve.neighbours import LEAST_DEVIATION, MOST, STANDS_OUT
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.selection import Neighbour, Selection
from autolora_core.retrieve.view import MemoryView, ViewEntry, ViewText

SHAPES = {f"blocks.{i}.mlp": (64, 48) for i in range(12)}


def row(factors) -> np.ndarray:
    updates = [FakeUpdate(name, down=down, up=up) for name, (down, up) in factors.items()]
    return row_of(module_features(updates, size_for("emoji")), "emoji")


def exact(one, other) -> float:
    a, b = dense(one), dense(other)
    inner = sum(float((a[name] * b[name]).sum()) for name in a)
    norms = [sum(float((side[name] ** 2).sum()) for name in a) ** 0.5 for side in (a, b)]
    return inner / (norms[0] * norms[1])


def world(files: dict[str, tuple], strangers: int = 20) -> MemoryView:
    """``files``: name → (factors, :class:`ViewText`); strangers with words of their own beside them."""
    for i in range(strangers):
        files[f"stranger{i}"] = made(100 + i, shapes=SHAPES), ViewText(title=f"stranger{i}")
    entries = [ViewEntry(f"{name}.safetensors", digest(name), text=text) for name, (_, text) in files.items()]
    order = sorted(files, key=digest)
    rows = np.stack([row(files[name][0]) for name in order])
    return MemoryView(entries, grids={"emoji": Grid("emoji", tuple(digest(name) for name in order), rows)})


FOX = made(1, shapes=SHAPES)
STICKER = summed(FOX, 0.6, made(2, shapes=SHAPES), 0.8)


def foxes(**more) -> MemoryView:
    files = {
        "9a3f": (FOX, ViewText()),
        "plush": (mixed(drifted(FOX, 0.5)), ViewText(title="red fox plush", triggers=("rdfx",))),
        "sticker": (STICKER, ViewText(tags=("fox sticker",))),
        "silent": (drifted(FOX, 0.2), ViewText()),
    }
    return world({**files, **more})


def pinned(view: MemoryView, name: str, **how):
    selection = retrieve(view, "a picture of a bridge", tower=TopicTower(), pinned=[name], **how)
    return selection, selection.picks[0]


def test_a_pick_without_words_names_the_nearest_that_have_some():
    selection, pick = pinned(foxes(), "9a3f")
    assert [(near.name, near.words) for near in pick.neighbours] == [
        ("plush.safetensors", "red fox plush"), ("sticker.safetensors", "fox sticker")
    ]  # fmt: skip
    expected = [exact(FOX, mixed(drifted(FOX, 0.5))), exact(FOX, STICKER)]
    np.testing.assert_allclose([near.similarity for near in pick.neighbours], expected, atol=0.12)
    shown = " and ".join(f"“{near.words}” ({near.similarity:.2f})" for near in pick.neighbours)
    assert pick.reason == f"Pinned by you. No words of its own; its weights are nearest to {shown}."
    data = json.loads(json.dumps(selection.to_json()))
    assert data["picks"][0]["neighbours"][0].keys() == {"name", "words", "similarity"}
    assert Selection.from_json(data) == selection


def test_a_pick_with_words_is_compared_too():
    _, pick = pinned(foxes(), "plush")
    assert [near.words for near in pick.neighbours] == ["fox sticker"]
    assert " Its weights are nearest to “fox sticker” (0." in pick.reason and "No words of its own" not in pick.reason


def test_misses_have_neighbours_and_tell_of_them_only_where_they_have_no_words():
    selection = retrieve(foxes(), "a picture of stranger3", tower=TopicTower(), top_k=0)
    by_name = {miss.name: miss for miss in selection.misses}
    assert by_name["stranger3.safetensors"].neighbours == ()
    view = foxes()
    view.held = [entry for entry in view.held if not entry.name.startswith("stranger")]
    by_name = {m.name: m for m in retrieve(view, "bridge", tower=TopicTower(), threshold=1.0, top_k=3).misses}
    worded = by_name["plush.safetensors"]
    assert worded.neighbours and "nearest" not in worded.reason
    silent = by_name.get("9a3f.safetensors") or by_name["silent.safetensors"]
    assert silent.neighbours and "No words of its own; its weights are nearest to" in silent.reason


def test_strangers_are_not_neighbours():
    view = foxes()
    for name in ("stranger0", "stranger1", "stranger2"):
        _, pick = pinned(view, name)
        assert pick.neighbours == () and pick.reason == "Pinned by you."


def test_what_is_near_to_everything_is_nobodys_neighbour():
    """A hub, a bit of every stranger: seen from a stranger it stands out, seen from the hub the stranger does not."""
    hub = made(100, shapes=SHAPES)
    for i in range(1, 7):
        hub = summed(hub, 1.0, made(100 + i, shapes=SHAPES), 1.0)
    view = world({"hub": (hub, ViewText(title="everything"))}, strangers=7)
    grid = view.grid("emoji")
    one_sided = []
    for i in range(7):
        me, it = (grid.places[digest(name)] for name in (f"stranger{i}", "hub"))
        cosines = grid.cosines(grid.rows[me])
        others = np.delete(cosines, me)
        usual = max(1.4826 * np.median(np.abs(others - np.median(others))), LEAST_DEVIATION)
        one_sided.append((cosines[it] - np.median(others)) / usual >= STANDS_OUT)
        assert pinned(view, f"stranger{i}")[1].neighbours == ()
    assert any(one_sided)


def test_a_copy_with_words_is_named_however_small_the_library():
    """Its own file says nothing; the same bytes under another name do."""
    entries = [
        ViewEntry("a.safetensors", digest("x")),
        ViewEntry("b.safetensors", digest("x"), text=ViewText(title="heron")),
    ]
    _, pick = pinned(MemoryView(entries), "a")
    assert pick.neighbours == (Neighbour("b.safetensors", "heron", 1.0),)


def test_the_same_words_are_said_once_and_no_more_than_three():
    more = {f"more{i}": (drifted(FOX, 0.3, seed=20 + i), ViewText(title=f"fox {i // 2}")) for i in range(8)}
    _, pick = pinned(foxes(**more), "9a3f")
    assert len(pick.neighbours) == MOST and len({near.words for near in pick.neighbours}) == MOST
    assert [near.similarity for near in pick.neighbours] == sorted(
        (n.similarity for n in pick.neighbours), reverse=True
    )


def test_the_order_of_the_files_and_the_encoder_change_nothing():
    view, turned = foxes(), foxes()
    turned.held = turned.held[::-1]
    assert pinned(view, "9a3f")[1] == pinned(turned, "9a3f")[1]


def test_with_weights_switched_off_they_are_not_looked_at():
    view = foxes()
    view.grid = None  # any call would fail
    assert pinned(view, "9a3f", use_weights=False)[1].neighbours == ()


def test_a_few_lines_of_numpy_say_the_same():
    """Every pair of a world with families of LoRAs, by brute force over the whole matrix of cosines."""
    files = {}
    for i in range(6):
        for j in range(2):
            mix = summed(made(i, shapes=SHAPES), 1.0, made(50 + 2 * i + j, shapes=SHAPES), 0.4 + 0.3 * i)
            files[f"family{i}{j}"] = mix, ViewText(title=f"family {i}{j}")
    view = world(files)
    grid = view.grid("emoji")
    unit = grid.rows / np.linalg.norm(grid.rows, axis=1, keepdims=True)
    cosines = (unit @ unit.T).astype(np.float64)
    np.fill_diagonal(cosines, np.nan)
    middle = np.nanmedian(cosines, axis=1, keepdims=True)
    spread = np.maximum(1.4826 * np.nanmedian(np.abs(cosines - middle), axis=1, keepdims=True), 0.05)
    z = (cosines - middle) / spread
    both = np.minimum(z, z.T) >= STANDS_OUT
    assert 4 < both.sum() < 12, "some of the families stand out, the loosest do not"
    place = {entry.hash: entry for entry in view.held}
    for at, content in enumerate(grid.hashes):
        found = pinned(view, place[content].name)[1].neighbours
        expected = [i for i in np.argsort(-np.nan_to_num(cosines[at], nan=-1)) if both[at, i]][:MOST]
        assert [near.name for near in found] == [place[grid.hashes[i]].name for i in expected]
        np.testing.assert_allclose([near.similarity for near in found], cosines[at, expected], atol=1e-3)


def test_a_scanned_library_compares_without_opening_a_file(tiny_lora, tmp_path, monkeypatch):
    """From files to sentence; asked again in another order of files, the same comes out."""
    for seed in range(12):
        tiny_lora(f"thing{seed}.safetensors", seed, metadata={"modelspec.title": f"thing{seed}"}, blocks=1)
    tiny_lora("0012ab.safetensors", 3, blocks=1)
    tiny_lora("kept/0099ff.safetensors", 5, rank=2, blocks=1, metadata={"x": "other bytes"})
    with Library.open(tmp_path / "library") as library:
        library.scan({"loras": tmp_path / "loras"})
        monkeypatch.setattr(LoraFile, "open", None)  # opening any file would fail
        selection = retrieve(library, "a bridge", tower=TopicTower(), pinned=["0012ab", "0099ff"], family="emoji")
    said = [[(near.words, near.similarity) for near in pick.neighbours] for pick in selection.picks]
    assert said == [[("thing3", 1.0)], [("thing5", 1.0)]]
