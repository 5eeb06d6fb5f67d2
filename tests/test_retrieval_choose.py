"""Reading of responses: the forms of a prompt, how far a LoRA stands out, sets, and what "none fits" goes by."""

from __future__ import annotations

import numpy as np
import pytest

from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.retrieve.standout import standardised
from benchmarks.retrieval_choose import Chooser, groups_of, parts_of
from benchmarks.retrieval_claims import evidence, relatives, set_figures
from benchmarks.retrieval_forms import caption_forms
from benchmarks.retrieval_measure import Asked
from benchmarks.retrieval_standouts import Standouts, lead
from benchmarks.retrieval_texts import Prompt

FORMS = {
    "an otter": ["an otter"],
    "please show me an aerial tramway": ["an aerial tramway"],
    "we need garlic on our invitation card": ["garlic", "our invitation card"],
    "a notebook with decorative cover for my slides": ["a notebook with decorative cover", "my slides"],
    "a face with open eyes and hand over mouth": ["a face with open eyes and hand over mouth"],
    "a man in tuxedo": ["a man in tuxedo"],
    "a thumbs up": ["a thumbs up"],
    "an otter in washed-out night vision style": ["an otter", "washed-out night vision style"],
    "an otter in red and cream duotone style": ["an otter", "red and cream duotone style"],
    "white pencil on black style": ["white pencil on black style"],
    "an otter in the style of pixel art": ["an otter", "pixel art style"],
    "something that has to do with ski, snow and winter": ["something", "ski", "snow", "winter"],
    "": [],
}


@pytest.mark.parametrize("prompt", FORMS)
def test_forms_are_what_captions_say(prompt):
    assert [form.text for form in caption_forms(prompt)] == FORMS[prompt]


def test_styles_are_known_by_grammar():
    assert [form.role for form in caption_forms("an otter in neon blueprint style")] == ["subject", "style"]
    assert [form.role for form in caption_forms("a hair style magazine")] != ["style"]


def test_every_word_of_a_prompt_is_in_one_form_at_most():
    for prompt in FORMS:
        words = [word for form in caption_forms(prompt) for word in form.words]
        assert len(words) == len(set(words))


