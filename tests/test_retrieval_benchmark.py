"""The retrieval benchmark and the training behind it: each number against an independent reference, on made-up data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from autolora_core.encode.set_encoder import MODULES
from autolora_core.encode.set_network import SetConfig, SetNetwork
from autolora_core.retrieve.words import content_stems
from autolora_core.train.steps import BATCH, batches, contrastive, joined
from autolora_core.train.trainer import start_as_ridge
from benchmarks.retrieval import choose_ours
from benchmarks.retrieval_measure import (
    ABSENT,
    Asked,
    Combination,
    auroc,
    interval,
    none_evidence,
    none_figures,
    ranks,
    shares,
)
from benchmarks.retrieval_methods import one_hot, standardised, whole
from benchmarks.retrieval_texts import HEADLINE, Prompt, subject_prompts
from zoo.base_probe import applied
from zoo.encoder_data import EncoderData, profile_groups, texts_of
from zoo.features_pack import as_bytes, principal
from zoo.mmdit import MMDiT, MMDiTConfig
from zoo.text_side import z_scores
from zoo.train_encoder import ranks_of


def asked_of(right: np.ndarray, pool: np.ndarray | None = None) -> Asked:
    prompts = [Prompt(f"prompt {i}", "name", str(i)) for i in range(len(right))]
    return Asked(prompts, right, np.ones(right.shape[1], bool) if pool is None else pool, np.zeros(len(right), bool))


def test_ranks_count_what_is_better_and_half_of_what_ties():
    scores = np.array([[5.0, 3.0, 3.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    right = np.array([[False, True, False, False], [True, False, False, True]])
    assert ranks(scores, asked_of(right)).tolist() == [1.5, 0.0]
    without_first = np.array([False, True, True, True])
    assert ranks(scores, asked_of(right, without_first)).tolist() == [0.5, 0.0]


def test_a_right_lora_without_a_score_comes_last():
    scores = np.array([[np.nan, 0.1, -5.0]])
    right = np.array([[True, False, False]])
    assert ranks_of(scores, right).tolist() == [2]


def test_shares():
    found = shares(np.array([0.0, 0.5, 1.0, 4.0, 5.0]))
    assert found["recall_at_1"] == 2 / 5 and found["recall_at_5"] == 4 / 5
    assert found["mrr"] == pytest.approx(np.mean([1, 1 / 1.5, 1 / 2, 1 / 5, 1 / 6]))


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(0, 6, 40) + 1.0, rng.integers(0, 6, 30) * 1.0
        pairs = [(x > y) + 0.5 * (x == y) for x in a for y in b]
        assert auroc(a, b) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_interval_draws_whole_groups():
    values, groups = np.repeat([0.0, 1.0], 50), ["a"] * 50 + ["b"] * 50
    assert interval(values, groups) == (0.0, 1.0)  # two groups: a resample may hold one of them alone
    narrow = interval(np.tile([0.0, 1.0], 200), list(range(400)))
    assert 0.43 < narrow[0] < 0.5 < narrow[1] < 0.57


def test_combination_learns_which_part_to_trust_and_does_without_an_absent_one():
    rng = np.random.default_rng(1)
    n = 60
    right = np.eye(n, dtype=bool)
    good, bad = rng.standard_normal((n, n)) + 4 * right, rng.standard_normal((n, n))
    good[:, 40:] = ABSENT
    second = rng.standard_normal((n, n)) + 3 * right
    scores = {"response": good, "encoder": second, "noise": bad}
    fitted = Combination.fit(scores, ("response", "encoder", "noise"), asked_of(right))
    assert fitted.full.slope[0] > 3 * fitted.full.slope[2]
    logits = fitted.logits(scores)
    assert np.isfinite(logits).all()
    alone = ranks(np.where(good == ABSENT, -9, good), asked_of(right))
    assert (ranks(logits, asked_of(right)) < 1).mean() > (alone < 1).mean() + 0.1


def test_none_evidence_takes_the_right_ones_out():
    logits = np.array([[4.0, 1.0, 0.0, 3.5]])
    right, thing = np.array([[True, False, False, False]]), np.array([0, 1, 2, 0])
    present = none_evidence(logits, asked_of(right), thing, False)[0]
    assert present[0] == 4.0 and present[1] == 3.0  # the other of the same thing is no rival
    assert none_evidence(logits, asked_of(right), thing, True)[0, 0] == 3.5


def test_none_figures_are_chance_where_nothing_tells():
    rng = np.random.default_rng(2)
    draw = lambda shift: rng.standard_normal((400, 3)) + shift  # noqa: E731
    nothing = none_figures({p: (draw(0), draw(0)) for p in ("validation", "test")}, np.ones(400, bool))
    assert abs(nothing["none_auroc"] - 0.5) < 0.08
    clear = none_figures({p: (draw(6), draw(0)) for p in ("validation", "test")}, np.ones(400, bool))
    assert clear["none_auroc"] > 0.99 and clear["none_recall_at_5fpr"] > 0.95


def test_prompts_of_keywords_never_say_the_name():
    prompts = subject_prompts("hot-air-balloon", ["travel", "sky", "basket"])
    kinds = [p.kind for p in prompts]
    assert kinds == ["name", "sentence", "sentence", "paraphrase", "keywords"] and set(HEADLINE) < set(kinds)
    assert not {"hot", "air", "balloon"} & set(content_stems(prompts[-1].text))
    assert all("hot air balloon" in p.text for p in prompts[:-1])
    assert len({p.text for p in prompts}) == 5
    assert [p.kind for p in subject_prompts("otter", ["one"])] == ["name", "sentence", "sentence"]


def test_phrases_begin_with_the_whole_prompt_and_hold_the_thing():
    [name] = [p for p in subject_prompts("otter", ()) if p.kind == "name"]
    assert name.phrases[0] == "an otter" and "otter" in name.phrases


def test_z_scores_are_against_the_generic_prompts():
    rng = np.random.default_rng(3)
    generic = rng.standard_normal((501, 2)) * [2, 5] + [1, -3]
    z = z_scores(np.array([[1.0, -3.0], [5.0, 7.0]]), generic)
    assert np.allclose(z, [[0, 0], [2, 2]], atol=0.35)


def test_features_know_only_the_training_rows():
    rng = np.random.default_rng(4)
    x, train = rng.standard_normal((20, 5)), np.arange(20) < 12
    other = x.copy()
    other[15] = 100
    for prepare in (standardised, whole):
        assert np.array_equal(prepare(x, train)[:12], prepare(other, train)[:12])
    assert one_hot(["a", "z"], ["a", "b"]).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_principal_directions_are_those_of_the_svd():
    rng = np.random.default_rng(5)
    for shape in ((12, 30), (40, 6)):
        x = (rng.standard_normal(shape) * np.arange(1, shape[1] + 1)).astype(np.float32)
        train = np.arange(len(x)) < len(x) - 3
        mean, basis = principal(x, train, 4)
        _, _, vt = np.linalg.svd(x[train].astype(np.float64) - x[train].mean(axis=0, dtype=np.float64))
        assert np.allclose(np.abs((basis * vt[:4]).sum(axis=1)), 1, atol=1e-3)
        assert np.allclose(mean, x[train].mean(axis=0), atol=1e-4)
    _, few = principal(x, np.arange(len(x)) < 3, 4)
    assert (np.abs(few).sum(axis=1) > 0).tolist() == [True, True, False, False]  # three rows span two directions


def test_bytes_are_as_fine_as_they_say():
    x = np.random.default_rng(6).standard_normal((500, 3)) * [1, 10, 0]
    kept, scale = as_bytes(x)
    inside = np.abs(x) <= 6 * x.std(axis=0)
    assert kept.dtype == np.int8 and np.abs(kept * scale - x)[inside].max() <= scale.max() / 2 + 1e-9


def test_profile_keeps_what_is_loud():
    tokens, mask = profile_groups(np.array([[-3.0, 2.0, 40.0], [np.nan] * 3]))
    assert mask[:, 0].tolist() == [True, False] and tokens[0, 0].tolist() == [0.0, 0.5, 18.0]
    assert not tokens[1].any()


def test_texts_of_a_trigger_lora_are_the_truth_about_it():
    row = {"label": "otter", "subject": "otter", "style": None, "trigger": "zzkq12"}
    assert texts_of(row, ["river", "playful"])[:2] == ("otter", "an otter")
    assert not any("zzkq12" in t for t in texts_of(row, []))
    assert texts_of({"label": "pixel art", "subject": None}, ())[0] == "pixel art style"


def test_applied_restores_the_very_bits():
    model = MMDiT(MMDiTConfig(depth=1)).eval()
    name = "joint_blocks.0.x_block.attn.proj"
    before = model.get_submodule(name).weight.detach().clone()
    down, up = torch.randn(2, 64), torch.randn(64, 2)
    with applied(model, {name: (down, up)}):
        assert torch.allclose(model.get_submodule(name).weight, before + up @ down)
    assert torch.equal(model.get_submodule(name).weight, before)


def some_data(n: int = 40, seed: int = 0) -> EncoderData:
    rng = np.random.default_rng(seed)
    groups = {
        MODULES: (rng.standard_normal((n, 3, 4)).astype(np.float32), rng.random((n, 3)) < 0.8),
        "draw": (rng.standard_normal((n, 1, 5)).astype(np.float32), np.ones((n, 1), bool)),
    }
    groups[MODULES][1][:, 0] = True
    train = np.arange(n) < n - 8
    return EncoderData(groups, [("a", "b")] * n, train, ~train, ~train & False, np.arange(n), np.arange(n) % 4, None)


def test_the_network_starts_as_the_sum_of_ridge_regressions():
    from autolora_core.encode.ridge import KernelRidge

    data = some_data()
    targets = np.random.default_rng(7).standard_normal((40, 6))
    network = SetNetwork(SetConfig({k: x.shape[1:] for k, (x, _) in data.groups.items()}, 6, width=16, heads=2))
    start_as_ridge(network, data, targets)
    wanted = sum(
        KernelRidge.fit(joined(data.groups, (k,))[data.train], targets[data.train]).predict(joined(data.groups, (k,)))
        for k in data.groups
    )
    wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    with torch.no_grad():
        got = network({k: tuple(torch.from_numpy(a) for a in pair) for k, pair in data.groups.items()}).numpy()
    assert np.abs(got - wanted).max() < 1e-4


def test_contrastive_loss_against_a_written_out_sum():
    rng = np.random.default_rng(8)
    unit = lambda *s: (lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True))(rng.standard_normal(s))  # noqa: E731
    v, own, bank = unit(4, 6), unit(4, 6), unit(5, 6)
    thing, bank_thing, scale = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 3, 4]), 7.0
    total = 0.0
    for i in range(4):
        texts = [own[i]] + [bank[k] for k in range(5) if bank_thing[k] != thing[i]]
        logits = [scale * v[i] @ t for t in texts]
        total += (math.log(sum(map(math.exp, logits))) - logits[0]) / 4
        rivals = [j for j in range(4) if j == i or thing[j] != thing[i]]
        logits = [scale * own[i] @ v[j] for j in rivals]
        total += (math.log(sum(map(math.exp, logits))) - scale * own[i] @ v[i]) / 4
    args = [torch.tensor(x, requires_grad=True) for x in (v, own, bank)]
    size = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    loss = contrastive(*args, torch.tensor(thing), torch.tensor(bank_thing), size)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-9)
    loss.backward()
    assert all(torch.isfinite(x.grad).all() for x in (*args, size))


def test_an_epoch_sees_every_training_lora_and_makes_hard_batches():
    data = some_data(400)
    found = batches(data, np.random.default_rng(9))
    assert set(np.concatenate(found)) == set(np.flatnonzero(data.train))
    half = BATCH // 2
    assert np.mean([len(set(data.recipe[b[:half]])) for b in found]) < 2.5  # of one or two creators


def test_ours_is_the_response_alone_where_no_combination_beats_it():
    class Told:
        """A study whose recalls are given."""

        def __init__(self, better: str | None):
            self.better, self.scores, self.prompted = better, {"response": np.zeros(1)}, {}
            self.asked = {"validation": asked_of(np.eye(2, dtype=bool))}

        def combine(self, names, out):
            self.scores[out] = np.ones(1) * len(names)

        def recall(self, name, part, which):
            value = 0.9 if name == self.better else 0.5 if name == "response" else 0.4
            return {"recall_at_1": value, "recall_at_5": value}

    nothing, something = Told(None), Told("combination 2")
    assert choose_ours(nothing) == "response" and nothing.scores["ours"] is nothing.scores["response"]
    assert choose_ours(something).startswith("response + ")
    assert something.scores["ours"] is something.scores["combination 2"]
