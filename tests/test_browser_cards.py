"""The cards in the nodes, in a real browser on ComfyUI's own front end: what they show, that every control works by
keys alone, that choices survive saving, loading and export and give the same picture, and that names run nothing."""

from __future__ import annotations

import html
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import emoji_factors, write_lora
from e2e_world import RETRIEVE, SEEDED, StandIn, drawn, furthest, need_demo_models, sampled_again
from PIL import Image
from test_hostile_browser import IMAGE, MARK, WORDS
from workflow_files import ROOT, ui_file

from autolora_core.retrieve.choices import read_choices
from scripts._lib import browser
from scripts._lib.server import ComfyServer

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "browser" / "cards.mjs"
HOSTILE = f"{IMAGE}.safetensors"
# Set to a folder to have pictures of the cards, to be looked at.
SCREENSHOTS = os.environ.get("AUTOLORA_SCREENSHOTS", "")


def workflow() -> dict[str, Any]:
    """The shipped one, asked for an otter, with the hostile file pinned, at two steps, what passes recorded."""
    shipped = ui_file("retrieve_and_fuse")
    for node in shipped["nodes"]:
        values = node.get("widgets_values")
        if node["type"] == "AutoLoRARetrieve":
            values[0], values[5] = "an otter, pixel art style", HOSTILE
        elif node["type"] == "AutoLoRAEncodeLibrary":
            values[2] = "cards"
        elif node["type"] == "AutoLoRAGatedApply":
            values[7] = True
        elif node["type"] == "KSampler":
            values[2], values[3] = SEEDED["steps"], SEEDED["cfg"]
    return shipped


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> StandIn:
    made = StandIn(tmp_path_factory.mktemp("cards") / "models")
    said = {"modelspec.title": "Otter", "modelspec.trigger_phrase": "otter, brown fur, river, whiskers"}
    write_lora(made.loras / "otter.safetensors", emoji_factors(0, 2), said)
    Image.new("RGB", (40, 30), "teal").save(made.loras / "otter.png")
    said = {
        "modelspec.title": html.escape(f"Evil {WORDS[1]}"),
        "modelspec.trigger_phrase": html.escape(", ".join(WORDS)),
    }
    write_lora(made.loras / HOSTILE, emoji_factors(50, 2), said)
    (made.loras / "broken.safetensors").write_bytes(b"<html>")
    return made


