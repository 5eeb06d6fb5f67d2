"""Proves that a library taken over from what was kept on disk answers as one that was just made ready, and that what is
kept is not believed where it is damaged, of another state of the library, or of another version of the program."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from retrieve_worlds import TopicTower, weights_world

from autolora_core.library import table
from autolora_core.library.array_file import open_arrays, save_arrays
from autolora_core.library.index import Library
from autolora_core.retrieve import finalists, leaders, neighbours, prepare, ready, sayings, score
from autolora_core.retrieve.prepare import warm
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.view import ViewEntry, ViewText

PROMPTS = ["topic7 in topic9 style", "a quokka", "topic30, topic50 and a castle"]
OPTIONS = [{}, {"top_k": 6, "threshold": 0.05}, {"use_text": False}, {"pinned": ["file_003"], "banned": ["file_01*"]}]


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """A library of some dozen files is treated as a large one."""
    for place, name in ((prepare, "KEPT_FROM"), (finalists, "WHOLE"), (table, "FRONT")):
        monkeypatch.setattr(place, name, 0 if name != "FRONT" else 32)
    prepare._cache.clear()
    yield
    prepare._cache.clear()


def world(folder):
    """LoRAs with words of every kind, odd ones among them, and some without."""
    view = replace(_made(), held=[*_made().held], folder=folder)
    texts = [ViewText(title="a \ud800 fox", tags=("one", "two\nlines"), triggers=("tr1g",), description="A fox " * 30),
             ViewText(tags=("style", "fox")), ViewText(title="…")]  # fmt: skip
    for i, text in enumerate(texts):
        view.held[i] = ViewEntry(view.held[i].name, view.held[i].hash, text=text)
    return view


@cache
def _made():
    return weights_world(40, 16, 0.3, twins=4)[0]


def answers(view) -> list[dict]:
    return [
        retrieve(view, prompt, tower=TopicTower(), **options).to_json() for prompt in PROMPTS for options in OPTIONS
    ]


def kept(folder):
    (path,) = folder.glob("ready-*.arrays")
    return path


def nothing_is_worked_out(monkeypatch):
    makers = [(sayings.Sayings, "__init__"), (table.Codes, "__init__"), (score, "ruler_of"), (leaders, "log_odds")]
    makers.append((prepare, "calibrate"))
    for place, name in makers:
        monkeypatch.setattr(place, name, None)


def test_what_was_kept_answers_as_what_was_made(tmp_path, monkeypatch):
    plain = answers(world(None))
    assert any(one["picks"] for one in plain)
    prepare._cache.clear()
    assert answers(world(tmp_path)) == plain
    prepare._cache.clear()
    monkeypatch.setattr(sayings.Sayings, "__init__", None)  # working it out would fail
    assert answers(world(tmp_path)) == plain
    monkeypatch.undo()
    monkeypatch.setattr(prepare, "KEPT_FROM", 0)
    monkeypatch.setattr(finalists, "WHOLE", 0)
    warm(world(tmp_path), "emoji", TopicTower())  # as Encode does
    prepare._cache.clear()
    nothing_is_worked_out(monkeypatch)
    again = [retrieve(world(tmp_path), prompt, tower=TopicTower()).to_json() for prompt in PROMPTS]
    assert again == plain[:: len(OPTIONS)]


def test_encode_makes_a_library_ready_and_again_when_files_come(tiny_lora, tmp_path, monkeypatch):
    """From files on: what the first question finds is what Encode left, for the state of the library that it left."""
    monkeypatch.setattr(neighbours, "LISTED_FROM", 0)
    monkeypatch.setattr(neighbours, "SAMPLED", 4)
    for seed in range(10):
        tiny_lora(f"thing{seed}.safetensors", seed, metadata={"modelspec.title": f"thing{seed}"}, blocks=1)
    tiny_lora("like3.safetensors", 3, rank=2, blocks=1, metadata={"x": "other bytes"})
    real = sayings.Sayings.__init__
    for again in range(2):
        with Library.open(tmp_path / "library") as library:
            library.scan({"loras": tmp_path / "loras"})
            library.fit(TopicTower())
            warm(library, "emoji", TopicTower())
            prepare._cache.clear()
            names = sorted(path.name.partition("-")[0] for path in library.folder.glob("*.arrays"))
            assert names == ["near", "ready", "usual"], "the old state's are replaced"
            monkeypatch.setattr(sayings.Sayings, "__init__", None)
            found = retrieve(library, "thing3", tower=TopicTower(), pinned=["like3"], family="emoji")
            monkeypatch.setattr(sayings.Sayings, "__init__", real)
            assert prepare.prepare(library, "emoji", TopicTower()).neighbourhood._lists.complete
        words = {near.words for near in found.picks[0].neighbours}
        assert "thing3" in words and ("thing3 once more" in words) == bool(again)
        tiny_lora("new.safetensors", 3, blocks=1, metadata={"modelspec.title": "thing3 once more", "y": "z"})


def test_a_library_without_words_or_weights_is_kept_too(tmp_path, monkeypatch):
    view = world(tmp_path)
    view.held = [ViewEntry(entry.name, entry.hash) for entry in view.held]
    view.encoders = {}
    first = retrieve(view, PROMPTS[0], tower=TopicTower()).to_json()
    prepare._cache.clear()
    monkeypatch.setattr(sayings.Sayings, "__init__", None)
    assert retrieve(view, PROMPTS[0], tower=TopicTower()).to_json() == first


@pytest.mark.parametrize("harm", ["bit", "cut", "other", "state", "program", "tower"])
def test_what_is_damaged_or_of_something_else_is_made_again(tmp_path, monkeypatch, harm):
    view, tower = world(tmp_path), TopicTower()
    first = retrieve(view, PROMPTS[0], tower=tower).to_json()
    path, made = kept(tmp_path), []
    whole = path.read_bytes()
    if harm == "state":
        view.handle = {**view.handle, "generation": 2}
    elif harm == "program":
        monkeypatch.setattr(ready, "_program", lambda: "a later one")
    elif harm == "tower":
        tower = TopicTower()
        tower.id = "topics-2"
        view.encoders = {}
    else:
        bad = bytearray(whole)
        bad[-40] ^= 1
        path.write_bytes({"bit": bytes(bad), "cut": whole[:-64], "other": b"AUTOLORA-ARRAYS-9\n"}[harm])
    real = sayings.Sayings.__init__
    monkeypatch.setattr(
        sayings.Sayings, "__init__", lambda self, *args: made.append(1) or real(self, *args)
    )  # fmt: skip
    prepare._cache.clear()
    again = retrieve(view, PROMPTS[0], tower=tower).to_json()
    assert made == [1]
    assert harm == "tower" or {**again, "index": None} == {**first, "index": None}
    prepare._cache.clear()
    retrieve(view, PROMPTS[0], tower=tower)
    assert made == [1], "it was kept anew"


@pytest.mark.parametrize(
    "name",
    ["row", "said", "starts", "scale", "lexicon.starts", "ruler.mean", "texts", "groups", "words_fine_codes",
     "weights_coarse_steps", "weights_fine_own"],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(tmp_path, name):
    """Sound to its checksums, but written by somebody else."""
    view = world(tmp_path)
    first = retrieve(view, PROMPTS[0], tower=TopicTower()).to_json()
    said, arrays = open_arrays(kept(tmp_path))
    arrays[name] = arrays[name][:-5]
    save_arrays(kept(tmp_path), said, arrays)
    prepare._cache.clear()
    assert retrieve(view, PROMPTS[0], tower=TopicTower()).to_json() == first


def test_rulers_of_other_loras_are_refused(tmp_path):
    view = world(tmp_path)
    first = retrieve(view, PROMPTS[0], tower=TopicTower()).to_json()
    warm(view, "emoji", TopicTower())
    (path,) = tmp_path.glob("usual-*.arrays")
    said, arrays = open_arrays(path)
    for wrong in ({"usual": arrays["usual"][:-5]}, {"others": arrays["usual"]}):
        save_arrays(path, said, wrong)
        prepare._cache.clear()
        assert retrieve(view, PROMPTS[0], tower=TopicTower()).to_json() == first


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path, monkeypatch):
    view = world(tmp_path / "gone")
    assert retrieve(view, PROMPTS[0], tower=TopicTower()).picks
    assert not (tmp_path / "gone").exists()


def test_arrays_come_back_as_they_were(tmp_path, monkeypatch):
    """Mapped or read, of any shape and kind; and not one of another kind."""
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((7, 3)).astype(np.float32), "none": np.zeros((0, 4), np.int64),
              "b": rng.integers(0, 9, 11).astype(np.int8), "one": np.array(3.5),
              "yes": rng.random(9) > 0.5}  # fmt: skip
    path = tmp_path / "x.arrays"
    assert save_arrays(path, {"of": [1, "ö"]}, arrays)
    for mapped_from in (1 << 30, 1):
        monkeypatch.setattr("autolora_core.library.array_file.MAPPED_FROM", mapped_from)
        said, found = open_arrays(path)
        assert said == {"of": [1, "ö"]} and found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        found["a"][:] = 0  # the caller's own
        del found
    save_arrays(path, {}, {"text": np.array(["a", "b"])})
    assert open_arrays(path) is None
