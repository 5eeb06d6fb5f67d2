"""The map of a library: neighbours stay neighbours, groups are found and named, a kept map is checked."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from conftest import emoji_factors, write_lora

from autolora_core.encode.towers import LexicalTower
from autolora_core.library.entries import Entry, EntryText
from autolora_core.library.index import Library
from autolora_core.panel import answers, layout
from autolora_core.panel import map as maps
from autolora_core.panel.asked import Asked
from autolora_core.panel.clusters import cluster, name_clusters

WAITS = lambda: False  # noqa: E731 - somebody waits for the answer


@pytest.fixture
def world(tmp_path):
    """Loras folder and the open library of its seven files."""
    loras = tmp_path / "loras"
    for seed in range(7):
        tags = {"ss_tag_frequency": json.dumps({"train": {f"thing {seed}": 9}})}
        write_lora(loras / f"{seed}.safetensors", emoji_factors(seed, blocks=1), tags)
    with Library.open(tmp_path / "index") as library:
        library.scan({"loras": loras})
        yield loras, library


def saying(i: int, *tags: str) -> Entry:
    return Entry(f"{i}", f"/l/{i}", f"{i:064}", 1, 0.0, "sdxl", "", "lora", None, 4, False, (), EntryText(tags=tags))


def test_a_map_that_nobody_waits_for_ends(world):
    with pytest.raises(answers.Stopped):
        maps.map_of(world[1], "emoji", lambda: True)


def blobs(groups=6, each=60, wide=48, seed=0):
    """Unit vectors in groups, and the group of each, in no order."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, wide))
    home = rng.permutation(np.repeat(np.arange(groups), each))
    rows = centres[home] + 0.6 * rng.standard_normal((len(home), wide))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), home


def neighbours_kept(vectors, places, count=10):
    """How many of the nearest by their vectors are among the nearest on the map, on average."""

    def nearest(far):
        np.fill_diagonal(far, np.inf)
        return np.argsort(far, axis=1)[:, :count]

    by_vectors = nearest(-(vectors @ vectors.T))
    by_places = nearest(((places[:, None] - places[None]) ** 2).sum(axis=2))
    return np.mean([len(set(a) & set(b)) / count for a, b in zip(by_vectors, by_places, strict=True)])


def test_neighbours_stay_neighbours(monkeypatch):
    vectors, home = blobs()
    whole = layout.lay_out(vectors)
    assert np.array_equal(whole, layout.lay_out(vectors)) and np.abs(whole).max() == pytest.approx(1.0)
    flat = neighbours_kept(vectors, layout.principal(vectors))
    assert neighbours_kept(vectors, whole) > 2 * flat
    monkeypatch.setattr(layout, "LANDMARKS", 120)  # the others are placed among these
    placed = layout.lay_out(vectors)
    assert neighbours_kept(vectors, placed) > 1.2 * flat
    alone = [np.linalg.norm(placed[home == g] - np.median(placed[home == g], axis=0), axis=1) for g in range(6)]
    assert np.median(np.concatenate(alone)) < 0.3, "groups of the vectors are groups of the map"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_a_map_of_few(count):
    vectors = blobs(7, 1)[0][:count]
    places, home = layout.lay_out(vectors), cluster(vectors)
    assert places.shape == (count, 2) and home.shape == (count,) and np.isfinite(places).all()


def test_equal_vectors_have_places():
    assert np.isfinite(layout.lay_out(np.ones((9, 4), np.float32) / 2)).all()


def test_groups_are_found_and_named():
    vectors, truth = blobs(4, 40)
    home = cluster(vectors)
    for group in range(int(home.max()) + 1):
        counts = np.bincount(truth[home == group])
        assert counts.max() > 0.9 * counts.sum(), "a group of the map holds what does not belong together"
    assert np.array_equal(home, cluster(vectors)) and (np.diff(np.bincount(home)) <= 0).all()
    said = [saying(i, f"thing {group}", "character") for i, group in enumerate(truth)]
    labels = name_clusters(said, truth.astype(np.uint16))
    assert labels == [[f"thing {group}"] for group in range(4)], "what everybody says names nobody"


def test_a_map_is_kept_and_made_again_when_it_must_be(world, monkeypatch):
    loras, library = world
    library.fit(LexicalTower())
    made = []
    monkeypatch.setattr(maps, "lay_out", lambda vectors, tick: made.append(1) or layout.lay_out(vectors, tick))
    first = maps.draw_map(library, Asked(), WAITS)
    assert maps.draw_map(library, Asked(), WAITS) == first and len(made) == 1
    path = maps.map_path(library.folder, "emoji")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    assert maps.draw_map(library, Asked(), WAITS) == first and len(made) == 2, "a damaged map was taken"
    write_lora(loras / "newcomer.safetensors", emoji_factors(77, blocks=1))
    library.scan({"loras": loras})
    maps.draw_map(library, Asked(), WAITS)
    assert len(made) == 3, "a map of another state was taken"


def test_the_map_as_the_page_reads_it(world):
    said = maps.draw_map(world[1], Asked(family="no such base"), WAITS)
    assert json.loads(said[8 : 8 + struct.unpack("<I", said[4:8])[0]])["count"] == 0
    data = maps.draw_map(world[1], Asked(), WAITS)
    (length,) = struct.unpack("<I", data[4:8])
    said, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    count = said["count"]
    assert data[:4] == maps.MAGIC and length % 4 == 0 and len(rest) == count * (8 + 2 + 32)
    digests = {rest[10 * count + 32 * i :][:32].hex() for i in range(count)}
    assert digests == {entry.hash for entry in world[1].entries("emoji")} and said["by"] == "the weights themselves"
    assert sum(said["sizes"]) == count and said["family"] == "emoji"
