"""Proves that ``<lora:…>`` is read as each pack and program writes it and written as they read it, and that a name
means one file or none: never another than the user's."""

from __future__ import annotations

import re

import pytest

from autolora_core.errors import SelectionError
from autolora_core.fusion.file_names import find_names, namesakes, short_names, without_ending
from autolora_core.fusion.lora_text import Mark, marks_text, plain, read_marks, without_marks, write_mark
from autolora_core.fusion.requests import Request, requests_of, stack_entries

# What other packs hand out as LORA_STACK, by their sources at the commits named in docs/interoperation.md.
STACKS = {
    "efficiency-nodes, LoRA Stacker (simple)": [("sub\\a.safetensors", 0.8, 0.8)],
    "efficiency-nodes, own entries before the incoming": [("b.safetensors", 1.0, 0.5), ("a.safetensors", 0.8, 0.8)],
    "Comfyroll, CR LoRA Stack with empty slots from elsewhere": [("None", 1.0, 1.0), ("a.safetensors", 0.5, 0.25)],
    "Lora-Manager, Lora Stacker: system's separators": [("sub\\a.safetensors", 1.0, 0.5)],
    "Lora-Manager, a file it does not know: name as typed": [("a", 1.0, 1.0)],
    "Lora-Manager, a file outside the loras folders": [("/mnt/more/a.safetensors", 1.0, 1.0)],
    "Easy-Use, easy loraStack switched off": None,
    "Easy-Use, easy loraStack": [("a.safetensors", 0.7, 0.7)],
    "tksw_node and others: lists": [["a.safetensors", 0.6, 0.6]],
}


@pytest.mark.parametrize("who", STACKS)
def test_stacks_of_other_packs(who):
    stack = STACKS[who]
    kept = None if stack is None else list(stack)
    expected = [(e[0], float(e[1]), float(e[2])) for e in stack or () if e[0] != "None"]
    assert [(one.name, one.model, one.clip) for one in requests_of(None, stack)] == expected
    assert stack_entries(stack) == expected and all(type(entry) is tuple for entry in stack_entries(stack))
    assert stack == kept


def test_loose_entries_of_a_stack():
    stack = [("a", "0.5", " 0.25 "), ["b", 1], ("  ", 1, 1), ("none", 1, 1), (None, 1, 1)]
    assert stack_entries(stack) == [("a", 0.5, 0.25), ("b", 1.0, 1.0)]


MARKS = {
    "<lora:otter:0.8>": Mark("otter", 0.8, 0.8),  # A1111, Civitai, rgthree Power Prompt, Lora-Manager
    "<lora:otter:1.0:0.5>": Mark("otter", 1.0, 0.5),  # Lora-Manager: model, clip
    "<lora:sub\\otter.safetensors:1.0:1.0>": Mark("sub\\otter.safetensors"),  # efficiency-nodes, Stack to String
    "<lora:styles/otter v2:0.7>": Mark("styles/otter v2", 0.7, 0.7),  # Lora-Manager, names with folders
    "<lora:otter>": Mark("otter"),  # Inspire and Impact wildcards, rgthree Power Prompt
    "<lora:otter:>": Mark("otter"),  # rgthree allows an empty weight
    "<LORA:Otter:-1>": Mark("Otter", -1.0, -1.0),
    "<lora:otter:.5>": Mark("otter", 0.5, 0.5),
    "<lora:otter:0.8:0.6:LBW=SD-OUTALL;A=0;B=1>": Mark("otter", 0.8, 0.6, ("lbw=SD-OUTALL;A=0;B=1",)),  # Easy-Use
    "<lora:otter:te=0.5:unet=0.8>": Mark("otter", 0.8, 0.5),  # A1111's named forms
    "<lora:otter:te=0.5>": Mark("otter", 0.5, 0.5),  # A1111: unet follows te
    "<lora:otter:unet=0.8>": Mark("otter", 0.8, 1.0),  # A1111: te is 1
    "<lora:otter:0.4:unet=0.8:dyn=8>": Mark("otter", 0.8, 0.4, ("dyn=8",)),
    "<lora:C:\\loras\\otter.safetensors:0.8>": Mark("C:\\loras\\otter.safetensors", 0.8, 0.8),
    "<lora:a: b:0.8>": Mark("a: b", 0.8, 0.8),
    "<lora: spaced out :1>": Mark("spaced out"),
    "<lora:style-v1.0:1>": Mark("style-v1.0"),
}


