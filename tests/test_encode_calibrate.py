"""Proves that calibration is the stated prior without data, follows data when there is some, and never inverts."""

from __future__ import annotations

import numpy as np
import pytest

from autolora_core.encode.calibrate import NONE_FITS_PRIOR, Logistic, NoneFits, Ruler, fit_logistic, sigmoid
from autolora_core.encode.generic import GENERIC_PROMPTS

PRIOR = Logistic(-4.0, np.array([1.0]))


def test_without_examples_the_prior_stands():
    assert fit_logistic(np.zeros((0, 1)), np.zeros((5, 1)), PRIOR) is PRIOR
    assert NoneFits.fit(np.zeros((0, 3)), np.zeros((0, 3))).model is NONE_FITS_PRIOR


def test_few_examples_stay_near_the_prior_many_find_the_truth():
    rng = np.random.default_rng(0)
    n = 4000
    x = rng.normal(5, 3, (2 * n, 1))
    y = rng.random(2 * n) < sigmoid(-9.0 + 1.5 * x[:, 0])
    many = fit_logistic(x[y], x[~y], PRIOR)
    assert many.slope[0] == pytest.approx(1.5, abs=0.15)
    assert -many.bias / many.slope[0] == pytest.approx(6, abs=0.6)
    two = fit_logistic(x[y][:1], x[~y][:1], PRIOR)
    assert abs(two.bias + 4) < 1 and abs(two.slope[0] - 1) < 0.5


def test_newton_finds_the_minimum():
    """The gradient of the stated objective, by finite differences, is zero at the answer."""
    rng = np.random.default_rng(1)
    pos, neg = rng.normal(4, 1, (30, 1)), rng.normal(2, 1, (90, 1))
    fitted = fit_logistic(pos, neg, PRIOR)
    precision = 4.0 / np.array([4.0, 1.0]) ** 2 / 4

    def objective(bias, slope):
        nll = np.logaddexp(0, -(bias + pos * slope)).sum() + (30 / 90) * np.logaddexp(0, bias + neg * slope).sum()
        return nll + 0.5 * (precision * (np.array([bias, slope]) - [-4.0, 1.0]) ** 2).sum()

    at, h = (fitted.bias, fitted.slope[0]), 1e-4
    assert abs(objective(at[0] + h, at[1]) - objective(at[0] - h, at[1])) < 1e-6
    assert abs(objective(at[0], at[1] + h) - objective(at[0], at[1] - h)) < 1e-6


def test_more_evidence_never_lowers_the_probability():
    rng = np.random.default_rng(2)
    upside_down = fit_logistic(rng.normal(1, 1, (500, 1)), rng.normal(9, 1, (500, 1)), PRIOR)
    assert upside_down.slope[0] >= 0
    p = upside_down.probability(np.arange(5)[:, None])
    assert (np.diff(p) >= 0).all() and ((p > 0) & (p < 1)).all()


def test_a_coefficient_held_at_zero_is_no_prop_for_the_others():
    """With a second column that would get a negative slope, the fit equals the fit without that column."""
    rng = np.random.default_rng(4)
    pos, neg = rng.normal([3, 0], 1, (60, 2)), rng.normal([1, 2], 1, (90, 2))
    both = fit_logistic(pos, neg, Logistic(-0.5, np.array([1.0, 0.0])), cost=3.0)
    alone = fit_logistic(pos[:, :1], neg[:, :1], Logistic(-0.5, np.array([1.0])), cost=3.0)
    assert both.slope[1] == 0
    np.testing.assert_allclose([both.bias, both.slope[0]], [alone.bias, alone.slope[0]], atol=1e-8)


def test_separable_and_huge_scores_stay_finite():
    fitted = fit_logistic(np.full((200, 1), 1e3), np.full((200, 1), -1e3), PRIOR)
    assert np.isfinite(fitted.bias) and np.isfinite(fitted.slope).all()
    assert fitted.probability(np.array([1e6])) > 0.99 and sigmoid(np.array([-1e5]))[0] == 0


@pytest.mark.filterwarnings("error")
def test_absent_evidence_stays_absent_in_silence():
    found = sigmoid(np.array([0.0, np.nan, -800.0, 800.0]))
    np.testing.assert_array_equal(found, [0.5, np.nan, 0.0, 1.0])


def test_ruler_is_not_moved_by_a_generic_prompt_that_fits():
    rng = np.random.default_rng(3)
    scores = rng.normal(0.2, 0.1, (2, 240))
    spoiled = scores.copy()
    spoiled[:, :8] = 1.0
    a, b = Ruler.measure(scores), Ruler.measure(spoiled)
    np.testing.assert_allclose(b.mean, a.mean, atol=0.01)
    np.testing.assert_allclose(b.deviation, a.deviation, rtol=0.12)
    np.testing.assert_allclose(a.z(np.array([[0.2, 0.5], [0.2, 0.5]])), [[0, 3], [0, 3]], atol=0.6)
    assert Ruler.measure(np.ones((1, 240))).z(np.ones((1,))) == 0


def test_generic_prompts_are_many_and_different():
    assert len(GENERIC_PROMPTS) >= 200 and len(set(GENERIC_PROMPTS)) == len(GENERIC_PROMPTS)
    assert all(text == " ".join(text.split()) and text for text in GENERIC_PROMPTS)
