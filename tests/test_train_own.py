"""Proves the whole training on libraries on disk: knowledge is found, randomness is not, copies do not leak, too little
is refused in words, an interrupted run ends as an undisturbed one, and the index uses what was learnt."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import real_loras, write_lora
from retrieve_worlds import TopicTower
from scipy.stats import binom
from train_worlds import random_library, says, told, topic, world

from autolora_core.encode.encoder import RidgeEncoder
from autolora_core.encode.encoder_files import load_encoder_file
from autolora_core.errors import LibraryError
from autolora_core.library.encoders import find_encoders, trained_for
from autolora_core.library.index import Library
from autolora_core.train import material, own
from autolora_core.train.captions import parse_table
from autolora_core.train.outcome import Options, Outcome
from autolora_core.train.report import training_report

RIDGE_ONLY = Options(epochs=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def library(files, tmp_path):
    with Library.open(tmp_path / "mine") as opened:
        opened.scan({"loras": files})
        yield opened


def train(library, target, options=RIDGE_ONLY, **more):
    families = own.families_of(library)
    return own.train_library(library, TopicTower(), target, families, options, **more)


def test_what_weights_say_is_learnt_saved_and_used(library, files, tmp_path):
    library.fit(TopicTower())
    generation = library.generation
    [found], notes = train(library, tmp_path / "models")
    assert (found.files, found.captioned, found.distinct, notes) == (50, 40, 40, [])
    assert found.verdict.knows and found.figures["chosen"].asks == 40
    assert found.figures["chosen"].recall_at_5 > 0.5 > found.figures["control"].recall_at_5
    report = training_report([found])
    assert "knows something" in report and "guessing" in report and "mine-encoder.safetensors" in report
    path = tmp_path / "models" / "emoji-mine-encoder.safetensors"
    encoder = load_encoder_file(path)
    assert isinstance(encoder, RidgeEncoder) and encoder.id == found.encoder_id and len(encoder.texts) == 40
    assert encoder.held_out_recall_at_1 == found.figures["chosen"].recall_at_1
    assert trained_for(path).library == "mine"
    config = json.loads(path.with_suffix(".json").read_text())
    assert Outcome.from_json(config).figures == found.figures and config["library"] == "mine"
    [fitted] = library.fit(TopicTower(), shipped=find_encoders([tmp_path / "models"], "mine")).families
    assert fitted.encoder_id == encoder.id and library.generation > generation
    assert len(library.vectors("emoji", encoder.id).hashes) == 50


def test_the_silent_files_are_found_by_what_they_show(library, tmp_path):
    train(library, tmp_path / "models")
    library.fit(TopicTower(), shipped=find_encoders([tmp_path / "models"], "mine"))
    encoder = library.encoder("emoji")
    vectors = library.vectors("emoji", encoder.id)
    names = {e.hash: int(e.name.split("ab00")[0], 16) for e in library.entries()}
    place = np.array([names[d] for d in vectors.hashes])
    scores = encoder.query(TopicTower().encode([topic(i) for i in range(40, 50)])) @ vectors.matrix.T
    first = place[np.argsort(-scores, axis=1)[:, :5]]
    assert np.mean([i in row for i, row in zip(range(40, 50), first, strict=True)]) >= 0.5


def test_again_is_free_and_new_words_are_not(library, tmp_path, monkeypatch):
    [first], _ = train(library, tmp_path / "models")
    monkeypatch.setattr(own._Job, "_trained", lambda *_: pytest.fail("trained again"))
    [again], _ = train(library, tmp_path / "models")
    assert again.again and again.figures == first.figures and "earlier result counts" in training_report([again])
    monkeypatch.undo()
    (tmp_path / "models" / "emoji-mine-encoder.safetensors").unlink()
    [lost], _ = train(library, tmp_path / "models")
    assert not lost.again and lost.encoder_id == first.encoder_id
    rows = parse_table(f"0028ab00cd,{topic(40)}\nnobody,x\n", "t")
    [more], notes = train(library, tmp_path / "models", Options(rows=tuple(rows), epochs=0))
    assert more.captioned == 41 and "line 2 (nobody)" in notes[0]


def test_nothing_of_older_inputs_is_left(library, tmp_path):
    for name in ("emoji-000000000000", "sdxl-000000000000"):
        (library.folder / "training" / name).mkdir(parents=True)
        (library.folder / "training" / name / "fold-0.safetensors").write_bytes(b"a checkpoint")
    [found], _ = train(library, tmp_path / "models")
    left = sorted(path.name for path in (library.folder / "training").iterdir())
    assert left == [f"emoji-{found.inputs[:12]}", "sdxl-000000000000"]


def test_no_more_files_are_read_than_are_used(library, monkeypatch):
    read, real = [], material.read_sketches
    monkeypatch.setattr(material, "MAX_FILES", 42)
    monkeypatch.setattr(material, "read_sketches", lambda db, hashes, family: read.extend(hashes) or real(
        db, hashes, family))  # fmt: skip
    monkeypatch.setattr(Library, "module_features", lambda *_: pytest.fail("reads every file"))
    found = material.gather(library, "emoji")
    assert sorted(read) == list(found.hashes) and len(read) == len(found.files) == 42
    assert found.captioned.sum() == 40 and "50 files are more than 42" in found.notes[0]


def test_a_row_that_is_reported_as_unclear_is_not_used(library, tmp_path):
    """The name is that of a file of another base model too: in its own family alone it would be clear."""
    write_lora(tmp_path / "more" / "0028ab00cd.safetensors", says(topic(40), 900))
    library.scan({"more": tmp_path / "more"})
    library.store.db.execute("UPDATE contents SET family = 'sd3' WHERE hash IN (SELECT hash FROM files WHERE root = ?)",
                             (os.fsencode(str(tmp_path / "more")),))  # fmt: skip
    library.store.bump()
    rows = tuple(parse_table(f"0028ab00cd,{topic(40)}\n", "t"))
    outcomes, notes = train(library, tmp_path / "models", Options(rows=rows, epochs=0))
    assert sorted(outcome.family for outcome in outcomes) == ["emoji", "sd3"]
    assert "line 1 (0028ab00cd)" in notes[0] and "Several different files" in notes[0]
    assert next(outcome for outcome in outcomes if outcome.family == "emoji").captioned == 40


def test_the_index_uses_the_very_encoder_that_was_saved(tmp_path):
    """Lines that tell no file apart were left out, and file names count half: the next fit must not undo either."""
    for i in range(36):
        words = topic(i) if i < 22 else "made with love"
        write_lora(tmp_path / "loras" / f"{i:04x}ab00cd.safetensors", says(topic(i), i), told(words))
    for i in range(40, 44):
        write_lora(tmp_path / "loras" / f"{topic(i)}.safetensors", says(topic(i), i))
    with Library.open(tmp_path / "mine") as library:
        library.scan({"loras": tmp_path / "loras"})
        [found], _ = train(library, tmp_path / "models")
        assert found.path and found.captioned == 26
        shipped = find_encoders([tmp_path / "models"], "mine")
        [fitted] = library.fit(TopicTower(), shipped=shipped).families
        assert fitted.encoder_id == found.encoder_id and fitted.captioned == 26
        write_lora(tmp_path / "loras" / f"{topic(50)}.safetensors", says(topic(50), 50))
        library.scan({"loras": tmp_path / "loras"})
        [longer] = library.fit(TopicTower(), shipped=shipped).families
        weights = library.encoder("emoji").ridge.weights
    assert longer.captioned == 27 and sorted(weights[:26].tolist()) == [0.5] * 4 + [1.0] * 22 and weights[26] == 0.5


def test_copies_and_epochs_are_hidden_together(files, tmp_path):
    """Every file twice, the second one a later epoch with other words: were they split, hidden ones would be known."""
    rng = np.random.default_rng(0)
    for i in range(24):
        factors = says(topic(i), 500 + i, noise=3.0)
        for part, scale in (("a", 1.0), ("b", 1.5)):
            moved = {n: (d, u * scale + 0.002 * float(rng.normal())) for n, (d, u) in factors.items()}
            write_lora(tmp_path / "twins" / f"{i:04x}{part}b00cd.safetensors", moved, told(f"{topic(i)} {part}"))
    with Library.open(tmp_path / "mine") as library:
        library.scan({"loras": tmp_path / "twins"})
        [found], _ = train(library, tmp_path / "models")
    assert (found.captioned, found.distinct, found.figures["chosen"].asks) == (48, 24, 24)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_random_weights_are_at_chance_and_the_report_says_so(tmp_path, family):
    count = 40
    with Library.open(tmp_path / "mine") as library:
        library.scan({"loras": random_library(tmp_path, family, count)})
        [found], _ = train(library, tmp_path / "models")
    hidden = found.figures["chosen"]
    assert found.family == family and hidden.asks == count
    for share, level in ((hidden.recall_at_1, found.chance[0]), (hidden.recall_at_5, found.chance[1])):
        low, high = binom.interval(0.995, count, level)
        assert low <= round(share * count) <= high
    assert not found.verdict.knows and not found.path and not (tmp_path / "models").exists()
    assert "knows nothing" in training_report([found]) and "Nothing was saved" in training_report([found])


def test_too_little_is_refused_in_words(tmp_path):
    for i in range(20):
        words = told(topic(i % 5)) if i < 11 else {}
        write_lora(tmp_path / "loras" / f"{i:04x}ab00cd.safetensors", says(topic(i), i, noise=2.0), words)
    with Library.open(tmp_path / "mine") as library:
        library.scan({"loras": tmp_path / "loras"})
        [found], _ = train(library, tmp_path / "models")
        assert found.refused.startswith("11 of its 20 files say what they show, of which 5 are different; at least 12")
        assert "emoji: not trained, 11 of its 20" in training_report([found])
        with pytest.raises(LibraryError, match="no LoRA for flux.*emoji"):
            own.families_of(library, "flux")


@pytest.mark.parametrize("folder", sorted({str(path.parent) for path in real_loras()}))
def test_real_files_are_refused_with_reasons(folder, tmp_path):
    with Library.open(tmp_path / "mine") as library:
        library.scan({"loras": folder})
        outcomes, _ = train(library, tmp_path / "models")
    assert outcomes and all(outcome.refused for outcome in outcomes)
    assert "not trained" in training_report(outcomes)


def small_network(monkeypatch):
    monkeypatch.setattr(own, "MIN_FOR_SET", 20)
    monkeypatch.setattr(own._Job, "_seconds_an_epoch", lambda *_: 0.01)


def test_the_set_transformer_takes_part_and_an_interrupted_run_ends_the_same(library, files, tmp_path, monkeypatch):
    small_network(monkeypatch)
    monkeypatch.setattr("autolora_core.train.contest.beats", lambda *_: True)
    options = Options(epochs=4)
    calls = []

    class Stop(Exception):
        pass

    def stop_at(limit):
        def progress(done, total, name):
            calls.append(done)
            if len(calls) >= limit:
                raise Stop

        return progress

    for limit in (7, 9, 12):
        calls.clear()
        with pytest.raises(Stop):
            train(library, tmp_path / "models", options, progress=stop_at(limit))
    [resumed], _ = train(library, tmp_path / "models", options)
    with Library.open(tmp_path / "other" / "mine") as fresh:
        fresh.scan({"loras": files})
        [whole], _ = train(fresh, tmp_path / "models2", options)
    assert resumed.figures == whole.figures and "set" in whole.figures and whole.figures["set"].asks == 40
    assert (resumed.kind, resumed.encoder_id, resumed.epochs) == (whole.kind, whole.encoder_id, whole.epochs)


def test_a_set_transformer_is_saved_with_what_it_was_taught(library, tmp_path, monkeypatch):
    small_network(monkeypatch)
    monkeypatch.setattr(own, "leads", lambda *_: True)
    [found], _ = train(library, tmp_path / "models", Options(epochs=4))
    encoder = load_encoder_file(found.path)
    assert found.kind == "set" and encoder.id == found.encoder_id and len(encoder.trained_on) == 40
    assert encoder.held_out_recall_at_1 == found.figures["chosen"].recall_at_1
    report = library.fit(TopicTower(), shipped=find_encoders([tmp_path / "models"], "mine"))
    [fitted] = report.families
    assert fitted.encoder_id == encoder.id and not fitted.learnt
    assert fitted.captioned == 40 and fitted.asks == 0 and "%" not in report.lines()[0]


def test_a_trained_encoder_is_not_graded_on_what_it_was_taught(library, tmp_path, monkeypatch):
    """Ten of the forty captioned files are asked for, among all forty; counted again in plain loops."""
    small_network(monkeypatch)
    monkeypatch.setattr(own, "leads", lambda *_: True)
    [found], _ = train(library, tmp_path / "models", Options(epochs=4))
    encoder, tower = load_encoder_file(found.path), TopicTower()
    taught = frozenset(sorted(encoder.trained_on)[:30])
    report = library.fit(tower, shipped={"emoji": replace(encoder, trained_on=taught)})
    words = {entry.hash: entry.text.captions for entry in library.entries() if entry.text.captions}
    vectors = library.vectors("emoji", encoder.id)
    rows = {digest: vectors.matrix[vectors.hashes.index(digest)] for digest in words}
    right = 0
    for digest in set(words) - taught:
        query = encoder.query(tower.encode(list(words[digest])).mean(axis=0)[None])[0]
        right += sum(query @ row > query @ rows[digest] for row in rows.values()) < 5
    [fitted] = report.families
    assert (fitted.asks, fitted.captioned) == (10, 40) and fitted.found_top5 == pytest.approx(right / 10)
    assert f"of 10 files with words that it was not taught {right / 10:.0%}" in report.lines()[0]
    [again] = library.fit(tower, shipped={"emoji": replace(encoder, trained_on=taught)}).families
    assert not again.refitted and (again.asks, again.found_top5) == (10, fitted.found_top5)


def test_the_better_encoder_that_came_ready_stays(library, tmp_path, monkeypatch):
    [good], _ = train(library, tmp_path / "models")
    shipped = {"emoji": load_encoder_file(good.path)}
    monkeypatch.setattr(own, "beats", lambda own_ranks, other: True)
    [found], _ = train(library, tmp_path / "second", shipped=shipped)
    assert found.behind_shipped and not found.path and "came ready does better" in training_report([found])


def test_the_report_names_the_earlier_encoder_that_stays(library, tmp_path, monkeypatch):
    [earlier], _ = train(library, tmp_path / "models")
    knows = own.verdict_of
    rows = tuple(parse_table(f"0028ab00cd,{topic(40)}\n", "t"))
    again = Options(rows=rows, epochs=0)
    monkeypatch.setattr(own, "verdict_of", lambda *said: replace(knows(*said), knows=False))
    [nothing], _ = train(library, tmp_path / "models", again)
    report = training_report([nothing])
    assert not nothing.path and f"stays in use: {earlier.path}. To search without it" in report
    assert "as before" not in report and "stays" not in json.dumps(nothing.to_json())
    assert find_encoders([tmp_path / "models"], "mine")["emoji"].id == earlier.encoder_id
    [elsewhere], _ = train(library, tmp_path / "second", again, searched=[tmp_path / "models"])
    assert elsewhere.again and elsewhere.stays == earlier.path
    [none], _ = train(library, tmp_path / "third", again)
    assert not none.stays and "searched as before" in training_report([none])
    monkeypatch.setattr(own, "verdict_of", knows)
    monkeypatch.setattr(own, "beats", lambda own_ranks, other: True)
    shipped = {"emoji": load_encoder_file(earlier.path)}
    [behind], _ = train(library, tmp_path / "models", Options(rows=rows, epochs=0, minutes=3), shipped=shipped)
    assert behind.behind_shipped and "For all that, the encoder trained earlier" in training_report([behind])
    assert "That one stays in use" not in training_report([behind])


@pytest.mark.parametrize("whose", ["yours", None, "no encoder", "of another base"])
def test_an_encoder_of_somebody_else_is_not_overwritten(library, tmp_path, whose):
    library.fit(TopicTower())
    encoder, path = library.encoder("emoji"), tmp_path / "models" / "emoji-mine-encoder.safetensors"
    path.parent.mkdir()
    if whose == "no encoder":
        path.write_bytes(b"something else")
    elif whose == "of another base":
        replace(encoder, schema=replace(encoder.schema, family="sdxl")).save(path, {"library": "mine"})
    else:
        encoder.save(path, {"library": whose} if whose else {})
    before = path.read_bytes()
    with pytest.raises(LibraryError, match="emoji-mine-encoder.*choose another name"):
        train(library, tmp_path / "models")
    assert path.read_bytes() == before and not (library.folder / "training").exists()
    [found], _ = train(library, tmp_path / "models", Options(epochs=0, name="mine too"))
    assert found.path and path.read_bytes() == before


def test_own_encoder_before_shipped_and_never_for_another_library(library, tmp_path):
    [found], _ = train(library, tmp_path / "models")
    mine = load_encoder_file(found.path)
    library.fit(TopicTower())
    other = library.encoder("emoji")
    other.save(tmp_path / "models" / "a-encoder.safetensors")
    assert find_encoders([tmp_path / "models"], "mine")["emoji"].id == mine.id
    assert find_encoders([tmp_path / "models"], "yours")["emoji"].id == other.id
    assert find_encoders([tmp_path / "models"])["emoji"].id == other.id
    mine.save(tmp_path / "models" / "z-encoder.safetensors", {"library": "mine", "trained": "2020-01-01"})
    assert find_encoders([tmp_path / "models"], "mine")["emoji"].id == mine.id


def test_command_line(library, tmp_path, monkeypatch, capsys):
    from autolora_core.train import __main__ as command

    monkeypatch.setattr(command, "default_tower", lambda folders: TopicTower())
    (tmp_path / "captions.csv").write_text(f"file,caption\n0028ab00cd,{topic(40)}\n")
    where = str(library.folder)
    given = [where, "--epochs", "0", "--out", str(tmp_path / "out"), "--captions", str(tmp_path / "captions.csv")]
    report = command.run(command.parse([*given, "--family", "emoji"]))
    assert "41 of 50 files have words" in report and "The index uses, for emoji" in report
    assert "is not searched by Encode LoRA Library" in report
    assert (tmp_path / "out" / "emoji-mine-encoder.safetensors").is_file()
    home = tmp_path / "ComfyUI" / "models" / "autolora"
    assert "is not searched" not in command.run(command.parse([where, "--epochs", "0", "--out", str(home)]))
    assert command.run(command.parse([*given, "--out", str(tmp_path / "out" / "x.safetensors")]))
    assert (tmp_path / "out" / "x-encoder.safetensors").is_file()
    with pytest.raises(LibraryError, match="no library"):
        command.run(SimpleNamespace(index=tmp_path / "nothing"))
    with pytest.raises(LibraryError, match="custom_nodes"):
        command.run(command.parse([where]))


def test_command_line_looks_where_it_saves_and_in_the_pack(library, tmp_path, monkeypatch):
    from autolora_core.train import __main__ as command

    monkeypatch.setattr(command, "PACK", tmp_path / "pack")
    asked = []
    monkeypatch.setattr(command, "default_tower", lambda folders: asked.append(list(folders)) or TopicTower())
    for folder in ("out", "pack/models"):
        out = tmp_path / folder
        args = [str(library.folder), "--epochs", "0", "--out", str(out / "x.safetensors")]
        report = command.run(command.parse(args))
        assert out in asked[-1] and tmp_path / "pack" / "models" in asked[-1] and "Saved: " in report
        assert ("is not searched" in report) == (folder == "out")


def test_minutes_are_those_of_all_base_models_together(tmp_path, monkeypatch):
    """Of eight minutes for two base models each has four: at six stages of ten seconds an epoch that is four epochs."""
    monkeypatch.setattr(own._Job, "_seconds_an_epoch", lambda *_: 10.0)
    job = own._Job(None, None, "emoji", tmp_path / "x", Options(minutes=8), {}, None, lambda share: None, 4.0)
    contest = SimpleNamespace(work=tmp_path, material=SimpleNamespace(distinct=100))
    assert job._plan(contest, 6) == (4, "")
    seen = []
    monkeypatch.setattr(own._Job, "run", lambda self: seen.append(self.minutes) or Outcome(self.family, refused="x"))
    library = SimpleNamespace(folder=tmp_path, entries=lambda: [], text_tower=lambda tower: tower)
    own.train_library(library, TopicTower(), tmp_path, ["emoji", "sdxl"], Options(minutes=8))
    assert seen == [4.0, 4.0]


def test_models_folder_is_that_of_the_comfyui_around_the_pack(tmp_path):
    from autolora_core.train.__main__ import models_folder

    pack = tmp_path / "ComfyUI" / "custom_nodes" / "pack"
    pack.mkdir(parents=True)
    assert models_folder(pack) is None
    (tmp_path / "ComfyUI" / "models").mkdir()
    assert models_folder(pack) == tmp_path / "ComfyUI" / "models" / "autolora"
