"""Proves that leaving most LoRAs unscored changes no answer: picks, scores, parts, reasons and neighbours are those of
a search that scores every LoRA for every phrase, on libraries made so that ties, copies and popular words abound."""

from __future__ import annotations

import numpy as np
import pytest
from retrieve_worlds import TopicTower, weights_world

from autolora_core.encode.towers import LexicalTower
from autolora_core.library import table
from autolora_core.library.grid import WIDTH, Grid
from autolora_core.library.table import Table
from autolora_core.retrieve import finalists, leaders, neighbours, score
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.view import MemoryView, ViewEntry, ViewText

WORDS = ["fox", "otter", "castle", "anime", "watercolour", "pixel art", "red", "blue", "girl", "city", "style", "neon"]
PROMPTS = [
    "a red fox in watercolour style, anime girl", "blue otter and a castle of a fox at dusk",
    "topic7 in topic9 style, topic200 by topic3", "a quokka", "pixel art, topic12 girl",
]  # fmt: skip
OPTIONS = [{}, {"top_k": 7, "threshold": 0.05}, {"use_text": False}, {"use_weights": False}, {"banned": ["file_1*"]},
           {"pinned": ["file_003"], "top_k": 2}, {"top_k": 0}]  # fmt: skip


def crowded(seed: int) -> MemoryView:
    """Weights of :func:`weights_world` with words drawn from few: many LoRAs say the same."""
    view, _ = weights_world(160, 60, 0.3, twins=8)
    rng = np.random.default_rng(seed)
    held = []
    for i, entry in enumerate(view.held):
        drawn = [str(word) for word in rng.choice(WORDS, 4)]
        text = ViewText(
            title=entry.text.title if i % 3 else " ".join(drawn[:2]), tags=tuple(drawn[: i % 4]),
            triggers=(f"trg{i % 20}",) if i % 2 else (), description=" ".join(drawn) if i % 5 == 0 else "",
        )  # fmt: skip
        held.append(ViewEntry(entry.name, entry.hash, text=text if rng.random() < 0.8 else ViewText()))
    rows = rng.standard_normal((len(held), WIDTH)).astype(np.float32)
    rows[1::4] = rows[::4][: len(rows[1::4])] + 0.6 * rows[1::4]
    grid = Grid("emoji", tuple(sorted(entry.hash for entry in held)), rows)
    return MemoryView(held, view.encoders, view.encoded, view.duplicates, grids={"emoji": grid})


def answers(view: MemoryView, tower) -> list[dict]:
    return [
        retrieve(view, prompt, tower=tower, **options).to_json() for prompt in PROMPTS for options in OPTIONS
    ]  # fmt: skip


@pytest.mark.parametrize("tower", [TopicTower(), LexicalTower()], ids=lambda tower: tower.id)
def test_answers_are_those_of_scoring_every_lora(monkeypatch, tower):
    view = crowded(4)
    view.handle = {"crowded": tower.id}
    whole = answers(view, tower)
    scored = []
    parts = score.Scorer.parts
    monkeypatch.setattr(
        score.Scorer, "parts", lambda self, asked, loras: scored.append(len(loras)) or parts(self, asked, loras)
    )
    monkeypatch.setattr(finalists, "WHOLE", 0)
    monkeypatch.setattr(finalists, "BEGIN", 2)
    monkeypatch.setattr(finalists, "MANY", 4)
    monkeypatch.setattr(leaders, "BEGIN", 1)
    monkeypatch.setattr(leaders, "BLOCK", 8)
    view.handle = {"crowded": tower.id, "again": True}  # made ready again, too
    again = answers(view, tower)
    for one, other in zip(whole, again, strict=True):
        assert {**one, "index": None} == {**other, "index": None}
    assert any(one["picks"] for one in whole) and any(pick["neighbours"] for one in whole for pick in one["misses"])
    assert np.median(scored) < len(view.held) / 2, "most were not scored"


def test_neighbours_found_by_bounds_are_those_of_all_cosines(monkeypatch):
    view = crowded(5)
    view.handle = {"crowded": 5}
    one = [pick["neighbours"] for found in answers(view, TopicTower()) for pick in found["misses"]]
    view.handle = {"crowded": 5, "again": True}
    monkeypatch.setattr(neighbours, "SAMPLED", len(view.held) - 1)
    other = [pick["neighbours"] for found in answers(view, TopicTower()) for pick in found["misses"]]
    assert one == other and any(one)


@pytest.mark.parametrize("shape", [(5000, 384), (700, 64), (300, 600), (65, 3), (1, 8)])
@pytest.mark.parametrize("eight_bits", [True, False])
def test_no_score_exceeds_its_bound(monkeypatch, shape, eight_bits):
    """Rows of any length, near a few directions or anywhere, and rows that are zero."""
    monkeypatch.setattr(table, "_eight_bits", lambda: eight_bits)
    rng = np.random.default_rng(shape[0])
    rows = rng.standard_normal(shape) * 0.2 + rng.standard_normal((shape[0], 4)) @ rng.standard_normal((4, shape[1]))
    rows[::7] *= 1e-3
    rows[3::50] = 0
    scale, shift = rng.uniform(0.1, 20, shape[0]), rng.standard_normal(shape[0])
    held = Table(rows.astype(np.float32), scale, shift)
    asked = np.concatenate([rows[:2] + 0.01, rng.standard_normal((6, shape[1]))]).astype(np.float32)
    exact = np.array([[np.dot(np.float64(row), np.float64(query)) for row in held.rows] for query in asked])
    exact = exact * scale + shift
    found = held.bounds(asked)
    bounds = np.stack([bound.values for bound in found])
    assert (bounds >= exact).all() and np.median(bounds - exact) < np.ptp(exact)
    for bound, query, right in zip(found, asked, exact, strict=True):
        level = np.sort(right)[-min(9, len(right))] + 1e-9
        assert np.array_equal(held.at_least(bound, query, level), np.flatnonzero(right >= level))
        at, scores = held.best(query, 7)
        assert np.array_equal(at, np.lexsort((np.arange(len(right)), -right))[:7])
        np.testing.assert_allclose(scores, right[at], rtol=1e-9)


def test_the_last_of_the_best_is_not_lost_to_rounding():
    """The level of the last place is the score of a row, computed once more in a product of another shape."""
    rng = np.random.default_rng(3)
    rows = (rng.standard_normal((12_000, 384)) * np.geomspace(1, 0.02, 384)).astype(np.float32)
    held = Table(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    for query in held.rows[:60] + 0.01 * rng.standard_normal((60, 384)).astype(np.float32):
        at, _ = held.best(query, 10)
        right = held.rows.astype(np.float64) @ query.astype(np.float64)
        assert at.tolist() == np.argsort(-right, kind="stable")[:10].tolist()


def test_best_of_many_rows_breaks_ties_by_row(monkeypatch):
    monkeypatch.setattr(table, "FEW", 10)
    rows = np.repeat(np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32), 3, axis=0)
    at, _ = Table(rows).best(rows[300], 6)
    assert at[:3].tolist() == [300, 301, 302] and at[3] % 3 == 0
