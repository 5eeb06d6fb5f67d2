"""Proves that a LoRA's response to a text is the one its dense ΔW gives, whatever factorisation, sign or scale; that
image tokens are read about their own place's mean; and that what is stored keeps its size and its order."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from encode_worlds import FakeUpdate, dense_of, lowrank, seeded

from autolora_core.encode import response as scoring
from autolora_core.encode import response_factors as module
from autolora_core.encode.factor_table import FactorTable, SpaceRows, quantised
from autolora_core.encode.input_states import TextStates, UsualStates
from autolora_core.encode.response import response
from autolora_core.encode.response_factors import (
    MAX_BYTES,
    ResponseFactors,
    input_rows,
    kept,
    leading_rows,
    response_factors,
)
from autolora_core.encode.spaces import CONTEXT, Space

PICTURE, PLACES = "joint_blocks.0.x_block.attn.proj", 5
IMAGE = f"{PICTURE}@image"
QKV, FC1 = "joint_blocks.0.context_block.attn.qkv", "joint_blocks.0.context_block.mlp.fc1"
WIDTH = 24


READINGS = [QKV, FC1, IMAGE]


def states(readings: list[str], counts: list[int], seed: int = 0, width: int = WIDTH) -> TextStates:
    g = seeded(seed)
    rows = {name: PLACES * len(counts) if name.endswith("@image") else sum(counts) for name in readings}
    tokens = {name: torch.randn(count, width, generator=g).numpy() for name, count in rows.items()}
    return TextStates(np.array(counts, int), tokens)


def means(readings: list[str], counts: list[int], seed: int = 5, width: int = WIDTH) -> dict[str, np.ndarray]:
    usual = UsualStates()
    usual.add(states(readings, counts, seed, width))
    return usual.means()


def exact_table(factors: ResponseFactors) -> FactorTable:
    """One file's factors unquantised: float rows with scale one."""
    spaces = {
        (name, rows.shape[1]): SpaceRows(np.zeros(1, int), rows[None], np.ones((1, len(rows))))
        for name, rows in factors.rows.items()
    }
    return FactorTable(("a",), spaces)


def response_ref(deltas: dict[str, list[np.ndarray]], texts: TextStates, mean: dict[str, np.ndarray]) -> list[float]:
    """The formula of the module docstring on dense matrices, token by token, float64."""
    out, start = [], 0
    for text, count in enumerate(texts.counts):
        logs = []
        for name, parts in deltas.items():
            whole = np.concatenate(parts)
            image = name.endswith("@image")
            rows = range(PLACES * text, PLACES * (text + 1)) if image else range(start, start + count)
            top = bottom = 0.0
            for place, row in enumerate(rows):
                token = texts.tokens[name][row].astype(np.float64) - mean[name][place if image else 0]
                answer = whole @ token
                top, bottom = top + answer @ answer, bottom + token @ token
            logs.append(math.log(top / bottom / (whole**2).sum()))
        out.append(sum(logs) / len(logs))
        start += count
    return out


def file(seed: int = 1, rank: int = 4) -> list[FakeUpdate]:
    """q, k and v apart (one input), an MLP, and a layer that reads the picture."""
    parts = [lowrank(f"{QKV}[{i * WIDTH}:{(i + 1) * WIDTH}]", WIDTH, WIDTH, rank, seed * 10 + i) for i in range(3)]
    other = lowrank(PICTURE, 3 * WIDTH, WIDTH, rank, seed * 10 + 4)
    return [*parts, lowrank(FC1, 4 * WIDTH, WIDTH, rank, seed * 10 + 3), other]


def test_response_is_that_of_the_dense_update():
    updates, texts = file(rank=1), states(READINGS, [3, 1, 5])
    mean = means(READINGS, [7, 2])
    deltas = {QKV: [dense_of(u).numpy() for u in updates[:3]]}
    deltas |= {FC1: [dense_of(updates[3]).numpy()], IMAGE: [dense_of(updates[4]).numpy()]}
    factors = response_factors(updates, "emoji")
    assert list(factors.rows) == [QKV, PICTURE, FC1]
    assert len(factors.rows[QKV]) == 3, "q, k and v of rank one are three rows"
    assert mean[IMAGE].shape == (PLACES, WIDTH) and mean[QKV].shape == (1, WIDTH)
    found = response(exact_table(factors), texts, mean)[0]
    assert np.allclose(found, response_ref(deltas, texts, mean), atol=2e-6)


def refactorised(update: FakeUpdate, seed: int, scale: float = 1.0) -> FakeUpdate:
    """Another pair of factors of ``scale`` times the same ΔW: A → RA, B → BR⁻¹."""
    r = torch.randn(update.down.shape[0], update.down.shape[0], generator=seeded(seed), dtype=torch.float64)
    return replace(update, down=r @ update.down, up=scale * update.up @ torch.linalg.inv(r))


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-4, 250.0])
def test_nothing_depends_on_factorisation_sign_or_scale(scale):
    updates = file()
    one = response_factors(updates, "emoji")
    two = response_factors([refactorised(u, 7 + i, scale) for i, u in enumerate(updates)], "emoji")
    assert list(one.rows) == list(two.rows)
    assert max(np.abs(one.rows[name] - two.rows[name]).max() for name in one.rows) <= 1e-6


