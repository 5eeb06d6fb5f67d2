"""Every shipped workflow in a real browser on ComfyUI's own front end: opened, run, looked at; and the help pages."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e_world import need_demo_models
from workflow_files import FOLDER, NAMES, ROOT, api_file, drawn, ui_file, with_names_of_other_models

from scripts._lib import browser
from scripts._lib.server import DEMO_MODELS, ComfyServer

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "browser" / "run_workflow.mjs"
PACK_NODES = (
    "AutoLoRAEncodeLibrary", "AutoLoRARetrieve", "AutoLoRAFindSimilar", "AutoLoRAGatedApply",
    "AutoLoRAMiniLMCLIPLoader", "AutoLoRATrainEncoder", "AutoLoRATrainFusionGate",
    "AutoLoRATimeAndPlace", "AutoLoRAConflictReport", "AutoLoRAGateHeatMap", "AutoLoRASaveMerged",
    "AutoLoRAStackFromText", "AutoLoRAStackToText", "AutoLoRASaveImage",
    "AutoLoRACompare", "AutoLoRAPictureSheet", "AutoLoRARenderPreviews",
)  # fmt: skip
RUN = (
    "retrieve_and_fuse", "compare_sum_and_gate", "compare_modes", "choose_by_hand", "find_in_my_library", "look_inside",
)  # fmt: skip
# Set to a folder to have pictures of the graphs after they ran (they are made anew for the README now and then).
SCREENSHOTS = os.environ.get("AUTOLORA_SCREENSHOTS", "")


@pytest.fixture(scope="module")
def chromium():
    try:
        return browser.find()
    except browser.BrowserMissing as error:
        pytest.fail(str(error))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    need_demo_models()
    models = with_names_of_other_models(DEMO_MODELS, tmp_path_factory)
    with ComfyServer(tmp_path_factory.mktemp("browser"), models=models) as server:
        # No greeting for a new user, and no small map over the corner of a screenshot.
        server.client.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
        yield server


def run_in_browser(
    chromium: browser.Browser, server: ComfyServer, name: str, profile: Path, run: bool = True
) -> dict[str, Any]:
    """What the browser saw; see the script."""
    job = {
        "url": server.url,
        "file": str(FOLDER / f"{name}.json"),
        "nodes": len(ui_file(name)["nodes"]),
        "profile": str(profile),
        "run": run,
        "viewport": {"width": 2000, "height": 900} if SCREENSHOTS else {"width": 1280, "height": 720},
        "screenshot": os.path.join(SCREENSHOTS, f"{name}.png") if SCREENSHOTS else None,
    }
    command = [str(chromium.node), str(SCRIPT), json.dumps(job)]
    done = subprocess.run(command, env=chromium.env(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stderr}\n{server.log_text()[-2000:]}"
    return json.loads(done.stdout)


@pytest.mark.parametrize(("name", "look"), [*((name, "classic") for name in RUN), ("retrieve_and_fuse", "Nodes 2.0")])
def test_the_front_end_opens_the_workflow_runs_it_and_shows_what_came_out(chromium, server, tmp_path, name, look):
    server.client.post("/settings", {"Comfy.VueNodes.Enabled": look == "Nodes 2.0"})
    seen = run_in_browser(chromium, server, name, tmp_path / "profile")
    opened(name, seen, look)
    assert seen["dialogsAfter"] == []
    assert seen["ended"]["kind"] == "execution_success", seen["ended"]
    sizes = [[size == [128, 128] for size in sizes] for sizes in seen["pictures"]]
    assert sorted(sizes) == sorted([of_the_model] for of_the_model in drawn(api_file(name)).values()), seen["pictures"]
    assert seen["texts"] and all(text.strip() for text in seen["texts"])
    assert any("Picked:" in text for text in seen["texts"])


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(RUN)))
def test_the_front_end_opens_the_workflow_as_it_was_saved(chromium, server, tmp_path, name):
    """What these do when they run, their API twins show: ``test_workflows``."""
    server.client.post("/settings", {"Comfy.VueNodes.Enabled": False})
    opened(name, run_in_browser(chromium, server, name, tmp_path / "profile", run=False), "classic")


def opened(name: str, seen: dict[str, Any], look: str) -> None:
    assert seen["dialogs"] == []
    assert [node for node in seen["nodes"] if not node["known"] or node["flawed"]] == []
    assert [error for error in seen["errors"] if "autolora" in error.lower()] == []
    if look == "classic":  # the other look has sizes of its own
        unchanged(ui_file(name), seen["saved"])
    asked = ui_file(name)["extra"]["linearData"]  # what the newer front end's app mode shows
    widgets = {str(node["id"]): node["widgets"] for node in seen["nodes"]}
    assert asked["outputs"] and all(widget in widgets[str(node)] for node, widget in asked["inputs"])
    assert {str(node) for node in asked["outputs"]} <= set(widgets)


def unchanged(ours: dict[str, Any], saved: dict[str, Any]) -> None:
    """The front end would save what it opened: same nodes, sockets, values, wires and places."""
    theirs = {node["id"]: node for node in saved["nodes"]}
    assert {node["id"] for node in ours["nodes"]} == set(theirs)
    for node in ours["nodes"]:
        other = theirs[node["id"]]
        for key in ("type", "widgets_values", "pos", "size"):
            assert node[key] == other.get(key), (node["id"], key)
        assert [entry["name"] for entry in node["inputs"]] == [entry["name"] for entry in other["inputs"]]
        assert [entry["link"] for entry in node["inputs"]] == [entry["link"] for entry in other["inputs"]]
    assert sorted(ours["links"]) == sorted(saved["links"])


def test_every_node_and_every_input_explains_itself(server):
    for name in PACK_NODES:
        info = server.client.object_info(name)[name]
        assert info["description"] and len(info["output_tooltips"]) == len(info["output"])
        page = server.client.request("GET", f"/extensions/autolora/docs/{name}.md").decode()
        assert page.startswith(f"# {info['display_name']}\n")
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        for entry, spec in inputs.items():
            assert spec[1].get("tooltip"), f"{name}.{entry} has no tooltip"
            assert f"\n| {entry} |" in page, f"{name}.{entry} is not on its help page"
        for output in info["output_name"] if inputs else ():
            assert f"\n| {output} |" in page, f"{name}'s output {output} is not on its help page"


def test_the_help_pages_are_of_nodes_that_exist():
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == set(PACK_NODES)
