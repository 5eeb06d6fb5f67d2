"""Proves that an approximate search finds what exact search finds or is not used, is made once and kept, survives
damage and rows that come and go, and can be done without."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from autolora_core.library import approximate, quick
from autolora_core.library.approximate import DEPTH, NEAREST, Approximate, faiss_or_none, learnt, measured
from autolora_core.library.quick import EXACT, Quick
from autolora_core.library.table import Table

ROWS, DIM = 4000, 48


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(quick, "FROM", 100)
    monkeypatch.delenv(EXACT, raising=False)


def some_rows(count: int = ROWS, seed: int = 0) -> np.ndarray:
    """Most of a row lies along a few directions, as vectors of files do."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, DIM)) * np.geomspace(1, 0.1, DIM)).astype(np.float32)


def table_of(rows: np.ndarray) -> Table:
    rng = np.random.default_rng(len(rows))
    return Table(rows, rng.uniform(1, 3, len(rows)), rng.standard_normal(len(rows)))


def keys_of(count: int) -> list[str]:
    return [f"{number:064x}" for number in range(count)]


def quick_of(rows: np.ndarray, path=None, keys=None, texts=None) -> Quick:
    table = Table(rows, 1 + rows[:, 0].astype(np.float64) ** 2, rows[:, 1].astype(np.float64))
    return Quick(table, keys or keys_of(len(rows)), lambda: some_rows(40, 9) if texts is None else texts, path)


def recall(found: Approximate, asked: np.ndarray) -> float:
    found_of = [(found.table.best(query, NEAREST)[0], found.best(query, NEAREST)[0]) for query in asked]
    return float(np.mean([np.isin(right, best).mean() for right, best in found_of]))


def test_what_is_measured_is_what_questions_find():
    rows = some_rows()
    found = quick_of(rows)
    found.make()
    assert found.found is not None and found.measured.recall >= approximate.WANTED
    assert recall(found.found, some_rows(60, 5)) >= 0.97
    assert 7 * found.found.nbytes <= rows.nbytes


