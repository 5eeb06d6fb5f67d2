"""Proves that pages whose figures are made between marks say what their results files say."""

from __future__ import annotations

import copy

import pytest

from benchmarks.previews_page import BEGIN, PAGE, gain, made, with_figures
from benchmarks.results_file import read_results


def test_the_previews_page_is_made_from_the_results():
    found, text = read_results("previews"), PAGE.read_text(encoding="utf-8")
    assert with_figures(text, found) == text
    changed = copy.deepcopy(found)
    changed["figures"]["test_loras"] += 1
    assert with_figures(text, changed) != text and made(found) in text


def test_a_page_without_its_marks_is_not_written_over():
    with pytest.raises(ValueError, match="put both back"):
        with_figures(PAGE.read_text(encoding="utf-8").replace(BEGIN, ""), read_results("previews"))


def test_what_pictures_add_is_called_certain_only_where_its_interval_leaves_out_zero():
    assert "certainly more" in gain({"x_gain_at_5": [0.02, 0.01, 0.03]}, "x")
    assert "certainly less" in gain({"x_gain_at_5": [-0.02, -0.03, -0.01]}, "x")
    assert gain({"x_gain_at_5": [0.02, -0.01, 0.03]}, "x") == "+2.0 points (−1.0 to +3.0: not certainly a difference)"