def test_order_of_the_modules_does_not_matter_and_dense_is_low_rank():
    updates = file()
    dense = [FakeUpdate(u.module, "dense", dense=dense_of(u)) for u in reversed(updates)]
    one, two = response_factors(updates, "emoji"), response_factors(dense, "emoji")
    texts, mean = states(READINGS, [2, 3]), means(READINGS, [7, 2])
    same = response(exact_table(one), texts, mean) - response(exact_table(two), texts, mean)
    assert list(one.rows) == list(two.rows) and np.abs(same).max() <= 1e-6


def test_input_rows_have_the_gram_matrix_of_the_update():
    update = lowrank(QKV, 40, WIDTH, 6, 3)
    rows, dense = input_rows(update), dense_of(update)
    assert rows.shape == (6, WIDTH)
    assert torch.allclose(rows.T @ rows, dense.T @ dense, atol=1e-9)


def test_large_stacks_give_nearly_the_same_leading_rows(monkeypatch):
    g = seeded(2)
    matrix = torch.randn(90, 70, generator=g, dtype=torch.float64) * torch.logspace(0, -2, 70, dtype=torch.float64)
    exact = leading_rows(matrix, 5)
    monkeypatch.setattr(module, "EXACT_SIDE", 16)
    found = leading_rows(matrix, 5)
    assert (found - exact).abs().max() < 0.003 and (found.T @ found - exact.T @ exact).abs().max() < 3e-4
    _, sigma, _ = torch.linalg.svd(matrix)
    assert torch.allclose(torch.linalg.vector_norm(exact, dim=1), sigma[:5] / torch.linalg.vector_norm(sigma))


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_rows_of_a_large_stack_answer_as_the_best_ones(decay):
    """Many layers that read along common directions: 0.99 of what the best rows hold, and answers move by less than
    what keeping the rows in eight bits costs (0.03)."""
    g = seeded(3)
    common = torch.linalg.qr(torch.randn(640, 200, generator=g, dtype=torch.float64)).Q.T
    fade = torch.arange(1, 201, dtype=torch.float64) ** -decay
    matrix = torch.randn(900, 200, generator=g, dtype=torch.float64) * fade @ common
    matrix += 0.01 * torch.randn(900, 640, generator=g, dtype=torch.float64)
    found, (_, sigma, vt) = leading_rows(matrix, 48), torch.linalg.svd(matrix / torch.linalg.matrix_norm(matrix))
    best = sigma[:48, None] * vt[:48]
    assert 0.99 < found.square().sum() / best.square().sum() <= 1
    tokens = torch.randn(30, 77, 200, generator=g, dtype=torch.float64) @ common
    answers = [(tokens @ rows.T).square().sum(dim=(1, 2)).log() for rows in (found, best)]
    assert (answers[0] - answers[1]).abs().max() < 0.03 and (answers[0] - answers[1]).std() < 0.005


def test_zero_absent_and_damaged_layers_are_no_response():
    zero = [replace(u, up=torch.zeros_like(u.up)) for u in file()]
    broken = [replace(u, up=u.up * float("nan")) for u in file()]
    assert response_factors(zero, "emoji") is response_factors(broken, "emoji") is None
    assert response_factors(file(), "unknown") is None
    assert response_factors([FakeUpdate(QKV, "not_additive", rule="oft")], "emoji") is None
    one_zero = response_factors([zero[0], *file()[3:]], "emoji")
    assert list(one_zero.rows) == [PICTURE, FC1]


@pytest.mark.parametrize("width", [256, 768, 1024, 1536, 2048, 2432, 3072, 3840, 5120, 6144])
def test_a_file_is_kept_small(width):
    for count in (1, 2, 4, 20, 60):
        spaces = [Space(CONTEXT, None, order=(0, 0))] + [Space(f"s{i}", f"s{i}", order=(1, i)) for i in range(count)]
        for widths in ({space: width for space in spaces}, {space: width for space in spaces[1:]}):
            rows = kept(widths)
            assert rows and sum(widths[space] * most for space, most in rows.items()) <= MAX_BYTES
            assert list(rows) == sorted(widths, key=lambda space: space.order)[: len(rows)]
            assert min(rows.values()) >= 2


def test_narrow_layers_get_four_rows_wide_ones_two_and_a_shared_text_many():
    spaces = {Space(f"s{i}", f"s{i}", order=(1, i)): 256 if i % 4 else 1024 for i in range(29)}
    assert set(kept(spaces).values()) == {4} and len(kept(spaces)) == 29, "the demo base is kept whole"
    wide = {space: 3072 for space in spaces}
    assert set(kept(wide).values()) == {2} and len(kept(wide)) == 15
    context = Space(CONTEXT, None, order=(0, 0))
    assert kept({context: 768})[context] == 41 and kept({context: 2048})[context] == 15