@pytest.mark.parametrize("text", MARKS)
def test_marks_as_others_write_them(text):
    assert read_marks(f"an otter, {text}") == ([MARKS[text]], "an otter")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a cat", "a cat"),
        (" a cat, ", " a cat, "),  # nothing to take out: left as it is
        ("a cat <lora:x:1>", "a cat"),
        ("a cat, <lora:x:1>", "a cat"),
        ("<lora:x:1> a cat", "a cat"),
        ("<lora:x:1>, a cat", "a cat"),
        ("a cat, <lora:x:1>, a dog", "a cat, a dog"),
        ("a cat <lora:x:1>, a dog", "a cat, a dog"),
        ("a cat, <lora:x:1> a dog", "a cat, a dog"),
        ("a cat <lora:x:1> a dog", "a cat a dog"),
        ("a cat <lora:x:1><lora:y:1>\n<lora:z:1>\na dog", "a cat\n\na dog"),
        ("<lora:x:1>", ""),
        ("a <lora b> <loras:c:1> <b>", "a <lora b> <loras:c:1> <b>"),
    ],
)
def test_the_text_without_marks(text, rest):
    assert without_marks(text) == rest


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<lora::1>", "names no LoRA"),
        ("<lora:>", "names no LoRA"),
        ("<lora:x:0,8>", "0,8.*not a number.*0.8"),
        ("<lora:x:1e999:1.2.3>", "1.2.3.*not a number"),
        ("<lora:x:te=much>", "much.*not a number"),
    ],
)
def test_broken_marks_are_named(text, word):
    with pytest.raises(SelectionError, match=word):
        read_marks("a cat " + text)


def test_what_is_written_is_read_the_same():
    names = ["otter", "s/otter v2", "a:2", "C:x", "1.5", "ünï (v1)"]
    requests = [Request(name, 0.5 * k, 0.25 * k) for k, name in enumerate(names, start=1)]
    requests += [Request("same", 1.0, 1.0), Request("a:2", 1.0, 1.0), Request("gone", 0.0, 0.0)]
    marks, rest = read_marks(marks_text(requests))
    assert [(m.name, m.model, m.clip) for m in marks] == [(r.name, r.model, r.clip) for r in requests[:-1]]
    assert rest == ""


def test_marks_stand_in_the_forms_that_other_readers_look_for():
    text = marks_text([Request("otter", 0.85, 0.85), Request("fox", 1.0, 0.00001)], {"fox": "s/fox"})
    assert text == "<lora:otter:0.85> <lora:s/fox:1.0:0.00001>"
    # Lora-Manager's loader from text, rgthree's Power Prompt, Civitai, Lora-Manager's importer of pictures
    assert re.findall(r"<lora:([^:>]+):([^:>]+)(?::([^:>]+))?>", text, re.I)[1] == ("s/fox", "1.0", "0.00001")
    for reader in (
        r"<lora:([^:>]*?)(?::(-?\d*(?:\.\d*)?))?>",
        r"<lora:([\w.\-]+):([0-9.]+)>",
        r"<lora:([^:]+):(-?[0-9.]+)>",
    ):
        assert re.findall(reader, text)[0] == ("otter", "0.85")


def test_numbers_have_a_point_and_no_exponent():
    assert [plain(n) for n in (1, 1.0, 10, 0.1 + 0.2, 1e-5, -2.5, 0)] == [
        "1.0", "1.0", "10.0", "0.3", "0.00001", "-2.5", "0.0",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a>b", "a<b", "a\nb", " "])
def test_names_that_cannot_be_written_are_refused(name):
    with pytest.raises(SelectionError, match="cannot stand in"):
        write_mark(name, 1.0)


KNOWN = ["otter.safetensors", "styles/ink.safetensors", "styles/ink.pt", "old\\ink2.safetensors", "a/twin.safetensors",
         "b/twin.safetensors", "b/c/lone.safetensors", "Case.safetensors", "Style-v1.0.safetensors"]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("otter", ["otter.safetensors"]),
        ("styles\\ink", ["styles/ink.safetensors"]),  # a .pt beside it is not taken
        ("ink", ["styles/ink.safetensors"]),
        ("old/ink2.safetensors", ["old\\ink2.safetensors"]),
        ("style-v1.0", ["Style-v1.0.safetensors"]),
        ("Style-v1", []),  # .0 is no ending
        ("CASE", ["Case.safetensors"]),
        ("twin", ["a/twin.safetensors", "b/twin.safetensors"]),
        ("b/twin", ["b/twin.safetensors"]),
        ("c/lone", ["b/c/lone.safetensors"]),
        ("x/lone", []),  # another folder was meant
        ("tter", []),
        ("", []),
    ],
)
def test_which_files_a_name_may_mean(asked, found):
    assert find_names(asked, KNOWN) == found


def test_exact_case_comes_before_other_case():
    assert find_names("a", ["A.safetensors", "a.safetensors"]) == ["a.safetensors"]
    assert find_names("x.pt", ["x.pt.safetensors", "x.pt"]) == ["x.pt"]
    assert namesakes("x/lone", KNOWN) == ["b/c/lone.safetensors"]
    assert without_ending("x.SafeTensors") == "x" and without_ending("v1.5") == "v1.5"


def test_short_names_keep_folders_where_two_would_be_the_same():
    assert short_names(["a/twin.safetensors", "b\\twin.safetensors", "s/otter.safetensors"]) == {
        "a/twin.safetensors": "a/twin", "b\\twin.safetensors": "b/twin", "s/otter.safetensors": "otter",
    }  # fmt: skip
    assert short_names(["s/otter.safetensors"], ["s/otter.safetensors", "t\\otter.pt"]) == {
        "s/otter.safetensors": "s/otter"
    }
