"""Proves that every language has every node, input and output, in the front end's form and on the help pages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir() if path.is_dir())
OTHERS = [language for language in LANGUAGES if language != "en"]


def defs(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.fixture
def nodes(pack):
    """Id → what the node says of itself, in the form of a translation."""
    found = {}
    for name, node in pack.NODE_CLASS_MAPPINGS.items():
        groups = node.INPUT_TYPES()
        inputs = {**groups.get("required", {}), **groups.get("optional", {})}
        outputs = zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True)
        found[name] = {
            "display_name": pack.NODE_DISPLAY_NAME_MAPPINGS[name],
            "description": node.DESCRIPTION,
            "inputs": {key: {"name": key, "tooltip": spec[1]["tooltip"]} for key, spec in inputs.items()},
            "outputs": {str(place): {"name": key, "tooltip": tip} for place, (key, tip) in enumerate(outputs)},
        }
    return found


def test_english_and_chinese_are_there():
    assert {"en", "zh"} <= set(LANGUAGES)


def test_english_is_what_the_nodes_say(nodes):
    """Otherwise: python scripts/locales.py"""
    assert defs("en") == nodes


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_has_everything_and_nothing_else(nodes, language):
    theirs = defs(language)
    assert set(theirs) == set(nodes)
    for name, node in nodes.items():
        translated = theirs[name]
        for part in ("inputs", "outputs"):
            assert list(translated[part]) == list(node[part]), f"{name}: {part}"
            for key, words in translated[part].items():
                assert words["name"] and words["tooltip"], f"{name}.{key}"
                assert words["tooltip"] != node[part][key]["tooltip"], f"{name}.{key} is not translated"
        assert translated["display_name"] and translated["description"] != node["description"], name


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_words_mean_something_to_the_front_end_s_translator(language):
    """It takes {x} for a value, @:x for a link and | for a plural."""
    text = (ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")
    values = re.findall(r'": "((?:[^"\\]|\\.)*)"', text)
    assert len(values) > 300 and not [value for value in values if re.search(r"[{}@|]", value)]


@pytest.mark.parametrize("language", OTHERS)
def test_every_help_page_is_translated_row_by_row(nodes, language):
    for name in nodes:
        page = ROOT / "web" / "docs" / name / f"{language}.md"
        assert page.is_file(), f"{page} is missing"
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {defs(language)[name]['display_name']}\n"), page
        english = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        rows = [row for row in re.findall(r"^\| (\S+) \|", english, re.M) if row not in ("input", "output", "---")]
        missing = [row for row in rows if f"\n| {row} |" not in text]
        assert not missing, f"{page}: {missing}"
        assert text.count("\n#") >= english.count("\n#") - 1, f"{page} is shorter than the English page"
