"""Proves that a LoRA's response to a text is the one its dense ΔW gives, whatever factorisation, sign or scale; that
what is stored keeps its size and its order; and that every base's text-fed layers are found under their names."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from encode_worlds import FakeUpdate, dense_of, lowrank, seeded

from autolora_core.encode import response as module
from autolora_core.encode.response import (
    FactorTable,
    ResponseFactors,
    TextStates,
    input_rows,
    kept,
    leading_rows,
    quantised,
    response,
    response_factors,
)
from autolora_core.encode.text_fed import named_space, space_of

QKV, FC1 = "joint_blocks.0.context_block.attn.qkv", "joint_blocks.0.context_block.mlp.fc1"
WIDTH = 24


def states(spaces: list[str], counts: list[int], seed: int = 0, width: int = WIDTH) -> TextStates:
    g = seeded(seed)
    tokens = {name: torch.randn(sum(counts), width, generator=g).numpy() for name in spaces}
    return TextStates(np.array(counts, int), tokens)


def exact_table(factors: ResponseFactors) -> FactorTable:
    """One file's factors unquantised: float rows with scale one."""
    place = np.arange(len(factors.spaces), dtype=np.int16)[None]
    return FactorTable(("a",), factors.spaces, place, factors.rows[None], np.ones((1, *factors.rows.shape[:2])))


def response_ref(deltas: dict[str, list[np.ndarray]], texts: TextStates, mean: dict[str, np.ndarray]) -> list[float]:
    """The formula of the module docstring on dense matrices, token by token, float64."""
    out, start = [], 0
    for count in texts.counts:
        logs = []
        for name, parts in deltas.items():
            whole = np.concatenate(parts)
            top = bottom = 0.0
            for token in texts.tokens[name][start : start + count].astype(np.float64) - mean[name]:
                answer = whole @ token
                top, bottom = top + answer @ answer, bottom + token @ token
            logs.append(math.log(top / bottom / (whole**2).sum()))
        out.append(sum(logs) / len(logs))
        start += count
    return out


def file(seed: int = 1, rank: int = 4) -> list[FakeUpdate]:
    """q, k and v apart (one input), an MLP, and a layer that reads no text."""
    parts = [lowrank(f"{QKV}[{i * WIDTH}:{(i + 1) * WIDTH}]", WIDTH, WIDTH, rank, seed * 10 + i) for i in range(3)]
    other = lowrank("joint_blocks.0.x_block.attn.qkv", 3 * WIDTH, WIDTH, rank, seed * 10 + 4)
    return [*parts, lowrank(FC1, 4 * WIDTH, WIDTH, rank, seed * 10 + 3), other]


def test_response_is_that_of_the_dense_update():
    updates, texts = file(), states([QKV, FC1], [3, 1, 5])
    mean = states([QKV, FC1], [7], seed=5).mean()
    deltas = {QKV: [dense_of(u).numpy() for u in updates[:3]], FC1: [dense_of(updates[3]).numpy()]}
    factors = response_factors(updates, "emoji")
    assert factors.spaces == (QKV, FC1)
    assert factors.rows.shape[1] >= 3 * 4, "q, k and v of rank 4 need twelve rows"
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
    assert one.spaces == two.spaces
    assert np.abs(one.rows - two.rows).max() <= 1e-6


def test_order_of_the_modules_does_not_matter_and_dense_is_low_rank():
    updates = file()
    dense = [FakeUpdate(u.module, "dense", dense=dense_of(u)) for u in reversed(updates)]
    one, two = response_factors(updates, "emoji"), response_factors(dense, "emoji")
    texts, mean = states([QKV, FC1], [2, 3]), states([QKV, FC1], [7], seed=5).mean()
    same = response(exact_table(one), texts, mean) - response(exact_table(two), texts, mean)
    assert one.spaces == two.spaces and np.abs(same).max() <= 1e-6


def test_input_rows_have_the_gram_matrix_of_the_update():
    update = lowrank(QKV, 40, WIDTH, 6, 3)
    rows, dense = input_rows(update), dense_of(update)
    assert rows.shape == (6, WIDTH)
    assert torch.allclose(rows.T @ rows, dense.T @ dense, atol=1e-9)


