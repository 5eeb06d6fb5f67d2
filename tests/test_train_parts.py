"""Proves the parts of a training on a user's library: the table of captions, groups and fifths, figures and chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from autolora_core.encode.ridge import KernelRidge
from autolora_core.errors import LibraryError
from autolora_core.library.entries import Entry, EntryText
from autolora_core.library.linked import linked_groups
from autolora_core.library.words import Words, without_common
from autolora_core.train.captions import match, parse_table, read_table, table_path, words_of_files
from autolora_core.train.figures import beats, chance, figures_of, ranks_of, scores_of, verdict_of
from autolora_core.train.inputs import Inputs, principal
from autolora_core.train.split import folds_of, same_names, same_words


def entry(name: str, digest: str, text: EntryText | None = None) -> Entry:
    return Entry(name, name, digest, 1, 0.0, "emoji", "", "lora", None, 1, False, (), text or EntryText())


def test_table_forms():
    rows = parse_table('\ufefffile,caption\na.safetensors,"an otter, swimming"\n\nb;c,two,"three"\n', "t")
    assert [(r.line, r.file, r.captions) for r in rows] == [
        (2, "a.safetensors", ("an otter, swimming",)), (4, "b;c", ("two", "three")),
    ]  # fmt: skip
    assert parse_table("a;one\nb;two", "t")[1].captions == ("two",)
    assert parse_table("a\tone, two", "t")[0].captions == ("one, two",)
    assert read_table("") == [] and read_table("x,otter\n")[0].file == "x"


def test_a_table_lies_where_the_user_means(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert table_path(" ~/captions.CSV ") == tmp_path / "captions.CSV"
    assert table_path("") is None and table_path("a,b\nc,d.csv") is None and table_path("a,otter") is None
    (tmp_path / "captions.csv").write_text("a,otter\n")
    assert read_table("~/captions.csv")[0].captions == ("otter",)


@pytest.mark.parametrize(("text", "said"), [
    ("a,one\nb\n", "line 2 of t has no caption for b"),
    ("file,caption\na,one\n,two\n", "line 3 of t names no file"),
])  # fmt: skip
def test_table_errors_name_the_line(text, said):
    with pytest.raises(LibraryError, match=said):
        parse_table(text, "t")


def test_table_files_that_cannot_be_read(tmp_path):
    with pytest.raises(LibraryError, match="cannot be read.*check the path"):
        read_table(str(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes(b"a,caf\xe9\n")
    with pytest.raises(LibraryError, match="not UTF-8.*save it as UTF-8"):
        read_table(tmp_path / "latin.csv")
    with pytest.raises(LibraryError, match="ends in .csv"):
        read_table(tmp_path / "passwd")


def test_rows_meet_files_with_and_without_folder_and_ending():
    entries = [entry("sub/Otter.safetensors", "1"), entry("fox.safetensors", "2"), entry("x/same.safetensors", "3"),
               entry("y/same.safetensors", "4")]  # fmt: skip
    rows = parse_table("otter,a\nsub\\Otter.safetensors,b\nFOX.safetensors,c\nsame,d\ny/same,e\nwolf,f\n", "t")
    found, notes = match(rows, entries)
    assert found == {"1": ("a", "b"), "2": ("c",), "4": ("e",)}
    assert "line 6 (wolf)" in notes[0] and "line 4 (same)" in notes[1] and len(notes) == 2


def test_a_row_for_a_file_that_could_not_be_read_is_named():
    found, notes = match(parse_table("otter,a\n", "t"), [entry("otter.safetensors", "")])
    assert found == {} and "line 1 (otter)" in notes[0]


def test_own_words_and_a_table_in_their_place():
    entries = [entry("otter.safetensors", "1", EntryText("otter", source="file name")),
               entry("b.safetensors", "2", EntryText("fox", ("red",), source="civitai"))]  # fmt: skip
    words = words_of_files(entries, {"2": ("a wolf",)})
    assert words["1"] == Words(("otter",), 0.5, "file name") and words["2"] == Words(("a wolf",), 1.0, "table")


def test_what_stands_under_many_files_is_left_out():
    words = {str(i): Words(("made with love", f"thing {i}"), 1.0, "x") for i in range(10)}
    words |= {f"z{i}": Words(("An Otter",), 1.0, "x") for i in range(3)}
    kept, common = without_common(words)
    assert common == ["made with love"] and kept["3"].lines == ("thing 3",) and len(kept) == 13


def test_groups_hang_together_and_never_lie_on_both_sides():
    hashes = [f"{i:02d}" for i in range(60)]
    words = {d: Words((f"words {i // 2}",), 1.0, "x") for i, d in enumerate(hashes[:50])}
    names = [entry(f"wolf-{i:06d}.safetensors", hashes[i]) for i in (3, 40)]
    groups = linked_groups(hashes, [*same_words(words), *same_names(names), ("00", "59")])
    assert groups[0] == groups[1] == groups[59] and groups[2] == groups[3] == groups[40] == groups[41]
    captioned = np.array([d in words for d in hashes])
    folds = folds_of(hashes, groups, captioned)
    for group in np.unique(groups):
        assert len(set(folds[groups == group])) == 1
    assert folds[59] == folds[0] >= 0 and (folds[50:59] == -1).all()
    sizes = np.bincount([folds[groups == g][0] for g in np.unique(groups[captioned])])
    assert sizes.max() - sizes.min() <= 1 and len(sizes) == 5
    back = folds_of(hashes[::-1], groups[::-1], captioned[::-1])
    assert (back[::-1] == folds).all()


def test_an_encoder_without_an_opinion_comes_last():
    right = np.eye(3, 6, dtype=bool)
    assert ranks_of(np.zeros((3, 6)), right).tolist() == [5, 5, 5]
    vectors = np.concatenate([np.zeros((1, 4)), np.eye(4), np.ones((1, 4))])
    scores = scores_of(vectors, np.eye(4)[:3], np.random.default_rng(0).normal(size=(50, 4)))
    assert ranks_of(scores, np.eye(3, 6, dtype=bool))[0] == 5


def test_chance_is_what_shuffling_gives():
    right, count = np.array([1, 2, 3]), 5
    found = [[], [], []]
    for number in right:
        ranks = [min(order.index(i) for i in range(number)) for order in itertools.permutations(range(count))]
        for out, value in zip(found, (np.equal(ranks, 0), np.less(ranks, 5), 1 / (1 + np.array(ranks))), strict=True):
            out.append(np.mean(value))
    np.testing.assert_allclose(chance(right, count), np.mean(found, axis=1), atol=1e-12)


def test_figures_verdict_and_beating():
    rng = np.random.default_rng(1)
    found = figures_of(np.array([0, 0, 4, 5]))
    assert (found.recall_at_1, found.recall_at_5) == (0.5, 0.75) and found.mrr == pytest.approx((2 + 0.2 + 1 / 6) / 4)
    assert found.mrr_interval[0] < found.mrr < found.mrr_interval[1]
    random, other = rng.integers(0, 100, 60), rng.integers(0, 100, 60)
    good = rng.integers(0, 6, 60)
    level = np.mean(1 / np.arange(1, 101))
    assert verdict_of(good, random, level).knows and beats(good, random)
    assert not verdict_of(random, other, level).knows and not beats(other, other)
    assert not verdict_of(good, good, level).above_control and verdict_of(good, good, level).above_chance


def test_nothing_random_is_often_taken_for_knowledge():
    rng, level = np.random.default_rng(2), np.mean(1 / np.arange(1, 61))
    wrong = sum(verdict_of(rng.integers(0, 60, 40), rng.integers(0, 60, 40), level).knows for _ in range(60))
    assert wrong <= 3


def test_principal_directions_are_those_of_the_svd():
    values = np.random.default_rng(3).normal(size=(20, 9)) * np.arange(1, 10)
    for rows in (values, values[:5]):
        mean, basis = principal(rows, 3)
        _, _, expected = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        np.testing.assert_allclose(np.abs(np.sum(basis * expected[:3], axis=1)), 1, atol=1e-5)
        np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-5)


def test_ridge_on_kernel_rows_is_ridge():
    rng = np.random.default_rng(4)
    inputs = Inputs(None, ())
    inputs.__dict__["rows"] = rng.normal(size=(12, 300)).astype(np.float32)
    known, Y = np.arange(12) < 8, rng.normal(size=(8, 3))
    wide = KernelRidge.fit(inputs.rows[known], Y)
    short = KernelRidge.fit(inputs.kernel_rows[known], Y)
    np.testing.assert_allclose(short.predict(inputs.kernel_rows), wide.predict(inputs.rows), atol=1e-4)
    np.testing.assert_allclose(short.loo(), wide.loo(), atol=1e-4)
