"""Proves that prompts fall into the phrases a person would name, and that odd prompts fall into something sane."""

from __future__ import annotations

import pytest

from autolora_core.retrieve.spans import MAX_SPANS, MAX_WORDS, decompose, tokenise
from autolora_core.retrieve.words import content_stems, stem


def spans_of(prompt):
    return {span.text: span for span in decompose(prompt)}


@pytest.mark.parametrize(
    "prompt, subject, style",
    [
        ("a picture of an axolotl in pixel art style", "axolotl", "pixel art"),
        ("blueprint of a lighthouse", "lighthouse", "blueprint"),
        ("pixel art axolotl", "axolotl", "pixel art"),
        ("an otter in the style of Fluent 3D", "otter", "fluent 3d"),
        ("hot air balloon, watercolour, masterpiece, (best quality:1.2)", "hot air balloon", "watercolour"),
        ("a lighthouse as a stained glass mosaic", "lighthouse", "stained glass mosaic"),
        ("an otter, glimmercore style", "otter", "glimmercore"),
        ("a watercolour painting of a red fox", "red fox", "watercolour painting"),
    ],
)
def test_subject_and_style_are_told_apart(prompt, subject, style):
    found = spans_of(prompt)
    assert found[style].hint == "style" and found[subject].hint != "style"
    assert not found[style].words & found[subject].words


def test_a_manner_is_not_taken_apart():
    assert "art" not in spans_of("an axolotl in pixel art style") and "glass" not in spans_of("a fox, stained glass")


def test_black_and_white_is_one_manner():
    found = spans_of("an otter in black and white line art style")
    assert found["black and white line art"].hint == "style" and "black" not in found and "white line art" not in found
    assert spans_of("a black and white photo of an otter")["black and white"].hint == "style"
    assert {"black cat", "white dog"} <= spans_of("a black cat and a white dog").keys()


def test_parts_know_what_they_leave_out():
    found = spans_of("a cosy cabin on a snowy mountain at dusk")
    assert found["cosy cabin"].partial == 0 and not found["cosy cabin"].headless
    assert found["cabin"].partial == 1 and not found["cabin"].headless
    assert found["snowy"].partial == 1 and found["snowy"].headless
    assert found["dusk"].setting and not found["cabin"].setting
    assert found["cabin"].stems == {"cosy", "cabin"}
    whole = found["cosy cabin on a snowy mountain at dusk"]
    assert whole.joined and len(whole.words) == 5


def test_joined_names_and_clauses():
    found = spans_of("the tower of London at night, a red bus")
    assert found["tower of london"].joined
    assert found["red bus"].words.isdisjoint(found["tower"].words)
    assert all("night red" not in text for text in found)


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("smart falcon \\(umamusume\\), <lora:x:0.8> (running:1.3)", ["smart", "falcon", "umamusume", "running"]),
        ("sks_dog embedding:EasyNegative pixel-art", ["sks", "dog", "pixel", "art"]),
        ("Café ナルト 龙 l’été", ["café", "ナルト", "龙", "l'été"]),
        ("", []),
        ("... ,,, (((:1.2)))", []),
    ],
)
def test_tokens(prompt, words):
    assert [token.text for token in tokenise(prompt)] == words


def test_underscores_keep_a_name_together():
    assert "sks dog" in spans_of("a photo of sks_dog")


@pytest.mark.parametrize("prompt", ["a of the", "best quality, masterpiece", "", "style", "!!!"])
def test_prompts_that_say_nothing(prompt):
    assert all(span.words for span in decompose(prompt)) and len(decompose(prompt)) <= 1


def test_very_long_prompts_are_bounded_and_deterministic():
    prompt = " ".join(f"word{i} thing{i}," for i in range(5000))
    spans = decompose(prompt)
    assert max(max(span.words) for span in spans) < MAX_WORDS and len(spans) <= MAX_SPANS
    assert spans == decompose(prompt)
    assert len({span.words for span in spans}) == len(spans), "each set of words once"


@pytest.mark.parametrize(
    "word, expected",
    [("axolotls", "axolotl"), ("berries", "berry"), ("boxes", "box"), ("glass", "glass"), ("bus", "bus"),
     ("fox's", "fox"), ("horses", "horse")],
)  # fmt: skip
def test_plurals(word, expected):
    assert stem(word) == expected


def test_content_stems_never_leave_a_name_empty():
    assert content_stems("a picture of two Otters") == ("otter",)
    assert content_stems("The Best") == ("the", "best")