@pytest.fixture(scope="module")
def seen(world, tmp_path_factory):
    """What the browser saw, and the pictures of its two exports, drawn by the server without a browser."""
    need_demo_models()
    base = tmp_path_factory.mktemp("cards_run")
    (base / "workflow.json").write_text(json.dumps(workflow()), encoding="utf-8")
    chromium = browser.find()
    with ComfyServer(base / "server", models=world.models()) as server:
        server.client.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
        job = {"url": server.url, "workflow": str(base / "workflow.json"), "profile": str(base / "profile")}
        job |= {"screenshots": SCREENSHOTS} if SCREENSHOTS else {}
        command = [str(chromium.node), str(SCRIPT), json.dumps(job)]
        done = subprocess.run(command, env=chromium.env(), capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{server.log_text()[-2000:]}"
        found = json.loads(done.stdout)
        found["steps"] = done.stderr
        chosen = {node: {**body, "inputs": dict(body["inputs"])} for node, body in found["api"].items()}
        found["as chosen"] = [drawn(server, server.run(graph)) for graph in (chosen, sampled_again(chosen))]
        chosen[RETRIEVE]["inputs"]["choices"] = ""
        found["not chosen"] = drawn(server, server.run(sampled_again(chosen)))
    return found


def by_name(cards: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {card["name"]: card for card in cards["cards"]}


def test_everything_ran_and_nothing_of_a_name_did(seen):
    assert [seen[run]["kind"] for run in ("first", "second", "third")] == ["execution_success"] * 3, seen
    assert [error for error in seen["errors"] if "autolora" in error.lower()] == []
    assert (seen["ran"], seen["planted"], seen["alerts"]) == (0, [], [])
    shown = by_name(seen["cards"]["AutoLoRARetrieve"])
    assert all(text in shown[HOSTILE]["text"] for text in (MARK, "`{{7*7}}`"))  # as text; tags are taken out before


def test_retrieve_shows_a_card_a_pick_with_all_that_is_known(seen):
    found = seen["cards"]["AutoLoRARetrieve"]
    shown = by_name(found)
    assert [card["name"] for card in found["cards"] if not card["miss"]][0] == HOSTILE
    otter = shown["otter.safetensors"]
    assert "words 95" in otter["text"] and "its title says “Otter”" in otter["text"] and "subject" in otter["text"]
    assert otter["pressed"] == ["otter", "brown fur", "river"] and otter["strength"] == "1"
    assert shown["pixel_art_style.safetensors"]["picture"] == 0 and "P" in shown["pixel_art_style.safetensors"]["text"]
    assert [name for name in shown[HOSTILE]["pressed"] if name.startswith("Pin ")]
    assert found["hidden"] == ["choices"] and found["nameless"] == 0
    assert found["said"].startswith("3 LoRAs picked: ")


def test_a_preview_beside_the_file_is_the_card_s_picture(seen):
    assert by_name(seen["cards"]["AutoLoRARetrieve"])["otter.safetensors"]["picture"] == 40


def test_apply_shows_layers_and_what_passes_while_it_samples(seen):
    found = seen["cards"]["AutoLoRAGatedApply"]
    assert len(found["cards"]) == 3 and found["nameless"] == 0
    for card in found["cards"]:
        assert "layers" in card["text"] and card["heat"].startswith(f"What passes of {card['name']}: "), card
    heat = seen["cards"]["told"]["autolora.heat"]
    assert [message.get("step") for message in heat if "step" in message] == [0, 1]
    assert heat[0]["begin"] and heat[0]["steps"] == 2 and heat[-1]["end"]


def test_encode_shows_counts_problems_and_how_far_it_is(seen):
    found = seen["cards"]["AutoLoRAEncodeLibrary"]
    assert "emoji" in found["text"] and "broken.safetensors" in found["text"] and "new" in found["text"]
    told = seen["cards"]["told"]["autolora.progress"]
    assert told[-1]["share"] == 1 and "Reading files" in {one["step"] for one in told}


def test_text_is_readable_in_both_palettes(seen):
    for contrast in seen["contrast"].values():
        assert contrast["name"] >= 7 and contrast["reason"] >= 3, seen["contrast"]
    assert set(seen["contrast"]) == {"light", "dark"}


def test_every_control_works_by_keys_alone(seen):
    keys = seen["keys"]
    assert keys["folded"] and keys["firstCard"] == HOSTILE
    (otter,) = read_choices(keys["after"]["choices"]).items()
    assert otter[0] == "otter.safetensors" and otter[1].role == "style"
    assert otter[1].triggers == {"brown fur": False, "whiskers": True} and otter[1].strength == 0.85
    assert keys["after"]["pinned"].splitlines() == [HOSTILE, "otter.safetensors"] and keys["after"]["banned"] == ""
    assert keys["banned"]["banned"] == "pixel_art_style.safetensors" and keys["unbanned"] == keys["after"]
    assert keys["said"].endswith("Counts from the next run on.")
    assert keys["nodes"] == len(workflow()["nodes"])


def test_choices_survive_saving_loading_and_export(seen):
    inputs = seen["inputs"]
    assert inputs["choices"] == seen["keys"]["after"]["choices"] and inputs["pinned"] == seen["keys"]["after"]["pinned"]
    assert "cards" not in inputs and typed(seen["again"]) == typed(seen["api"])
    saved = next(node for node in seen["saved"]["nodes"] if node["type"] == "AutoLoRARetrieve")
    assert inputs["choices"] in saved["widgets_values"] and len(saved["widgets_values"]) == len(saved_widgets())
    assert "choices kept for 1 LoRA" in seen["waiting"] and "otter" in seen["waiting"]
    otter = by_name(seen["chosen"]["AutoLoRARetrieve"])["otter.safetensors"]
    assert otter["strength"] == "0.85" and "style ⇄" in otter["text"]
    assert [one for one in otter["pressed"] if not one.startswith("Pin ")] == ["otter", "river", "whiskers"]
    assert seen["takenBack"] == ""


def typed(graph: dict[str, Any]) -> dict[str, Any]:
    """Less what nodes that show texts write into themselves."""
    return {node: body["inputs"] for node, body in graph.items() if body["class_type"] != "PreviewAny"}


def saved_widgets() -> list[Any]:
    return next(node for node in workflow()["nodes"] if node["type"] == "AutoLoRARetrieve")["widgets_values"]


def test_the_same_choices_give_the_same_picture(seen):
    first, again = seen["as chosen"]
    assert furthest(first, again) == 0 < furthest(first, seen["not chosen"])


def test_what_the_server_does_not_run_again_is_shown_again(seen):
    assert seen["known"]["run"]["kind"] == "execution_success" and seen["known"]["apply"] == 3


def test_what_a_prompt_tells_is_for_its_own_workflow_alone(seen):
    """Another one is open while it runs, with the same nodes under the same numbers."""
    beside = seen["beside"]
    assert beside["end"] == "execution_success" and beside["told"] == 1 and beside["away"] != beside["home"]
    assert all("Run to " in text for text in beside["bodies"]), beside["bodies"]
    assert beside["back"] == beside["home"] and len(beside["heats"]) == 3, (
        "its own has what passed when it is shown again"
    )


def test_a_page_loaded_anew_and_an_entry_of_the_history_show_the_last_map(seen):
    again = seen["reloaded"]
    assert again["heats"] == seen["beside"]["heats"] and not any("Run to " in text for text in again["bodies"])
    assert len(seen["entry"]) == 3 and seen["entry"] != again["heats"], "the first run's own"
    runs = [cards[0] for cards in seen["runs"] if cards]
    # ComfyUI lists a node that it did not run again in no later entry: what passed then is on the page alone.
    assert len(runs) >= 2 and all(heat["steps"] == 2 and len(heat["loras"]) == 3 for heat in runs)
    assert runs[0] != runs[-1] and len(json.dumps(runs[-1])) < 64_000


def test_none_fits_is_a_plain_sentence_with_the_nearest_paler(seen):
    found = seen["none"]
    assert "No LoRA was added: none of the" in found["text"] and found["said"] == "No LoRA fits this prompt."
    assert found["cards"] and all(card["miss"] and "strength" not in card for card in found["cards"])


def test_of_ten_thousand_cards_those_in_view_are_built(seen):
    many = seen["many"]
    assert many["first"][0] == "many/0.safetensors" and 2 <= len(many["first"]) < 60
    assert "many/9999.safetensors" in many["last"] and len(many["last"]) < 60 and many["focused"] == "10000"
    assert many["took"] < 5000


def test_problems_that_a_card_leaves_out_are_counted_by_kind(seen):
    assert "30,000 notes on files" in seen["faulty"]
    assert "… and 29,800 more. They are listed elsewhere." in seen["faulty"]
    assert "30,000 × this is <b>not</b> a safetensors file" in seen["faulty"]


def test_a_graph_laid_out_before_there_were_cards_keeps_its_sizes(seen):
    assert seen["older"]["folded"] and seen["older"]["height"] == 560 < seen["older"]["unfolded"]


def test_pages_and_styles_are_small_and_stand_alone():
    """No markup made of strings, no address elsewhere: what the browser saw is all there can be."""
    files = [
        *(ROOT / "web" / "cards").glob("*.js"),
        *(ROOT / "web" / "css").glob("*.css"),
        ROOT / "web" / "autolora.js",
    ]
    assert len(files) > 9
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, path
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "@import",
        ):
            assert word not in text, f"{path} has {word}"
        assert "://" not in text.replace('"http://www.w3.org/2000/svg"', ""), path