def test_large_stacks_give_the_same_leading_rows(monkeypatch):
    g = seeded(2)
    matrix = torch.randn(90, 70, generator=g, dtype=torch.float64) * torch.logspace(0, -2, 70, dtype=torch.float64)
    exact = leading_rows(matrix, 5)
    monkeypatch.setattr(module, "EXACT_SIDE", 16)
    found = leading_rows(matrix, 5)
    assert torch.allclose(found, exact, atol=1e-6)
    _, sigma, _ = torch.linalg.svd(matrix)
    assert torch.allclose(torch.linalg.vector_norm(exact, dim=1), sigma[:5] / torch.linalg.vector_norm(sigma))


def test_zero_absent_and_damaged_layers_are_no_response():
    zero = [replace(u, up=torch.zeros_like(u.up)) for u in file()]
    broken = [replace(u, up=u.up * float("nan")) for u in file()]
    assert response_factors(zero, "emoji") is response_factors(broken, "emoji") is None
    assert response_factors(file()[4:], "emoji") is None
    assert response_factors(file(), "unknown") is None
    assert response_factors([FakeUpdate(QKV, "not_additive", rule="oft")], "emoji") is None
    one_zero = response_factors([zero[0], *file()[3:]], "emoji")
    assert one_zero.spaces == (FC1,)


@pytest.mark.parametrize("width", [256, 768, 1024, 1536, 2048, 2432, 3072, 3840, 5120, 6144])
def test_a_file_costs_at_most_forty_kilobytes(width):
    for spaces in (1, 2, 4, 20):
        count, rows = kept(width, spaces)
        assert 1 <= count <= spaces and rows >= 3 and count * rows * width <= 40_000


def test_a_file_keeps_its_first_spaces_and_leading_rows():
    updates = [lowrank(f"double_blocks.{n}.txt_mlp.0", 64, 3072, 5, n) for n in (6, 2, 0, 18)]
    updates += [lowrank(f"double_blocks.{n}.txt_attn.qkv", 64, 3072, 5, 30 + n) for n in (0, 2, 4)]
    factors = response_factors(updates, "flux")
    firsts = [f"double_blocks.{n}.{part}" for n in (0, 2) for part in ("txt_attn.qkv", "txt_mlp.0")]
    assert list(factors.spaces) == firsts
    assert factors.rows.shape == (4, 3, 3072)
    lengths = np.linalg.norm(factors.rows, axis=2)
    assert (np.diff(lengths, axis=1) < 0).all() and (np.square(lengths).sum(axis=1) < 1).all()


def test_storing_costs_little_precision():
    factors = [response_factors(file(seed), "emoji") for seed in range(1, 4)]
    texts, mean = states([QKV, FC1], [4, 2, 6, 3]), states([QKV, FC1], [7], seed=5).mean()
    table = FactorTable.of({str(i): found for i, found in enumerate(factors)})
    exact = np.concatenate([response(exact_table(found), texts, mean) for found in factors])
    assert table.rows.dtype == np.int8 and np.abs(response(table, texts, mean) - exact).max() < 0.02
    rows, scale = quantised(factors[0].rows)
    assert np.abs(rows * scale[..., None] - factors[0].rows).max() <= scale.max() / 2 + 1e-9


def mixed_table() -> FactorTable:
    both, last = response_factors(file(1), "emoji"), response_factors(file(2)[3:], "emoji")
    first = response_factors(file(3)[:3], "emoji")
    return FactorTable.of({"both": both, "fc1 only": last, "qkv only": first})


def test_files_are_scored_by_the_spaces_they_have():
    table = mixed_table()
    texts, mean = states([QKV, FC1], [2, 3]), states([QKV, FC1], [7], seed=5).mean()
    together = response(table, texts, mean)
    for i, digest in enumerate(table.hashes):
        alone = FactorTable(
            (digest,), table.spaces, table.place[i : i + 1], table.rows[i : i + 1], table.scale[i : i + 1]
        )
        assert np.allclose(response(alone, texts, mean)[0], together[i], atol=1e-5)
    part = TextStates(texts.counts, {QKV: texts.tokens[QKV]})
    assert np.isnan(response(table, part, mean)[1]).all()
    assert np.isfinite(response(table, part, mean)[[0, 2]]).all()


