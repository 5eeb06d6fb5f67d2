"""The shipped workflows, read in both formats, and the few facts about a format that tests compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts._lib.workflow_ui import is_widget

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
# For models of the user's own, which no test has: kind of file, name.
OTHER_BASES = ("flux_with_the_public_gate", "sdxl_retrieve_and_fuse")
OTHER_MODELS = (
    ("checkpoints", "sd_xl_base_1.0.safetensors"), ("diffusion_models", "flux1-dev.safetensors"),
    ("vae", "ae.safetensors"), ("text_encoders", "clip_l.safetensors"), ("text_encoders", "t5xxl_fp16.safetensors"),
)  # fmt: skip
SHOWING = ("SaveImage", "PreviewImage", "AutoLoRASaveImage")
NOTES = {"Note", "MarkdownNote"}  # known to the front end alone


def with_names_of_other_models(models: dict[str, list[Path]], tmp_path_factory: Any) -> dict[str, list[Path]]:
    """The folders, and some with empty files of the names that workflows for other bases ask for: menus list names."""
    models = dict(models)
    for kind, file in OTHER_MODELS:
        folder = tmp_path_factory.mktemp(kind)
        (folder / file).write_bytes(b"")
        models[kind] = [*models.get(kind, []), folder]
    return models


def ui_file(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def api_file(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def ui_nodes(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Node id → node, less the notes."""
    return {str(node["id"]): node for node in workflow["nodes"] if node["type"] not in NOTES}


def ui_wires(workflow: dict[str, Any]) -> dict[tuple[str, str], list]:
    """(node id, input's name) → [source id, slot], as the API format writes a link."""
    nodes = ui_nodes(workflow)
    return {
        (str(target), nodes[str(target)]["inputs"][slot]["name"]): [str(source), source_slot]
        for _, source, source_slot, target, slot, _ in workflow["links"]
    }


def on_the_demo_model(graph: dict[str, Any]) -> dict[str, Any]:
    """The same graph with the demo model's loaders, prompt and picture size in place of another base's."""
    demo = api_file("retrieve_and_fuse")
    parts: dict[tuple[str, int], list] = {}
    changed = json.loads(json.dumps(graph))
    for node, body in graph.items():
        gives = {"CheckpointLoaderSimple": "132", "UNETLoader": "1", "VAELoader": "2", "DualCLIPLoader": "3"}
        for slot, name in enumerate(gives.get(body["class_type"], "")):
            parts[node, slot] = [name, 0]
        if body["class_type"].startswith("Empty"):
            changed[node]["inputs"] |= {"width": 128, "height": 128}
        if body["class_type"] == "AutoLoRARetrieve":
            changed[node]["inputs"]["prompt"] = demo["5"]["inputs"]["prompt"]
    for body in changed.values():
        for key, value in body["inputs"].items():
            if isinstance(value, list):
                body["inputs"][key] = parts.get(tuple(value), value)
    # Ours first: their numbers are the demo graph's own.
    kept = {node: body for node, body in changed.items() if node not in {one for one, _ in parts}}
    return {name: demo[name] for name in "123"} | kept


def api_wires(graph: dict[str, Any]) -> dict[tuple[str, str], list]:
    return {
        (node, name): value
        for node, body in graph.items()
        for name, value in body["inputs"].items()
        if isinstance(value, list)
    }


def drawn(graph: dict[str, Any]) -> dict[str, bool]:
    """Node that shows pictures → whether they are the model's, and not what one of our nodes made of several."""
    shows = {node: body["inputs"]["images"] for node, body in graph.items() if body["class_type"] in SHOWING}
    whole = ("VAEDecode", "AutoLoRATrainFusionGate")
    return {node: graph[source]["class_type"] in whole for node, (source, _) in shows.items()}


def schema(info: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Input's name → (type, options), required ones first, in the order the node declares them."""
    inputs = {}
    for part in ("required", "optional"):
        for name, spec in info["input"].get(part, {}).items():
            inputs[name] = (spec[0], spec[1] if len(spec) > 1 else {})
    return inputs


def menu(kind: Any, options: dict[str, Any]) -> list | None:
    """What a menu offers, in either way servers write it; None for other inputs."""
    if isinstance(kind, list):
        return kind
    return options.get("options") if kind == "COMBO" else None


def widget_values(info: dict[str, Any], saved: list) -> dict[str, Any]:
    """A UI node's ``widgets_values`` by name. Raises ValueError when their number does not fit the node."""
    names = []
    for name, (kind, options) in schema(info).items():
        if is_widget(kind, options):
            names += [name, "control_after_generate"] if options.get("control_after_generate") else [name]
    return dict(zip(names, saved, strict=True))