def test_scores_are_exact_and_levels_are_kept():
    held = quick_of(some_rows())
    held.make()
    for query in some_rows(20, 6):
        bound = held.found.bounds(query[None])[0]
        right = held.table.scores(np.arange(ROWS), query[None])[0]
        at, scores = held.found.best(query, 5)
        # Products of other shapes may differ in their last digit, as some processors' do; of one shape they are equal.
        np.testing.assert_array_max_ulp(scores, np.sort(right[at])[::-1], maxulp=16)
        rows = bound.likely(5)
        np.testing.assert_array_equal(scores, np.sort(held.table.scores(rows, query[None])[0])[::-1][:5])
        level = np.sort(right)[-DEPTH // 2]
        assert level > bound.trusted
        assert set(held.found.at_least(bound, query, level)) <= set(np.flatnonzero(right >= level))
        assert len(held.found.at_least(bound, query, level)) >= DEPTH // 2 - 2
        assert (bound.of(bound.rows) >= right[bound.rows]).all()
        low = np.sort(right)[-ROWS // 2]
        with pytest.raises(ValueError, match="known down to"):
            held.found.at_least(bound, query, low)
        exact = held.found.exact(query[None])[0]
        np.testing.assert_array_equal(held.found.at_least(exact, query, low), np.flatnonzero(right >= low))
    assert held.found.exactly == 20


def test_shifts_are_not_rounded_away():
    """Shifts that are small beside the rows decide which is best."""
    rows = np.repeat(some_rows(400), 10, axis=0)
    table = Table(rows, None, np.tile(np.linspace(0, 0.2, 10), 400))
    found = Approximate(faiss_or_none(), table, learnt(faiss_or_none(), table), approximate.Measured(300, 0, 0, {}))
    assert measured(found, some_rows(30, 3), np.arange(0, len(rows), 97)).candidates == 300 and found.measured.good


def test_the_same_rows_give_the_same_codes():
    table, faiss = table_of(some_rows()), faiss_or_none()
    one, other = learnt(faiss, table), learnt(faiss, table)
    for name in ("turn", "centroids", "codes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_more_candidates_until_it_is_good_enough(monkeypatch):
    """On rows without any direction of their own few axes say little: it takes all rows, or exact search stays."""
    rows = np.random.default_rng(1).standard_normal((ROWS, 300)).astype(np.float32)
    texts = np.random.default_rng(2).standard_normal((30, 300)).astype(np.float32)
    held = quick_of(rows, texts=texts)
    held.make()
    assert held.measured.candidates > approximate.CANDIDATES[0]
    monkeypatch.setattr(approximate, "CANDIDATES", (60, 61))
    held = quick_of(rows, texts=texts)
    held.make()
    assert held.ready() is None and held.measured.candidates == 61
    assert "exact" in held.line() and "are wanted" in held.line() and "are wanted" in held.note(None)


def test_kept_and_opened_again_without_learning(tmp_path, monkeypatch):
    rows, path = some_rows(), tmp_path / "search.arrays"
    first = quick_of(rows, path)
    first.make()
    monkeypatch.setattr(approximate, "learnt", None)
    again = quick_of(rows, path)
    assert again.ready() is not None, "opened at once, nothing is made"
    assert again.measured == first.measured and again.line() == first.line()
    for query in some_rows(10, 4):
        np.testing.assert_array_equal(first.found.best(query, 10)[0], again.found.best(query, 10)[0])
    again.make()


DAMAGES = [
    "flip", "cut", "empty", "garbage", "other version", "other axes", "huge stretch", "no codes", "strange figures",
    "strange keys",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_made_again(tmp_path, damage):
    from autolora_core.library.array_file import open_arrays, save_arrays

    rows, path = some_rows(), tmp_path / "search.arrays"
    quick_of(rows, path).make()
    whole = path.read_bytes()
    said, arrays = open_arrays(path)
    if damage == "flip":
        path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    elif damage in ("cut", "empty", "garbage"):
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"x" * 5000}[damage])
    else:
        said |= {
            "other version": {"version": 0}, "huge stretch": {"stretch": float("inf")},
            "strange figures": {"measured": [1]}, "strange keys": {"order": ""},
        }.get(damage, {})  # fmt: skip
        arrays = {name: array.copy() for name, array in arrays.items()}
        if damage == "other axes":
            arrays["turn"] = arrays["turn"][:, :-1]
        if damage == "strange keys":
            arrays["keys"] = arrays["keys"].reshape(2, -1)
        if damage == "no codes":
            del arrays["codes"]
        save_arrays(path, said, arrays)
    again = quick_of(rows, path)
    again.ready()
    again.wait(60)
    assert again.ready() is not None
    assert path.read_bytes() == whole


def test_removed_rows_are_never_found_and_new_ones_are(tmp_path, monkeypatch):
    rows, keys, path = some_rows(), keys_of(ROWS), tmp_path / "search.arrays"
    quick_of(rows, path).make()
    monkeypatch.setattr(approximate, "learnt", None)
    new = some_rows(200, 8)
    left = np.arange(ROWS) % 7 != 0
    held = np.concatenate([rows[left], new])
    names = [*np.array(keys)[left].tolist(), *(f"new {i}" for i in range(len(new)))]
    order = np.random.default_rng(0).permutation(len(held))
    later = quick_of(held[order], path, [names[i] for i in order])
    assert later.ready() is not None
    assert recall(later.found, some_rows(60, 5)) >= 0.97
    assert recall(later.found, new[:60]) >= 0.97
    assert max(later.found.best(query, 40)[0].max() for query in some_rows(60, 5)) < len(held)


def test_too_many_new_rows_are_learnt_anew(tmp_path):
    path = tmp_path / "search.arrays"
    quick_of(some_rows(1000), path).make()
    before = path.read_bytes()
    later = quick_of(some_rows(1300), path)
    assert later.ready() is None, "exact until it is there"
    later.wait(60)
    assert later.ready() is not None and path.read_bytes() != before


def test_two_readers_make_it_once_and_never_wait(monkeypatch):
    held, go, made = quick_of(some_rows()), threading.Event(), []
    slow = approximate.learnt
    monkeypatch.setattr(approximate, "learnt", lambda *arguments: go.wait(60) and (made.append(1), slow(*arguments))[1])
    assert [held.ready() for _ in range(3)] == [None] * 3
    assert "background" in held.note(None)
    go.set()
    held.wait(60)
    assert held.ready() is not None and made == [1]


def test_two_open_one_file(tmp_path):
    rows, path = some_rows(), tmp_path / "search.arrays"
    held = [quick_of(rows, path) for _ in range(2)]
    for one in held:
        one.ready()
    for one in held:
        one.wait(60)
    third = quick_of(rows, path)
    answers = [one.ready().best(rows[3], 10)[0].tolist() for one in (*held, third)]
    assert answers[0] == answers[1] == answers[2]


def test_interrupted_leaves_nothing_and_is_begun_again(tmp_path):
    def stop(done: int, total: int) -> None:
        assert 0 <= done < total
        if done > total / 2:
            raise KeyboardInterrupt

    held = quick_of(some_rows(20_000), tmp_path / "search.arrays")
    with pytest.raises(KeyboardInterrupt):
        held.make(stop)
    assert held.found is None and not list(tmp_path.iterdir())
    held.make()
    assert held.ready() is not None


@pytest.mark.parametrize("why", ["faiss", "old faiss", "forced", "small", "a fault"])
def test_exact_where_it_cannot_or_must_not_be(monkeypatch, why):
    held, said = quick_of(some_rows()), {"faiss": "not installed", "old faiss": "too old", "forced": EXACT}.get(why)
    if why == "faiss":
        monkeypatch.setitem(sys.modules, "faiss", None)
    elif why == "old faiss":
        monkeypatch.delattr("faiss.IndexPQFastScan")
    elif why == "forced":
        monkeypatch.setenv(EXACT, "1")
    elif why == "small":
        monkeypatch.setattr(quick, "FROM", ROWS + 1)
    else:
        monkeypatch.setattr(approximate, "learnt", lambda *_: 1 / 0)
    assert held.ready() is None
    held.wait(60)
    assert held.ready() is None
    if why == "a fault":
        assert "ZeroDivisionError" in held.note(None)
    if why == "small":
        assert held.line() is None and held.note(None) is None
    elif said:
        assert said in held.line() and said in held.note(None)