def test_blocks_do_not_change_the_scores(monkeypatch):
    table, texts = mixed_table(), states([QKV, FC1], [2, 3, 9])
    mean = states([QKV, FC1], [7], seed=5).mean()
    whole = response(table, texts, mean)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 1)
    assert np.allclose(response(table, texts, mean), whole, atol=1e-5)


def test_states_of_another_width_and_no_texts_score_nothing():
    table, mean = mixed_table(), states([QKV, FC1], [7], seed=5, width=8).mean()
    assert np.isnan(response(table, states([QKV, FC1], [2], width=8), mean)).all()
    assert response(table, states([QKV, FC1], []), mean).shape == (3, 0)


def test_texts_can_be_taken_apart_and_joined():
    texts = states([QKV], [2, 3, 1])
    again = TextStates.join([texts.part([0]), texts.part([1, 2])])
    assert (again.counts == texts.counts).all() and (again.tokens[QKV] == texts.tokens[QKV]).all()
    turned = texts.part([2, 0])
    assert (turned.tokens[QKV] == texts.tokens[QKV][[5, 0, 1]]).all()
    assert np.allclose(texts.mean()[QKV], texts.tokens[QKV].mean(axis=0))


# family, module, the layer whose input is recorded, and the space's name where it is not that layer's
TEXT_FED = [
    ("sd15", "input_blocks.1.1.transformer_blocks.0.attn2.to_k", None, "context"),
    ("sdxl", "middle_block.1.transformer_blocks.9.attn2.to_v", None, "context"),
    ("sd3", "joint_blocks.3.context_block.mlp.fc1", "joint_blocks.3.context_block.mlp.fc1"),
    ("flux", "double_blocks.1.txt_mlp.0", "double_blocks.1.txt_mlp.0"),
    ("chroma", "double_blocks.0.txt_attn.qkv", "double_blocks.0.txt_attn.qkv"),
    ("qwen_image", "transformer_blocks.2.attn.add_v_proj", "transformer_blocks.2.attn.add_q_proj"),
    ("wan", "blocks.17.cross_attn.v", "blocks.0.cross_attn.k", "context"),
    ("ltxv", "transformer_blocks.20.attn2.to_v", "transformer_blocks.0.attn2.to_k", "context"),
    ("pixart", "blocks.20.cross_attn.kv_linear", "blocks.0.cross_attn.kv_linear", "context"),
    ("anima", "blocks.11.cross_attn.v_proj", "blocks.0.cross_attn.k_proj", "context"),
    ("z_image", "context_refiner.1.feed_forward.w3", "context_refiner.1.feed_forward.w1"),
    ("z_image", "layers.0.attention.qkv", "layers.0.attention.qkv"),
    ("aura_flow", "double_layers.0.mlpC.c_fc2", "double_layers.0.mlpC.c_fc1"),
    ("krea2", "blocks.3.attn.gate", "blocks.3.attn.wq"),
]
NOT_FED = [
    ("sd15", "input_blocks.1.1.transformer_blocks.0.attn2.to_q"),
    ("sd15", "input_blocks.1.1.transformer_blocks.0.attn1.to_k"),
    ("emoji", "joint_blocks.0.context_block.attn.proj"),
    ("emoji", "joint_blocks.0.x_block.attn.qkv"),
    ("flux", "double_blocks.18.txt_mlp.0"),
    ("flux", "double_blocks.0.img_mlp.0"),
    ("hunyuan_video", "single_blocks.0.linear1"),
    ("wan", "blocks.0.cross_attn.k_img"),
    ("unknown", "context"),
]


@pytest.mark.parametrize("case", TEXT_FED)
def test_text_fed_layers(case):
    family, name, probe = case[:3]
    found = space_of(family, name)
    assert (found.name, found.probe) == (case[3] if len(case) > 3 else probe, probe)
    assert found.leads == name.startswith(("layers.", "blocks.3.attn.gate"))
    again = named_space(family, found.name)
    assert (again.name, again.probe, again.leads) == (found.name, found.probe, found.leads)


@pytest.mark.parametrize(("family", "name"), NOT_FED)
def test_other_layers(family, name):
    assert space_of(family, name) is None
