"""Proves that the judge's reckoning is right (ranks, shares, names), that it never trains on what it is tested with,
that its training resumes and its file carries everything, and that results files keep their shape.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autolora_core.errors import FileFormatError
from benchmarks import results_file, world
from zoo import evaluate, judge_data, judge_train
from zoo.budget import Budget
from zoo.cache import FOLDER, zoo_dir
from zoo.judge import Judge, JudgeConfig, Verdict, default_path, known_names, ranks, style_text, subject_text, words_of
from zoo.pictures import Pictures
from zoo.splits import Splits

SHIPPED = [p for p in (default_path(),) if p.exists()]
REAL = SHIPPED if (zoo_dir() / "pictures.json").exists() else []
SUBJECTS, STYLES = ["otter", "hot-air-balloon", "fox"], ["noto", "twemoji"]


def small_judge() -> Judge:
    names = [subject_text(s) for s in SUBJECTS] + [style_text(s) for s in STYLES]
    config = JudgeConfig(embed_dim=16, width=8, text_width=16, context=6, vocabulary=words_of(names))
    return Judge(config.build(), config, SUBJECTS, STYLES)


def pictures_of(pairs: list[tuple[str, str]], images: np.ndarray) -> Pictures:
    rows = [{"row": i, "subject": a, "style": b} for i, (a, b) in enumerate(pairs)]
    index = {(a, b): i for i, (a, b) in enumerate(pairs)}
    return Pictures(images, rows, sorted({a for a, _ in pairs}), {}, {}, index)


def noise_pictures(n: int, size: int = 128) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_words_become_numbers_and_the_end_mark_is_the_highest() -> None:
    config = JudgeConfig(context=5, vocabulary=("air", "balloon", "hot"))
    tokens = config.tokens(["Hot air balloon", "balloon zeppelin", "hot hot hot hot hot hot"])
    assert tokens.tolist() == [[4, 2, 3, 5, 0], [3, 1, 5, 0, 0], [4, 4, 4, 4, 5]]


def test_every_name_of_the_world_fits_and_is_told_apart() -> None:
    subjects, styles = known_names()
    names = [subject_text(s) for s in subjects] + [style_text(s) for s in styles]
    tokens = JudgeConfig(context=9, vocabulary=words_of(names)).tokens(names)
    assert len({tuple(row) for row in tokens.tolist()}) == len(names)
    assert (tokens != 1).all()


def test_ranks_count_what_scores_at_least_as_well() -> None:
    scores = np.array([[0.5, 0.9, 0.1], [0.2, 0.2, 0.2], [0.0, -1.0, 3.0]])
    assert ranks(scores, [0, 1, 2]).tolist() == [1, 2, 0]
    verdict = Verdict(("a", "b", "c"), ("x",), scores, np.zeros((3, 1)))
    assert verdict.subject_rank(["b", "c", "b"]).tolist() == [0, 2, 2]
    assert verdict.top_subjects(2) == [["b", "a"], ["a", "b"], ["c", "a"]]


def test_a_saved_judge_says_the_same(tmp_path: Path) -> None:
    judge, images = small_judge(), noise_pictures(3)
    judge.measured = {"top1": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}}
    again = Judge.load(judge.save(tmp_path / "judge.safetensors"))
    assert again.subjects == tuple(SUBJECTS) and again.config == judge.config and again.measured == judge.measured
    before, after = judge.judge(images), again.judge(images)
    # fp16 weights have 11 bits: a relative error of 5e-4 each, on logits of about 14
    np.testing.assert_allclose(after.subject_logp, before.subject_logp, atol=0.1)
    for logp in (after.subject_logp, after.style_logp):
        np.testing.assert_allclose(np.exp(logp.astype(np.float64)).sum(1), 1, rtol=1e-5)


def test_probabilities_are_those_of_the_embeddings() -> None:
    judge, images = small_judge(), noise_pictures(2)
    seen = judge.image_embeddings(images).double().numpy()
    logits = math.exp(float(judge.model.logit_scale)) * seen @ judge.subject_vectors.double().numpy().T
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(judge.judge(images).subject_logp, expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(judge.image_embeddings(images, views=5).numpy(), axis=1), 1, rtol=1e-5)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, str(path), {"format": "pt"})
    with pytest.raises(FileFormatError, match="other.safetensors is not a judge"):
        Judge.load(path)
    with pytest.raises(FileFormatError, match="gone.safetensors is not there"):
        Judge.load(tmp_path / "gone.safetensors")


def test_a_share_is_the_mean_and_its_interval_knows_clusters() -> None:
    rng = np.random.default_rng(3)
    hits, alone = rng.random(400) < 0.7, [str(i) for i in range(400)]
    got = evaluate.share(hits, alone)
    normal = 1.96 * math.sqrt(hits.mean() * (1 - hits.mean()) / 400)
    assert got.value == pytest.approx(hits.mean(), abs=1e-4) and got.n == 400
    assert got.high - got.value == pytest.approx(normal, rel=0.15) and got.value - got.low == pytest.approx(
        normal, rel=0.15
    )
    fours = evaluate.share(np.repeat(hits[:100], 4), [str(i // 4) for i in range(400)])
    assert fours.high - fours.low > 1.6 * (got.high - got.low)  # four copies of a picture are one piece of evidence


def test_stem_hits_forgive_the_person_only() -> None:
    verdict = Verdict(("man-artist", "otter"), ("noto",), np.array([[1.0, 0.0], [1.0, 0.0]]), np.zeros((2, 1)))
    assert evaluate.stem_hits(verdict, ["woman-artist", "otter"]).tolist() == [True, False]


def test_held_out_pictures_and_their_twins_are_never_trained_on() -> None:
    subjects = Splits.load().subjects()[:200]
    pairs = [(s, "noto") for s in subjects]
    images = np.arange(200, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    held = next(i for i, (a, b) in enumerate(pairs) if Splits.judge_test(a, b))
    twin = next(i for i, (a, b) in enumerate(pairs) if not Splits.judge_test(a, b))
    images[twin] = images[held]
    pictures = pictures_of(pairs, images)
    test, train = judge_data.test_rows(pictures), judge_data.train_rows(pictures)
    assert held in test and 10 <= len(test) <= 35
    assert twin not in train and not set(test) & set(train)
    assert len(train) == 200 - len(test) - 1


def test_augmented_pictures_stay_recognisable_and_say_when_the_style_is_a_lie() -> None:
    x = torch.full((256, 3, 64, 64), 255.0)
    x[:, 0, 16:48, 16:48] = 20  # a cyan square on white
    out, honest = judge_data.augment(x, torch.ones(256, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert out.shape == x.shape and out.abs().max() < 4.5
    assert 0.55 < honest.mean() < 0.75
    middle, corner = out[:, :, 28:36, 28:36].mean((2, 3)), out[:, :, :3, :3].mean((2, 3))
    kept = honest.bool()
    assert (middle[kept, 1] - middle[kept, 0]).min() > 3  # still cyan: 235 / 255 * 4 = 3.7
    assert corner[kept].min() > 1.5  # still white
    robbed = ((middle[:, 1] - middle[:, 0]) < 1.5).float()  # grey or inverted
    assert robbed[kept].sum() == 0 and 0.25 < robbed[~kept].mean() < 0.6


@pytest.fixture
def tiny_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[judge_data.Pool]:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(judge_train, "BATCH", 6)
    monkeypatch.setattr(judge_train, "NAMES", 24)
    monkeypatch.setattr(judge_train, "JudgeConfig", lambda **k: JudgeConfig(embed_dim=16, width=8, text_width=16, **k))
    pool = judge_data.Pool(noise_pictures(9, 64), np.arange(9), np.arange(9) % 4)
    return [pool, pool, pool]


def test_training_goes_on_exactly_where_it_was(tiny_training: list[judge_data.Pool]) -> None:
    whole = judge_train.Trainer(Budget(1.0))
    before = whole.model.state_dict()["visual.conv1.weight"].clone()
    for _ in range(4):
        whole.step(tiny_training)
    first = judge_train.Trainer(Budget(1.0))
    for _ in range(2):
        first.step(tiny_training)
    first.save()
    second = judge_train.Trainer(Budget(1.0))
    assert second.steps == 2
    for _ in range(2):
        second.step(tiny_training)
    assert not torch.equal(whole.model.state_dict()["visual.conv1.weight"], before)
    for key, value in whole.model.state_dict().items():
        assert torch.allclose(second.model.state_dict()[key].float(), value.float(), atol=1e-5), key
    for key, value in whole.ema.items():
        assert torch.allclose(second.ema[key], value, atol=1e-5), key


def test_the_true_name_is_always_among_the_choices(tiny_training: list[judge_data.Pool]) -> None:
    trainer = judge_train.Trainer(Budget(1.0))
    subject = torch.tensor([3, 900, 3, 17, 1400, 0])
    chosen, target = trainer.names(subject, np.random.default_rng(0))
    assert torch.equal(chosen[target], subject) and len(torch.unique(chosen)) == len(chosen)
    assert judge_train.NAMES - judge_train.BATCH <= len(chosen) <= judge_train.NAMES


def test_the_base_is_asked_only_for_what_it_knows() -> None:
    splits, cases = Splits.load(), evaluate.base_cases(30)
    assert cases == evaluate.base_cases(30) and len(cases) == 60
    assert {c.subject for c in cases} <= splits.base_subjects
    assert {c.style for c in cases} - {None} == splits.base_styles
    assert "style" not in cases[0].prompt and " style" in cases[30].prompt


def test_base_shares_use_each_caption_for_its_own_figure() -> None:
    cases = [
        evaluate.Case("otter"),
        evaluate.Case("fox"),
        evaluate.Case("otter", "twemoji"),
        evaluate.Case("fox", "noto"),
    ]
    says = [("otter", "noto"), ("otter", "noto"), ("otter", "noto"), ("fox", "noto")]

    def judge(images: np.ndarray, views: int) -> Verdict:
        told = [says[int(i)] for i in images[:, 0, 0, 0]]
        tables = [
            [[float(told[r][k] == n) for n in names] for r in range(len(told))]
            for k, names in enumerate((SUBJECTS, STYLES))
        ]
        return Verdict(tuple(SUBJECTS), tuple(STYLES), *(np.array(t) for t in tables))

    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 128, 128, 3), np.uint8)
    got = evaluate.base_shares(images, cases, SimpleNamespace(judge=judge))
    values = {k: got[k].value for k in ("top1", "styled_top1", "style", "default_style")}
    assert values == {"top1": 0.5, "styled_top1": 1.0, "style": 0.5, "default_style": 1.0}


def test_a_results_file_says_what_where_and_when(tmp_path: Path) -> None:
    rows = [{"figure": "a.b", "n": 3}, {"kind": "ü"}]
    path = results_file.write_results("x", "python -m x", 7, {"a.b": 0.5, "a.a": 2}, rows, tmp_path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert set(data) == {"command", "commit", "date", "machine", "seed", "figures", "rows"}
    assert data["figures"] == {"a.a": 2, "a.b": 0.5} and data["rows"] == rows and data["seed"] == 7
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="figure a.b is nan"):
        results_file.write_results("x", "", 0, {"a.b": math.nan}, [], tmp_path)
    assert results_file.read_results("x", tmp_path) == data and results_file.read_results("y", tmp_path) is None


def test_the_loss_curve_is_thinned_and_cut_at_the_evaluated_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    table = [(100 * i, 10.0 * i, 1 / i) for i in range(1, 1001)]
    with (zoo_dir("base") / "loss.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("step", "seconds", "loss"), *table])
    rows = world.loss_rows()
    assert len(rows) == world.LOSS_ROWS + 1 and (rows[0]["loss"], rows[-1]["step"]) == (1.0, 100_000)
    figures, kept = world.training_part({"steps": "50000", "seconds": "5400"})
    assert figures["world.base_train_hours"] == 1.5 and figures["world.base_train_steps"] == 50_000
    assert kept[-1]["step"] <= 50_000 and figures["world.base_loss_first"] == 1.0
    assert figures["world.base_loss_last"] == pytest.approx(1 / 495, rel=0.03)


@pytest.mark.parametrize("path", SHIPPED)
def test_the_shipped_judge_is_small_and_knows_all_names(path: Path) -> None:
    judge = Judge.load(path)
    assert path.stat().st_size <= 15e6
    assert (list(judge.subjects), list(judge.styles)) == known_names()
    assert set(judge.measured) >= {"top1", "top5", "style"}


@pytest.mark.parametrize("path", REAL)
def test_the_shipped_judge_names_held_out_pictures_as_its_file_claims(path: Path) -> None:
    judge, pictures = Judge.load(path), Pictures.load()
    rows = judge_data.test_rows(pictures)[::6]
    verdict = evaluate.judge_pictures(pictures.images[rows], judge, views=1)
    truth = [pictures.rows[r] for r in rows]
    right = (verdict.subject_rank([r["subject"] for r in truth]) < 1).mean()
    styled = (verdict.style_rank([r["style"] for r in truth]) < 1).mean()
    assert right > judge.measured["top1"]["value"] - 0.08  # about 200 pictures: two standard errors are 0.05
    assert styled > judge.measured["style"]["value"] - 0.04


def test_a_sample_depends_on_its_prompt_and_seed_not_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(texts: list[str], minilm: None) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = torch.tensor([float(len(t)) for t in texts])
        return sizes[:, None, None] * torch.ones(1, 24, 384), sizes[:, None] * torch.ones(1, 384)

    def velocity(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        return x - 0.1 * pooled[:, :1, None, None]

    monkeypatch.setattr(evaluate, "encode", encode)
    monkeypatch.setattr(evaluate, "tower", lambda: None)
    monkeypatch.setattr(evaluate, "decode_latents", lambda z, model, batch: z.numpy())
    prompts, drawn = ["a", "bb", "ccc", "dddd", "eeeee"], []
    for batch in (2, 5):
        monkeypatch.setattr(evaluate, "BATCH", batch)
        drawn.append(evaluate.draw_pictures(velocity, prompts, 40, None))
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-5)
    alone = evaluate.draw_pictures(velocity, ["ccc"], 42, None)
    np.testing.assert_allclose(alone[0], drawn[1][2], atol=1e-5)
    assert np.abs(evaluate.draw_pictures(velocity, ["ccc"], 43, None)[0] - alone[0]).max() > 0.1


def test_a_wall_time_ends_a_run_with_its_learning_rate_at_the_bottom(tiny_training: list[judge_data.Pool]) -> None:
    trainer = judge_train.Trainer(Budget(10.0), wall_minutes=5.0)
    trainer.begun, trainer.spent = 0.2, 120.0  # a fifth of the CPU time was spent by an earlier run
    assert trainer.progress() == pytest.approx(0.2, abs=0.01)
    trainer.started -= 150  # half of the wall time has gone
    assert trainer.progress() == pytest.approx(0.6, abs=0.01)
    trainer.spent = 540.0
    assert trainer.progress() == pytest.approx(0.9, abs=0.01)
    trainer.started -= 200
    assert trainer.progress() == 1.0 and judge_train.schedule(1.0) == pytest.approx(0.01)
