"""Proves that selections and stacks become one checked list, and that few-step LoRAs are told by their names."""

from __future__ import annotations

import pytest

from autolora_core.errors import SelectionError
from autolora_core.fusion.kinds import few_step_reason
from autolora_core.fusion.report import LoraOutcome, fusion_report
from autolora_core.fusion.requests import Request, merge_same_files, requests_of
from autolora_core.wording import listed

SELECTION = {
    "format": "autolora-selection/1",
    "picks": [{"name": "s/otter.safetensors", "strength": 0.8, "path": "/x"}],
}


def test_selection_comes_first_and_strength_multiplies():
    found = requests_of(SELECTION, [("style.safetensors", 0.5, 0.25)], strength=2.0)
    assert found == [
        Request("s/otter.safetensors", 1.6, 1.6, "selection", "/x"),
        Request("style.safetensors", 1.0, 0.5),
    ]


@pytest.mark.parametrize(
    ("pick", "asked"),
    [
        ({"score": 0.3, "parts": {"text": 0.3}}, 0.3),
        ({"score": 0.3, "parts": {"text": None, "lexical": 0.1}}, 0.3),
        ({"score": 0.3, "parts": {"response": 0.3}}, 1.0),  # no words to compare: little is known
        ({"score": 0.0, "parts": {"text": 0.0}, "role": "pinned"}, 1.0),
        ({"score": "high", "parts": {"text": 0.2}}, 1.0),
        ({"parts": None}, 1.0),
    ],
)
def test_how_far_a_pick_is_asked_for(pick, asked):
    selection = {"format": "autolora-selection/1", "picks": [{"name": "a", "strength": 1.0, "role": "style", **pick}]}
    (request,) = requests_of(selection, None)
    assert request.asked == asked
    assert requests_of(None, [("a", 1.0, 1.0)])[0].asked == 1


def test_none_entries_are_left_out_and_the_stack_is_not_changed():
    stack = [("None", 1.0, 1.0), (None, 1, 1), ("", 1.0, 1.0), ["a.safetensors", 1, 0]]
    before = list(stack)
    assert [one.name for one in requests_of(None, stack)] == ["a.safetensors"]
    assert stack == before
    assert requests_of(None, None) == []


def test_strengths_of_one_file_in_a_stack_add_up():
    a, b, c = Request("a", 0.5, 0.1), Request("b", 1.0, 1.0), Request("A", 0.25, -0.1)
    merged = merge_same_files([("/a", a), ("/b", b), ("/a", c)])
    note = "named 2 times in the stack: the strengths are added (0.5, text encoder 0.1 and 0.25, text encoder -0.1)"
    assert merged == [("/a", Request("a", 0.75, 0.0, notes=(note,))), ("/b", b)]


@pytest.mark.parametrize("order", [1, -1])
def test_a_file_in_selection_and_stack_is_the_selections(order):
    pick, entry = Request("a", 0.5, 0.5, "selection", "p"), Request("A", 0.25, 0.25)
    merged = merge_same_files([("/a", pick), ("/a", entry)][::order])
    note = "in the stack too (× 0.25): used once, with the selection's strength"
    assert merged == [("/a", Request("a", 0.5, 0.5, "selection", "p", (note,)))]


@pytest.mark.parametrize(
    ("selection", "stack", "word"),
    [
        ({"picks": []}, None, "Retrieve"),
        ("text", None, "Retrieve"),
        ({**SELECTION, "picks": None}, None, "list of picks"),
        ({**SELECTION, "picks": [{}]}, None, "pick 1"),
        ({**SELECTION, "picks": [{"name": "a", "strength": "1"}]}, None, "strength of a"),
        (None, "a.safetensors", "list"),
        (None, [("a",)], "entry 1"),
        (None, [("a", 1.0, 1.0, "OUTALL")], "entry 1"),
        (None, [{"name": "a"}], "entry 1"),
        (None, [("a", "strong", 1.0)], "strength of a"),
        (None, [("a", 1.0, 1.0), (3, 1.0, 1.0)], "entry 2"),
        (None, [("a", float("nan"), 1.0)], "strength of a"),
        (None, [("a", True, 1.0)], "strength of a"),
    ],
)
def test_malformed_inputs_are_named(selection, stack, word):
    with pytest.raises(SelectionError, match=word):
        requests_of(selection, stack)


FEW_STEP = [
    "lcm-lora-sdv1-5.safetensors",
    "sub\\LCM_LoRA_SDXL.safetensors",
    "FLUX.1-Turbo-Alpha.safetensors",
    "sdxl_lightning_4step_lora.safetensors",
    "Hyper-SDXL-8steps-lora.safetensors",
    "Qwen-Image-Lightning-8steps-V1.0.safetensors",
    "dmd2_sdxl_4step_lora_fp16.safetensors",
    "Wan21_CausVid_14B_T2V.safetensors",
]
ORDINARY = [
    "lightning_bolt_style.safetensors",
    "Porsche 911 Turbo.safetensors",
    "hyperrealistic-sdxl.safetensors",
    "hyper-detailed.safetensors",
    "flash-photography.safetensors",
    "otter.safetensors",
    "credit_card.safetensors",
]


@pytest.mark.parametrize("name", FEW_STEP)
def test_few_step_loras_are_recognised(name):
    assert "file name" in few_step_reason(name)


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_names_are_not(name):
    assert few_step_reason(name) is None


def test_metadata_title_counts():
    assert "modelspec.title" in few_step_reason("x.safetensors", {"modelspec.title": "SDXL Lightning 4-step"})
    assert few_step_reason("x.safetensors", {"comment": "lcm"}) is None


def test_report_says_everything_once():
    outcome = LoraOutcome("a", 0.8, 0.5, "selection", matched=3, total=5, clip_layers=2, missing=["m1", "m2"])
    outcome.forwarded = {"l1": "DoRA", "l2": "DoRA", "l3": "a bias"}
    outcome.outside_gate = "the file name says 'lcm'"
    text = fusion_report("gate", "g.safetensors", [outcome], 2, 3, absent=[Request("z", 0.0, 0.0, notes=("why",))])
    for part in ("mode: gate (g.safetensors)",
                 "gate on 2 of 3 layers; the other is summed", "a × 0.8 (selection): 3 of 5 layers",
                 "2 text encoder layers × 0.5", "(DoRA): l1, l2", "(a bias): l3", "not in this model: m1, m2",
                 "says 'lcm'", "z: strength 0, absent\n  why"):  # fmt: skip
        assert text.count(part) == 1, part
    assert "lcm" not in fusion_report("sum", "asked for", [outcome], 0, 3)
    assert "returned as it came" in fusion_report("sum", "no LoRA for a gate", [], 0, 0)


def test_long_lists_are_cut():
    assert LoraOutcome("a", 1, 1, notes=list("abcde")).lines("sum")[-1] == "  and 1 more note"
    outcome = LoraOutcome("a", 1, 1, notes=[f"note {n}" for n in range(9)])
    assert outcome.lines("sum")[-2:] == ["  note 3", "  and 5 more notes"]
    assert listed("abcdef") == "a, b, c, d and 2 more"
