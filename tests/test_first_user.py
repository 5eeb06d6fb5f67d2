"""A person's first hour, in a real browser on ComfyUI's own front end: a fresh server and profile, the pack's template
out of the greeting, a prompt typed, Run, a LoRA pinned on its card, another prompt, Run, export, save, reload, open.

On the way pictures are taken of what they see and compared with ``browser/references``: coarsely, so that another
machine's fonts pass, and by where the parts lie. Each look is also taken in another font, which must pass, and without
the pack's styles, which must not. To make the references anew, after a change of looks that is meant:
``AUTOLORA_NEW_REFERENCES=1 python -m pytest tests/test_first_user.py`` and look at them.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e_world import RETRIEVE, drawn, furthest, levels, need_demo_models, sampled_again
from looks_world import LOOKS, REFERENCES, apart, dots, faults, keep
from PIL import Image
from workflow_files import ui_file

from scripts._lib import browser
from scripts._lib.server import ComfyServer

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "browser" / "first_user.mjs"
PROMPTS = ("a cupcake, blueprint style", "a house with a garden")
SUBJECTS = ("cupcake-juniper.safetensors", "house-with-garden-basalt.safetensors")
PINNED = "blueprint-tern.safetensors"
NAME = "my first one"
NEW = os.environ.get("AUTOLORA_NEW_REFERENCES", "") == "1"


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the browser saw, what was saved, and the pictures that the server draws of what was exported."""
    need_demo_models()
    base = tmp_path_factory.mktemp("first")
    pictures = base / "pictures"
    pictures.mkdir()
    chromium = browser.find()
    with ComfyServer(base / "server") as server:
        job = {"url": server.url, "profile": str(base / "profile"), "viewport": {"width": 1300, "height": 720}}
        job |= {"prompts": PROMPTS, "pin": Path(PINNED).stem, "name": NAME, "pictures": str(pictures)}
        command = [str(chromium.node), str(SCRIPT), json.dumps(job)]
        done = subprocess.run(command, env=chromium.env(), capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{server.log_text()[-2000:]}"
        found = json.loads(done.stdout) | {"pictures": pictures, "steps": done.stderr}
        found["posted"] = drawn(server, server.run(sampled_again(found["exported"])))
        unpinned = json.loads(json.dumps(found["exported"]))
        unpinned[RETRIEVE]["inputs"]["pinned"] = ""
        found["unpinned"] = drawn(server, server.run(sampled_again(unpinned)))
        (saved,) = (base / "server" / "user").glob(f"*/workflows/{NAME}.json")
        found["saved"] = json.loads(saved.read_text(encoding="utf-8"))
    return found


def picture(run: dict[str, Any]) -> bytes:
    return base64.b64decode(run["picture"])


def names(run: dict[str, Any]) -> set[str]:
    return {card["name"] for card in run["cards"]}


def typed(graph: dict[str, Any]) -> dict[str, Any]:
    """Less what nodes that show texts write into themselves."""
    return {node: body["inputs"] for node, body in graph.items() if body["class_type"] != "PreviewAny"}


def test_the_template_opens_without_a_complaint(seen):
    assert seen["dialogs"] == [] and seen["flawed"] == 0
    assert sorted(seen["nodes"]) == sorted(node["type"] for node in ui_file("retrieve_and_fuse")["nodes"])
    assert [error for error in seen["errors"] if "autolora" in error.lower()] == [] == seen["alerts"]


def test_a_typed_prompt_gives_its_cards_and_a_picture(seen):
    assert seen["first"]["ended"]["kind"] == "execution_success", seen["first"]
    assert names(seen["first"]) == {SUBJECTS[0], PINNED}
    assert not any(card["pinned"] for card in seen["first"]["cards"])
    drawing = levels(picture(seen["first"]))
    assert drawing.shape == (128, 128, 3) and drawing.std() > 20


def test_what_was_pinned_stays_for_the_next_prompt(seen):
    assert seen["second"]["ended"]["kind"] == "execution_success", seen["second"]
    assert names(seen["second"]) == {SUBJECTS[1], PINNED}
    assert {card["name"] for card in seen["second"]["cards"] if card["pinned"]} == {PINNED}
    assert np.abs(levels(picture(seen["first"])) - levels(picture(seen["second"]))).mean() > 5


def test_the_exported_graph_draws_the_same_picture_over_http(seen):
    asked = seen["exported"][RETRIEVE]["inputs"]
    assert (asked["prompt"], asked["pinned"]) == (PROMPTS[1], PINNED)
    assert furthest(picture(seen["second"]), seen["posted"]) == 0 < furthest(seen["posted"], seen["unpinned"])


def test_what_was_saved_opens_as_it_was_after_a_reload(seen):
    (node,) = [node for node in seen["saved"]["nodes"] if node["type"] == "AutoLoRARetrieve"]
    assert {PROMPTS[1], PINNED} <= set(node["widgets_values"])
    assert typed(seen["opened"]) == typed(seen["exported"])
    assert seen["third"]["ended"]["kind"] == "execution_success", seen["third"]
    assert names(seen["third"]) == names(seen["second"])
    assert furthest(picture(seen["third"]), picture(seen["second"])) == 0


# -- what it looks like ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", LOOKS)
def test_every_part_lies_where_it_belongs(seen, look):
    assert faults(look, seen["looks"][look]) == []
    assert faults(look, seen["looks"][f"{look}.bare"]), "without its styles this must be seen"


@pytest.mark.parametrize("look", LOOKS)
def test_it_looks_as_it_did(seen, look):
    shot, reference = seen["pictures"] / f"{look}.png", REFERENCES / f"{look}.png"
    if NEW:
        keep(shot, reference)
    assert apart(shot, reference) == []
    assert apart(seen["pictures"] / f"{look}.font.png", reference) == [], "another machine's fonts must pass"
    assert apart(seen["pictures"] / f"{look}.bare.png", reference), "without its styles this must be seen"


def test_a_map_without_its_dots_is_noticed(tmp_path):
    picture = Image.open(REFERENCES / "map.png")
    picture.paste(0, dots(picture))
    picture.save(tmp_path / "map.png")
    assert apart(tmp_path / "map.png", REFERENCES / "map.png")


def test_the_references_are_small_and_no_others_are_there():
    assert {path.stem for path in REFERENCES.iterdir()} == set(LOOKS)
    assert max(path.stat().st_size for path in REFERENCES.iterdir()) <= 25_000