def test_a_file_keeps_its_first_spaces_and_leading_rows():
    parts = ("txt_attn.qkv", "img_attn.proj", "txt_mlp.0")
    names = [f"double_blocks.{n}.{part}" for n in range(7) for part in parts]
    updates = [lowrank(name, 64, 3072, 5, seed) for seed, name in reversed(list(enumerate(names)))]
    factors = response_factors([*updates, lowrank("double_blocks.18.txt_mlp.0", 64, 3072, 5, 99)], "flux")
    assert list(factors.rows) == names[:15]
    for rows in factors.rows.values():
        lengths = np.linalg.norm(rows, axis=1)
        assert rows.shape == (2, 3072) and (np.diff(lengths) < 0).all() and np.square(lengths).sum() < 1


def test_storing_costs_little_precision():
    factors = [response_factors(file(seed), "emoji") for seed in range(1, 4)]
    texts, mean = states(READINGS, [4, 2, 6, 3]), means(READINGS, [7, 2])
    table = FactorTable.of({str(i): found for i, found in enumerate(factors)})
    exact = np.concatenate([response(exact_table(found), texts, mean) for found in factors])
    assert all(own.rows.dtype == np.int8 for own in table.spaces.values())
    assert np.abs(response(table, texts, mean) - exact).max() < 0.03
    rows, scale = quantised(factors[0].rows[QKV])
    assert np.abs(rows * scale[..., None] - factors[0].rows[QKV]).max() <= scale.max() / 2 + 1e-9


def mixed_table() -> FactorTable:
    both, last = response_factors(file(1), "emoji"), response_factors(file(2)[3:4], "emoji")
    first, picture = response_factors(file(3)[:3], "emoji"), response_factors(file(4)[4:], "emoji")
    return FactorTable.of({"all": both, "fc1 only": last, "qkv only": first, "picture only": picture})


def test_files_are_scored_by_the_spaces_they_have():
    table = mixed_table()
    texts, mean = states(READINGS, [2, 3]), means(READINGS, [7, 2])
    together = response(table, texts, mean)
    for i in range(len(table)):
        assert np.allclose(response(table.part([i]), texts, mean)[0], together[i], atol=1e-5)
    part = TextStates(texts.counts, {QKV: texts.tokens[QKV]})
    assert np.isnan(response(table, part, mean)[[1, 3]]).all()
    assert np.isfinite(response(table, part, mean)[[0, 2]]).all()
    assert table.part([1, 3]).hashes == ("fc1 only", "picture only") and table.part([1]).id != table.id


def test_blocks_do_not_change_the_scores(monkeypatch):
    table, texts = mixed_table(), states(READINGS, [2, 3, 9])
    mean = means(READINGS, [7, 2])
    whole = response(table, texts, mean)
    monkeypatch.setattr(scoring, "BLOCK_NUMBERS", 1)
    assert np.allclose(response(table, texts, mean), whole, atol=1e-5)


def test_states_of_another_width_and_no_texts_score_nothing():
    table, mean = mixed_table(), means(READINGS, [7, 2], width=8)
    assert np.isnan(response(table, states(READINGS, [2], width=8), mean)).all()
    assert response(table, states(READINGS, []), mean).shape == (4, 0)


def test_one_table_holds_files_of_several_widths():
    narrow = [lowrank(QKV, 12, 8, 2, 1)]
    table = FactorTable.of({"wide": response_factors(file(1), "emoji"), "narrow": response_factors(narrow, "emoji")})
    mean = means([QKV], [7, 2], width=8)
    found = response(table, states([QKV], [2, 3], width=8), mean)
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


def test_inputs_that_no_prompt_moves_are_left_out():
    texts = states(READINGS, [2, 3])
    still = np.tile(np.arange(PLACES * WIDTH, dtype=np.float32).reshape(PLACES, WIDTH), (2, 1))
    usual = UsualStates()
    usual.add(TextStates(texts.counts, {**texts.tokens, IMAGE: still + 1e-4 * texts.tokens[IMAGE]}))
    assert set(usual.means()) == {QKV, FC1}


def test_usual_states_are_means_by_token_and_by_place():
    one, two = states(READINGS, [2, 3], seed=1), states(READINGS, [4], seed=2)
    usual = UsualStates()
    for part in (one, two):
        usual.add(part)
    both = TextStates.join([one, two])
    found = usual.means()
    assert np.allclose(found[QKV], both.tokens[QKV].mean(axis=0, keepdims=True), atol=1e-6)
    places = both.tokens[IMAGE].reshape(3, PLACES, WIDTH).mean(axis=0)
    assert np.allclose(found[IMAGE], places, atol=1e-6)


def test_texts_can_be_taken_apart_and_joined():
    texts = states([QKV, IMAGE], [2, 3, 1])
    again = TextStates.join([texts.part([0]), texts.part([1, 2])])
    assert (again.counts == texts.counts).all()
    assert all((again.tokens[name] == texts.tokens[name]).all() for name in (QKV, IMAGE))
    turned = texts.part([2, 0])
    assert (turned.tokens[QKV] == texts.tokens[QKV][[5, 0, 1]]).all()
    assert (turned.tokens[IMAGE] == texts.tokens[IMAGE][[*range(10, 15), *range(5)]]).all()
    assert len(texts.part([])) == 0
