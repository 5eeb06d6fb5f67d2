"""Proves that Compare Modes and Strengths makes every pair once, refuses what Apply would not take, and that the sheet
holds every picture, whole, at its place, with its label below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_local import pack_module

from autolora_core.errors import SelectionError
from autolora_core.fusion import compare

KNOWN = ("auto", "gate", "sum")
ROOT = Path(__file__).resolve().parents[1]


def test_every_pair_once_a_line_for_every_mode():
    made, columns = compare.pairs("sum\n\n gate \nsum", "1.0; 0.5, 1", KNOWN)
    assert [(one.mode, one.strength) for one in made] == [("sum", 1.0), ("sum", 0.5), ("gate", 1.0), ("gate", 0.5)]
    assert columns == 2 and [one.label for one in made][:2] == ["sum, 1", "sum, 0.5"]
    assert compare.pairs("sum, gate", "0", KNOWN)[0][0].label == "no LoRA"


@pytest.mark.parametrize(
    ("modes", "strengths", "words"),
    [
        ("sum\nswitsch", "1", "'switsch' is no mode.*modes.*auto, gate, sum"),
        (" \n", "1", "no mode is named"),
        ("sum", "", "no strength is named"),
        ("sum", "1, high", "'high' is not a strength"),
        ("sum", "nan", "'nan' is not a strength"),
        ("sum", "1e9", "'1e9' is not a strength"),
        ("sum\ngate", ",".join(str(number / 10) for number in range(33)), "more than 64"),
    ],
)
def test_what_apply_would_not_take_is_refused(modes, strengths, words):
    with pytest.raises(SelectionError, match=words):
        compare.pairs(modes, strengths, KNOWN)


def test_every_picture_is_whole_and_at_its_place():
    generator = np.random.default_rng(0)
    pictures = [generator.random((20, 30, 3), dtype=np.float32) for _ in range(3)] + [np.zeros((10, 8, 3), np.float32)]
    paper = compare.sheet(pictures, ["one", "", "three"], 2)
    high, wide = 20 + compare.LINE + compare.EDGE, 30 + compare.EDGE
    assert paper.shape == (compare.EDGE + 2 * high, compare.EDGE + 2 * wide, 3) and paper.dtype == np.float32
    for place, picture in enumerate(pictures[:3]):
        top, left = compare.EDGE + place // 2 * high, compare.EDGE + place % 2 * wide
        assert np.array_equal(paper[top : top + 20, left : left + 30], picture)
        label = paper[top + 20 : top + 20 + compare.LINE, left : left + 30]
        assert (label.min() < 0.5) == (place != 1)  # ink, but where there is no word
    small = paper[
        compare.EDGE + high + 5 : compare.EDGE + high + 15, compare.EDGE + wide + 11 : compare.EDGE + wide + 19
    ]
    assert not small.any() and (paper == 0).all(-1).sum() == small[..., 0].size


def test_a_sheet_without_columns_is_nearly_square_and_nothing_is_an_error():
    assert compare.sheet([np.zeros((4, 4, 3), np.float32)] * 5, []).shape[:2] == (8 + 2 * 12, 8 + 3 * 12)
    with pytest.raises(SelectionError, match="no picture"):
        compare.sheet([], [])
    with pytest.raises(SelectionError, match="too large"):
        compare.sheet([np.broadcast_to(np.float32(0), (9000, 9000, 3))], [])


def test_long_labels_are_wrapped_and_clipped():
    font = compare.ImageFont.load_default(compare.LETTER)
    lines = compare._wrapped("a " * 40 + "averyveryverylongwordthatfitsnowhere", font, 100)
    assert len(lines) == compare.MOST_LINES and all(font.getlength(line) <= 100 for line in lines)
    assert compare._wrapped("averyveryverylongwordthatfitsnowhere", font, 60)[0].endswith("…")


def test_the_nodes_hand_on_lists(comfy):
    nodes = pack_module("nodes.compare")
    modes, strengths, labels, columns = nodes.AutoLoRACompare().compare("sum\nties", "0.5, 1")
    assert modes == ["sum", "sum", "ties", "ties"] and strengths == [0.5, 1.0, 0.5, 1.0] and columns == 2
    apply = pack_module("nodes.gated_apply").AutoLoRAGatedApply.INPUT_TYPES()["required"]
    assert nodes.AutoLoRACompare.RETURN_TYPES[0] == apply["mode"][0]  # or the two could not be connected
    batch = [torch.rand(2, 6, 6, 3), torch.rand(1, 6, 6, 3)]
    (image,) = nodes.AutoLoRAPictureSheet().show(batch, [3], labels[:2])
    assert image.shape[0] == 1 and image.shape[2] == 8 + 3 * 14
    assert torch.equal(image[0, 8:14, 22:28], batch[0][1])
