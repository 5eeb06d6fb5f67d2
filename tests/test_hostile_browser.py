"""Hostile names, tags and trigger words in ComfyUI's own front end: shown as they are written, and run by nobody."""

from __future__ import annotations

import html
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import emoji_factors, write_lora

from scripts._lib import browser
from scripts._lib.server import ComfyServer

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "browser" / "run_workflow.mjs"
MARK = "window.autoloraRan=1"
# Each sets the flag in a page that takes it for markup. Those of files have no slash.
IMAGE = f"<img src=x onerror={MARK}>"
NAMES = (
    IMAGE,
    f'"><svg onload={MARK}>',
    f"<script>{MARK}<script>",
    f"[otter](javascript:{MARK})",
    f"javascript:{MARK}",
)
WORDS = (
    IMAGE,
    f'"><script>{MARK}</script>',
    f"<iframe srcdoc='<script>parent.{MARK}</script>'>",
    f"![x](x onerror={MARK})",
    "`{{7*7}}`",
)


def node(
    number: int, kind: str, inputs: list[tuple[str, str, int | None]], outputs: list[str], values: list[Any]
) -> dict[str, Any]:
    """One node of a workflow file; ``inputs`` are (name, type, link)."""
    return {
        "id": number,
        "type": kind,
        "pos": [400 * (number - 1), 0],
        "size": [380, 400],
        "flags": {},
        "order": number,
        "mode": 0,
        "inputs": [{"name": name, "type": of, "link": link} for name, of, link in inputs],
        "outputs": [{"name": of, "type": of, "links": None} for of in outputs],
        "properties": {},
        "widgets_values": values,
    }


def workflow(pinned: str) -> dict[str, Any]:
    """Encode, Retrieve, and a preview of the report, the prompt and the selection; a menu of LoRA files beside them."""
    prompt = f"an otter {IMAGE}"
    nodes = [
        node(1, "AutoLoRAEncodeLibrary", [], ["LORA_INDEX", "STRING"], ["all loras", "", "hostile", False]),
        node(
            2,
            "AutoLoRARetrieve",
            [("index", "LORA_INDEX", 1)],
            ["LORA_SELECTION", "LORA_STACK", "STRING", "STRING"],
            [prompt, "auto", len(NAMES), 0.5, 1.0, pinned, "", True, True],
        ),
        node(3, "PreviewAny", [("source", "*", 2)], ["STRING"], []),
        node(4, "PreviewAny", [("source", "*", 3)], ["STRING"], []),
        node(5, "PreviewAny", [("source", "*", 4)], ["STRING"], []),
        node(6, "PreviewAny", [("source", "*", 5)], ["STRING"], []),
        node(
            7,
            "AutoLoRAFindSimilar",
            [("index", "LORA_INDEX", 6)],
            ["LORA_SELECTION", "LORA_STACK", "STRING"],
            ["none", "none", "auto", 5, 1.0, False],
        ),
    ]
    links = [
        [1, 1, 0, 2, 0, "LORA_INDEX"],
        [2, 2, 3, 3, 0, "STRING"],
        [3, 2, 2, 4, 0, "STRING"],
        [4, 2, 0, 5, 0, "LORA_SELECTION"],
        [5, 1, 1, 6, 0, "STRING"],
        [6, 1, 0, 7, 0, "LORA_INDEX"],
    ]
    for link, origin, slot, *_ in links:
        outputs = nodes[origin - 1]["outputs"][slot]
        outputs["links"] = [*(outputs["links"] or []), link]
    return {
        "version": 0.4,
        "last_node_id": 7,
        "last_link_id": 6,
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
    }


@pytest.fixture(scope="module")
def loras(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "loras"
    for seed, (name, words) in enumerate(zip(NAMES, WORDS, strict=True)):
        said = html.escape(words)  # markup is taken out of words; an escaped one comes through as text
        tags = json.dumps({"train": {words: 40, said: 39}})
        metadata = {"modelspec.title": f"Otter {said}", "modelspec.trigger_phrase": said, "ss_tag_frequency": tags}
        write_lora(folder / f"{name}.safetensors", emoji_factors(seed, blocks=1), metadata)
    write_lora(folder / IMAGE / f"in a folder {IMAGE}.safetensors", emoji_factors(9, blocks=1))
    write_lora(folder / "plain otter.safetensors", emoji_factors(8, blocks=1))
    (folder / f"broken {IMAGE}.safetensors").write_bytes(b"<html>")
    return folder


def test_hostile_names_and_words_are_shown_and_not_run(loras, tmp_path):
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(workflow("\n".join(f"{name}.safetensors" for name in NAMES))), encoding="utf-8")
    chromium = browser.find()
    with ComfyServer(tmp_path / "server", models={"loras": [loras]}) as server:
        server.client.post("/settings", {"Comfy.TutorialCompleted": True})
        job = {"url": server.url, "file": str(file), "nodes": 7, "profile": str(tmp_path / "profile"), "menus": True}
        job["viewport"] = {"width": 1280, "height": 720}
        command = [str(chromium.node), str(SCRIPT), json.dumps(job)]
        done = subprocess.run(command, env=chromium.env(), capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{server.log_text()[-2000:]}"
    seen = json.loads(done.stdout)
    assert seen["ended"]["kind"] == "execution_success", seen["ended"]
    shown = "\n".join(seen["texts"])
    written = shown.replace("\\", "")  # brackets of a trigger word are escaped in a prompt
    assert [text for text in (*NAMES, *WORDS) if text not in written] == [], "shown otherwise than written"
    assert "plain otter.safetensors" in seen["entries"], "the menus were not read"
    assert [entry for entry in seen["entries"] if "<" in entry] == []
    assert (seen["ran"], seen["planted"], seen["alerts"]) == (0, [], [])