def made_up(n: int = 120, texts: int = 60, seed: int = 0) -> np.ndarray:
    """(texts, n): two moods that all texts share, loudness of texts and of LoRAs, noise."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(texts, 2)) @ rng.normal(size=(2, n))
    return (3 * shared + rng.normal(size=(texts, n))) * rng.uniform(0.5, 2, (texts, 1)) + rng.normal(size=(1, n))


def test_standardised_takes_loudness_off_a_text():
    scores, pool = made_up(), np.arange(120) < 100
    scores[1] = 5 * scores[0] + 7
    found = standardised(scores, pool)
    assert np.allclose(found[0], found[1])
    assert np.allclose(found[:, pool].mean(axis=1), 0) and np.allclose(found[:, pool].std(axis=1), 1)


def test_residuals_are_ridge_regression_and_leave_one_out_for_the_generic_prompts():
    standard, generic, ridge = standardised(made_up(), np.ones(120, bool)), list(range(10)), 0.7
    found = Standouts.read(made_up(), generic, generic, ridge=ridge).residual

    def left(text: int, known: list[int]) -> np.ndarray:
        x, y = standard[known], standard[text]
        w = np.linalg.solve(x @ x.T + ridge * 120 * np.eye(len(known)), x @ y)
        out = y - w @ x
        return out / out.std()

    assert np.allclose(found[20], left(20, generic))
    assert np.allclose(found[3], left(3, [g for g in generic if g != 3]))


def test_what_generic_prompts_do_not_explain_stands_out():
    scores = made_up()
    seven = scores[40].argmin()
    scores[40, seven] = np.median(scores[40])  # no more than usual, but far more than its answers to the others promise
    read = Standouts.read(scores, range(10), range(40), ridge=0.01)
    assert read.residual[40].argmax() == seven
    assert abs(read.standard[40, seven]) < 0.5 < 3 < read.residual[40, seven]


def test_the_own_ruler_is_a_quantile_of_the_bank():
    read = Standouts.read(made_up(), range(10), range(5, 40), tail=0.5)
    assert np.allclose(read.own, np.median(read.residual[5:40], axis=0))


def test_lead_is_over_the_runners_up_and_not_spoilt_by_a_twin():
    rng = np.random.default_rng(0)
    row = rng.normal(size=(1, 200))
    row[0, :2] = 9, 8.9
    expected = 9 - np.sort(row[0])[::-1][1:11].mean()
    assert lead(row)[0] == pytest.approx(expected) and lead(row)[0] > 4
    assert lead(np.array([[3.0]])).tolist() == [3.0]


@pytest.fixture
def shelf():
    """Texts, responses and drawings of 400 LoRAs: 0 is an otter, 1 pixel art, 2 a second otter, 3 draws a kite, the
    last answers nothing."""
    texts = [*GENERIC_PROMPTS, "an otter", "pixel art style", "pixel art", "a kite", "an otter in pixel art style",
             "a kite in pixel art style", "ski", "snow", "it should say ski and snow"]  # fmt: skip
    rng = np.random.default_rng(1)
    response, drawn = rng.normal(size=(2, len(texts), 400))
    at = {text: i for i, text in enumerate(texts)}
    for lora, texts_of_it, height in (
        (0, ("an otter",), 14), (2, ("an otter",), 12), (1, ("pixel art style", "pixel art"), 12),
        (5, ("ski", "snow"), 7), (6, ("ski",), 8.5),
    ):  # fmt: skip
        response[[at[text] for text in texts_of_it], lora] += height
    drawn[at["a kite"], 3] += 12
    response[:, 399] = np.nan
    return texts, response, drawn


def chooser_of(shelf, drawing: bool = True) -> Chooser:
    texts, response, drawn = shelf
    return Chooser.of(texts, response, np.ones(400, bool), [], drawn if drawing else None)


def test_a_set_takes_the_subject_and_the_style_and_then_more_of_the_subject(shelf):
    picks = chooser_of(shelf).picks("an otter in pixel art style")
    assert set(picks) == {0, 1, 2} and picks[2] == 2


def test_what_a_lora_draws_finds_it_where_it_answers_nothing(shelf):
    prompt = "a kite in pixel art style"
    assert set(chooser_of(shelf).picks(prompt)[:2]) == {1, 3}
    assert 3 not in chooser_of(shelf, drawing=False).picks(prompt)[:2]


def test_listed_words_are_one_wish(shelf):
    chooser = chooser_of(shelf)
    assert [len(group) for group in groups_of("it should say ski and snow", chooser.rows)] == [2]
    assert chooser.score("it should say ski and snow").argmax() == 5  # both words, not one of them louder


def test_a_lora_that_cannot_answer_is_never_first(shelf):
    scores = chooser_of(shelf, drawing=False).score("an otter")
    assert scores.argmin() == 399 and np.isfinite(scores).all()
    assert np.isfinite(chooser_of(shelf).score("an otter")).all()


def test_forms_that_were_not_asked_lose_their_determiner_or_are_left_out():
    rows = {"otter": 3, "pixel art style": 4}
    assert [part.row for part in parts_of("an otter in pixel art style for my slides", rows)] == [3, 4]
    assert [part.style for part in parts_of("an otter in pixel art style", rows)] == [False, True]
    assert [len(g) for g in groups_of("the unknown", {"the unknown": 1})] == [1]


class Pack:
    def __init__(self, rows):
        self.rows = rows

    def column(self, name):
        return np.array([row[name] for row in self.rows], object)


class Study:
    """Four LoRAs: an otter, two strengths of one style, a sea otter known by its trigger alone."""

    def __init__(self, prompts):
        rows = [
            ("otter", None, None, "otter", "plain"),
            (None, "faint-ink", "ink", "faint ink", "rich"),
            (None, "dark-ink", "ink", "dark ink", "trigger"),
            ("sea-otter", None, None, "sea otter", "trigger"),
        ]
        names = ("subject", "style", "style_family", "label", "caption_kind")
        self.pack = Pack([dict(zip(names, row, strict=True)) for row in rows])
        right = np.array([[row[0] == p.subject for row in rows] for p in prompts])
        self.asked = {"test": Asked(prompts, right, np.ones(4, bool), np.zeros(len(prompts), bool))}


def test_sets_are_measured_strictly_by_family_and_among_the_captioned():
    prompts = [Prompt("an otter in faint ink style", "set", "otter", "faint-ink"),
               Prompt("an otter in dark ink style", "set", "otter", "dark-ink")]  # fmt: skip
    found = set_figures(Study(prompts), "test", lambda prompt: [0, 1, 3])
    assert found["set_recall_at_3"] == 0.5 and found["set_recall_at_3_family"] == 1
    assert found["set_recall_at_3_captioned"] == 1  # dark ink was never named
    assert found["set_subject_recall_at_3"] == 1 and found["set_style_recall_at_3"] == 0.5


def test_relatives_share_a_word_or_a_family_and_are_not_right():
    prompts = [Prompt("an otter", "name", "otter"), Prompt("faint ink style", "style", None, "faint-ink")]
    study = Study(prompts)
    study.asked["test"].right[1] = [False, True, False, False]
    found = relatives(study, study.asked["test"])
    assert found.tolist() == [[False, False, False, True], [False, False, True, False]]


def test_evidence_is_of_the_candidates_that_are_there():
    scores = np.array([[9.0, 1.0, 0.0, 2.0], [9.0, 1.0, 0.0, 2.0]])
    there = np.array([[True, True, True, True], [False, True, True, True]])
    found = evidence(scores, there)
    assert found[:, 0].tolist() == [9, 2]
    assert found[:, 1].tolist() == [9 - 1, 2 - 0.5]
