"""The demo's run: the shipped workflow for each prompt, then the pictures it is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import graphs
from .cli import ScriptFailed
from .client import Graph, RunResult
from .files import write_atomic
from .graphs import Comparison
from .png import same_picture
from .progress import Progress, RunProgress
from .server import ComfyServer

_RUN_TIMEOUT = 3600.0  # seconds for one graph; two dozen pictures on a machine that is busy with something else
_MISSING = (
    "Missing: {what}. It is part of this repository: get a complete copy, or make the demo's models yourself with "
    "`python -m zoo build` (hours)."
)


@dataclass
class Shown:
    """One prompt and all that was drawn for it.

    Attributes:
        prompt: as given.
        selection: what Retrieve picked (the ``autolora-selection/1`` dict).
        text: the prompt with trigger words, which every picture but the base is drawn from.
        fusion: Gated Apply's own report.
        seconds: of the shipped workflow alone: retrieve, fuse, draw.
        pictures: ``base``, ``pick1`` …, ``chain`` (stock loaders in a row), ``ours``.
        same_as_base: whether ours is the base picture, bit for bit.
    """

    prompt: str
    selection: dict[str, Any]
    text: str
    fusion: str
    seconds: float
    pictures: dict[str, Path] = field(default_factory=dict)
    same_as_base: bool = False

    @property
    def picks(self) -> list[dict[str, Any]]:
        """The chosen LoRAs, best first."""
        return self.selection["picks"]


def run(server: ComfyServer, prompts: Sequence[str], seed: int, out: Path) -> list[Shown]:
    """Draw everything, saving the pictures under ``out/pictures``.

    Raises:
        ScriptFailed: the server lacks a node of the workflow, or a prompt that nothing fits changed the picture.
    """
    workflow = graphs.load()
    if not server.install.owned:
        # a user's extra_model_paths.yaml may bring thousands of LoRAs; the demo's folder comes first, so it is "loras"
        workflow = graphs.from_folder(workflow, "loras")
    check_nodes(server, workflow)
    _follow(server, graphs.encode_only(workflow), "Reading the LoRA library")
    shown = [_retrieve_and_draw(server, workflow, prompt, seed, out, row) for row, prompt in enumerate(prompts)]
    _draw_comparison(server, workflow, shown, seed, out)
    for one in shown:
        if not one.picks and not one.same_as_base:
            raise ScriptFailed(f"Nothing fits {one.prompt!r}, yet the picture is not the base model's: this is a bug.")
    return shown


def check_models(models: Mapping[str, Sequence[Path]]) -> None:
    """Raise `ScriptFailed` unless every model file that the workflow names, and a LoRA, is in its folder."""
    workflow = graphs.load()
    named = {"diffusion_models": ("UNETLoader", "unet_name"), "vae": ("VAELoader", "vae_name")}
    for kind, (loader, entry) in named.items():
        file = workflow[graphs.find(workflow, loader)]["inputs"][entry]
        if not any((folder / file).is_file() for folder in models[kind]):
            raise ScriptFailed(_MISSING.format(what=models[kind][0] / file))
    if not any(any(folder.rglob("*.safetensors")) for folder in models["loras"]):
        raise ScriptFailed(_MISSING.format(what=f"every LoRA in {models['loras'][0]}"))


def check_nodes(server: ComfyServer, workflow: Graph) -> None:
    """Raise `ScriptFailed` unless the server knows every node class of the workflow."""
    known = server.client.object_info()
    missing = sorted({body["class_type"] for body in workflow.values()} - set(known))
    if missing:
        raise ScriptFailed(
            f"The server did not load the nodes {', '.join(missing)}. Its log says why: {server.log}\n"
            + "\n".join(server.log_text().splitlines()[-40:])
        )


def _follow(server: ComfyServer, graph: Graph, label: str) -> RunResult:
    progress = Progress(label)
    try:
        result = server.run(graph, RunProgress(progress, graphs.titles(graph)), timeout=_RUN_TIMEOUT)
    except BaseException as error:
        progress.done("stopped" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    progress.done(f"{result.seconds:.1f} s")
    return result


def _retrieve_and_draw(server: ComfyServer, workflow: Graph, prompt: str, seed: int, out: Path, row: int) -> Shown:
    graph = graphs.fill(workflow, prompt, seed)
    result = _follow(server, graph, f"“{prompt}”")
    selection = json.loads(result.text(graphs.SELECTION))
    shown = Shown(prompt, selection, result.text(graphs.PROMPT), result.text(graphs.FUSION), result.seconds)
    _save(server, result, graphs.find(graph, "SaveImage"), shown, row, "ours", out)
    return shown


def _draw_comparison(server: ComfyServer, workflow: Graph, shown: list[Shown], seed: int, out: Path) -> None:
    """All the other pictures of all prompts in one graph, so that every model is loaded once."""
    comparison = Comparison(workflow, seed)
    saves: list[tuple[Shown, int, str, str]] = []
    for row, one in enumerate(shown):
        loras = [(pick["name"], pick["strength"]) for pick in one.picks]
        saves.append((one, row, "base", comparison.add(f"{row}_base", one.prompt, [])))
        for number, lora in enumerate(loras, 1):
            saves.append((one, row, f"pick{number}", comparison.add(f"{row}_pick{number}", one.text, [lora])))
        if loras:
            saves.append((one, row, "chain", comparison.add(f"{row}_chain", one.text, loras)))
    result = _follow(server, comparison.graph, "Base, each pick alone, stock chain")
    for one, row, name, node in saves:
        _save(server, result, node, one, row, name, out)
    for one in shown:
        one.same_as_base = same_picture(one.pictures["base"].read_bytes(), one.pictures["ours"].read_bytes())


def _save(server: ComfyServer, result: RunResult, node: str, shown: Shown, row: int, name: str, out: Path) -> None:
    path = out / "pictures" / f"{row + 1}_{name}.png"
    write_atomic(path, server.client.fetch(result.images(node)[0]))
    shown.pictures[name] = path
