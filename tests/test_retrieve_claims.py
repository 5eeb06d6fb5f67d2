"""Proves that weights never claim more than their encoder's hit rate, and so never hide a LoRA that is named.

The encoder of `Memory` was fitted on the very files it is asked about: every vector is exactly what its file was
captioned with, right or wrong, and its z-scores are as high as they can be.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import write_lora
from retrieve_worlds import TopicTower, digest, normal, weights_world
from train_worlds import says, told, topic

from autolora_core.encode.encoder import RidgeEncoder, stated_training
from autolora_core.encode.encoder_files import load_encoder_file
from autolora_core.encode.generic import GENERIC_MANNERS
from autolora_core.encode.ridge import KernelRidge
from autolora_core.errors import FileFormatError
from autolora_core.library.index import Library
from autolora_core.retrieve import tune
from autolora_core.retrieve.odds import bounded, combine, hit_rate
from autolora_core.retrieve.prepare import prepare
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.view import MemoryView, ViewEntry, ViewText, ViewVectors
from autolora_core.train.figures import scores_of
from autolora_core.train.inputs import Inputs
from autolora_core.train.material import Asked, gather
from autolora_core.train.outcome import Options
from autolora_core.train.own import train_library

TOPICS = [f"topic{i}" for i in range(40)]


class Memory:
    """A learned encoder that knows its training files by heart. ``stated``: its recall on unseen files, if told."""

    id, dim, family, tower, schema, usable = "memory-1", 64, "emoji", TopicTower.id, None, True

    def __init__(self, stated: float | None = None, trained_on: frozenset[str] | None = None):
        self.held_out_recall_at_1, self.trained_on = stated, trained_on

    def query(self, vectors: np.ndarray) -> np.ndarray:
        return sharp(vectors)


def sharp(vectors: np.ndarray) -> np.ndarray:
    """Unit rows: the same for the same text, unrelated for any other."""
    rows = np.stack([normal(str(np.round(row, 4).tolist()), 64) for row in np.asarray(vectors)])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def in_sample_world(stated: float | None) -> MemoryView:
    """40 captioned files it remembers; then "otter", named but with weights that say nothing, and a nameless file that
    it takes for an otter."""
    entries = [ViewEntry(f"{topic}.safetensors", digest(topic), text=ViewText(topic)) for topic in TOPICS]
    entries += [ViewEntry("otter.safetensors", digest("otter"), text=ViewText("otter"))]
    entries += [ViewEntry("9a3f.safetensors", digest("9a3f"))]
    rows = sharp(TopicTower().encode([*TOPICS, "of nothing", "otter"]))
    hashes = tuple(entry.hash for entry in entries)
    return MemoryView(entries, {"emoji": Memory(stated)}, {"memory-1": ViewVectors(hashes, rows)})


@pytest.mark.parametrize("stated", [None, 0.2, 0.9])
def test_a_named_lora_wins_over_one_that_an_encoder_swears_by(stated):
    selection = retrieve(in_sample_world(stated), "a picture of an otter", tower=TopicTower(), top_k=1)
    assert [pick.name for pick in selection.picks] == ["otter.safetensors"]
    (sworn,) = [miss for miss in selection.misses if miss.name == "9a3f.safetensors"]
    assert sworn.parts.weights <= (0.5 if stated is None else stated)
    assert any(note.startswith("Weights count for at most ") for note in selection.notes)


def test_an_unmeasured_encoder_alone_picks_nothing():
    """No file has the word, one has the weights: with nothing known of the encoder that is not enough."""
    view = in_sample_world(None)
    view.held = [entry for entry in view.held if entry.name != "otter.safetensors"]
    selection = retrieve(view, "a picture of an otter", tower=TopicTower())
    assert selection.picks == () and selection.misses[0].name == "9a3f.safetensors"


def test_bound_is_the_sum_of_the_odds_against():
    claims = np.array([0.0, 1e-6, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0, np.nan])
    for most in (0.02, 0.5, 0.95, 1.0):
        found = bounded(claims, most)
        assert np.isnan(found[-1]) and (found[:-1] <= np.minimum(claims[:-1], most) + 1e-9).all()
        assert (np.diff(found[1:-1]) > 0).all(), "the order of claims stays"
        against = (1 - claims[2:-1]) / claims[2:-1] + (1 - most) / most
        np.testing.assert_allclose(found[2:-1], 1 / (1 + against), rtol=1e-12)
    np.testing.assert_allclose(bounded(claims, 1.0)[1:-1], claims[1:-1], rtol=1e-9)
    assert bounded(np.array([1e-4]), 0.5)[0] == pytest.approx(1e-4, rel=1e-3), "small claims hardly change"


@pytest.mark.parametrize("text", [0.0, 0.2, 0.5])
def test_the_same_words_win_over_any_bounded_claim(text):
    """0.953 for the very same words against a z-score without end and hints of a text match, hit rate 0.9 at most."""
    named = combine(np.array(0.0), np.array(np.nan), np.array(0.9526))
    sworn = combine(bounded(np.array(1 - 1e-9), 0.9), np.array(text), np.array(0.0))
    assert named > sworn


@pytest.mark.parametrize(
    ("stated", "right", "asks", "expected"),
    [(None, 0, 0, 0.5), (0.3, 0, 0, 0.3), (None, 9, 10, 10 / 12), (0.1, 9, 10, 10 / 12), (0.8, 0, 40, 1 / 42)],
)
def test_hit_rate(stated, right, asks, expected):
    assert hit_rate(Memory(stated), right, asks) == pytest.approx(expected)


def test_an_encoder_is_judged_by_the_files_it_was_not_taught_about():
    """It was taught 30 of the 40; of the other ten it gets all right, and of "otter" it has a wrong idea."""
    view = in_sample_world(0.1)
    view.encoders["emoji"] = Memory(0.1, frozenset(digest(topic) for topic in TOPICS[:30]))
    scorer = prepare(view, "emoji", TopicTower()).scorer
    assert scorer.unseen.sum() == 12 and scorer.weight_claim == pytest.approx((10 + 1) / (11 + 2))


def test_a_ridge_encoder_is_judged_by_its_leave_one_out_vectors():
    """Counted again in plain loops: how often a captioned file comes first for its own words, among all files."""
    view, topics = weights_world(60, 20, 0.3)
    scorer = prepare(view, "emoji", TopicTower()).scorer
    encoder, tower = view.encoders["emoji"], TopicTower()
    generic = encoder.query(tower.encode(list(tune.GENERIC_PROMPTS)))
    right = 0
    for i in range(60):
        query, z = encoder.query(tower.encode([topics[i]]))[0], []
        for vector in view.encoded[encoder.id].matrix:
            usual = generic @ vector
            deviation = max(1.4826 * np.median(np.abs(usual - np.median(usual))), 0.02)
            z.append((query @ vector - np.median(usual)) / deviation)
        right += int(np.argmax(z)) == i
    assert 0 < right <= 60 and scorer.weight_claim == pytest.approx((right + 1) / 62)


def test_an_encoder_file_states_its_recall(tmp_path):
    view, _ = weights_world(12, 0, 0.3)
    encoder = view.encoders["emoji"]
    silent = RidgeEncoder.load(encoder.save(tmp_path / "a.safetensors"))
    assert silent.held_out_recall_at_1 is None
    stated = RidgeEncoder.load(replace(encoder, held_out_recall_at_1=0.625).save(tmp_path / "b.safetensors"))
    assert stated.held_out_recall_at_1 == 0.625 and stated.id == encoder.id
    longer = stated.extended(encoder.ridge.X[:1], ["more"], TopicTower())
    assert longer.held_out_recall_at_1 == 0.625
    wrong = replace(encoder, held_out_recall_at_1=7.0).save(tmp_path / "c.safetensors")
    with pytest.raises(FileFormatError, match="held_out_recall_at_1"):
        RidgeEncoder.load(wrong)


@pytest.mark.parametrize(("text", "expected"), [(None, None), ("[]", frozenset()), ('["ab"]', frozenset({"ab"}))])
def test_a_file_states_what_it_was_trained_on(text, expected):
    assert stated_training({} if text is None else {"trained_on": text}) == expected


@pytest.mark.parametrize("text", ["{}", "[1]", "ab"])
def test_a_malformed_statement_is_refused(text):
    with pytest.raises(ValueError):
        stated_training({"trained_on": text})


def test_training_states_the_recall_for_unseen_labels(tmp_path):
    """Two files a label. Counted again by hand: labels are hidden whole, so what is stated is of labels never seen."""
    for i in range(80):
        label = topic(i // 2)
        write_lora(tmp_path / "loras" / f"{i:04x}ab00cd.safetensors", says(label, i), told(label))
    with Library.open(tmp_path / "mine") as library:
        library.scan({"loras": tmp_path / "loras"})
        [found], _ = train_library(library, TopicTower(), tmp_path / "models", ["emoji"], Options(epochs=0))
        material = gather(library, "emoji")
    lines = {digest: said.lines for digest, said in material.words.items()}
    for one in set(lines.values()):
        assert len({fold for digest, fold in zip(material.hashes, material.folds, strict=True)
                    if lines[digest] == one}) == 1  # fmt: skip
    encoder = load_encoder_file(found.path)
    asks = found.figures["chosen"].asks
    assert asks == 40 and encoder.held_out_recall_at_1 == found.figures["chosen"].recall_at_1
    asked, rows = Asked.of(material, TopicTower()), Inputs.of("emoji", material.files).rows
    right = 0
    for row, mine, fold in zip(asked.asks, asked.right, asked.folds, strict=True):
        known = material.folds != fold
        fit = KernelRidge.fit(rows[known], asked.targets[known])
        vectors = fit.predict(rows)
        vectors[known] = fit.loo()
        scores = scores_of(vectors, asked.targets[row][None], asked.generic)[0]
        right += scores[mine].max() > scores[~mine].max()
    assert encoder.held_out_recall_at_1 == pytest.approx(right / asks)


@pytest.mark.parametrize("hit_rate", [0.0, 0.1, 0.5, 1.0])
def test_a_role_read_from_weights_counts_as_much_as_the_encoder_is_right(hit_rate):
    """A nameless file whose vector is that of the generic manners is a style, as far as the encoder may be believed;
    what words say is not touched by it."""
    view, tower = in_sample_world(0.9), TopicTower()
    encoder = view.encoders["emoji"]
    manners = encoder.query(tower.encode(list(tune.GENERIC_PROMPTS)))[-len(GENERIC_MANNERS) :].mean(axis=0)
    rows = view.encoded[encoder.id].matrix
    rows[-1] = manners / np.linalg.norm(manners)
    scorer = prepare(view, "emoji", tower).scorer
    place = [entry.name for entry in scorer.entries].index("9a3f.safetensors")
    before = np.delete(scorer.roles, place)
    scorer.weight_claim = hit_rate
    assert scorer.roles[place] == pytest.approx(hit_rate)
    assert np.array_equal(np.delete(scorer.roles, place), before) and np.any(before != 0)
