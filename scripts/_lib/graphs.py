"""Fills the shipped workflow (API format) with a prompt, and adds the pictures it is compared with.

Nodes are found by their class, never by their number, so the workflow file may be renumbered.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from .client import Graph
from .paths import REPO

WORKFLOW = REPO / "workflows" / "api" / "retrieve_and_fuse.json"
# ids of the added nodes that show what was picked (JSON), the prompt with trigger words, and how it was fused
SELECTION, PROMPT, FUSION = "selection", "prompt_text", "fusion_report"
ENCODE, RETRIEVE, APPLY = "AutoLoRAEncodeLibrary", "AutoLoRARetrieve", "AutoLoRAGatedApply"


class WorkflowError(ValueError):
    """The workflow file does not have the node we look for."""


def load(path: Path = WORKFLOW) -> Graph:
    """A workflow in API format: id → {"class_type", "inputs"}."""
    return json.loads(path.read_text(encoding="utf-8"))


def find(graph: Graph, class_type: str) -> str:
    """The id of the one node of this class. Raises `WorkflowError`."""
    found = [node for node, body in graph.items() if body["class_type"] == class_type]
    if len(found) != 1:
        raise WorkflowError(f"the workflow has {len(found)} nodes of class {class_type}; one is needed")
    return found[0]


def titles(graph: Graph) -> dict[str, str]:
    """Node id → its title for people."""
    return {node: body.get("_meta", {}).get("title") or body["class_type"] for node, body in graph.items()}


def fill(graph: Graph, prompt: str, seed: int) -> Graph:
    """The workflow for one prompt, plus the nodes `SELECTION`, `PROMPT` and `FUSION`, which show what was decided."""
    filled = copy.deepcopy(graph)
    retrieve = find(filled, RETRIEVE)
    filled[retrieve]["inputs"]["prompt"] = prompt
    filled[find(filled, "KSampler")]["inputs"]["seed"] = seed
    filled[SELECTION] = _node("PreviewAny", "What was picked", source=[retrieve, 0])
    filled[FUSION] = _node("PreviewAny", "How it was fused", source=[find(filled, APPLY), 2])
    filled[PROMPT] = _node("PreviewAny", "The prompt with trigger words", source=[retrieve, 2])
    return filled


def from_folder(graph: Graph, folder: str) -> Graph:
    """The workflow with another choice in the folder menu of Encode LoRA Library."""
    changed = copy.deepcopy(graph)
    changed[find(changed, ENCODE)]["inputs"]["folder"] = folder
    return changed


def encode_only(graph: Graph) -> Graph:
    """The part of the workflow that reads the LoRA library."""
    return {node: copy.deepcopy(graph[node]) for node in _upstream(graph, find(graph, ENCODE))}


class Comparison:
    """One graph that draws, for any number of prompts, everything ours is compared with.

    Loaders are shared with the shipped workflow (same inputs, so the server reuses what it has in its cache).
    """

    def __init__(self, workflow: Graph, seed: int) -> None:
        self.seed = seed
        self._sampler = find(workflow, "KSampler")
        self._text = workflow[self._sampler]["inputs"]["positive"][0]
        keep = _upstream(workflow, self._sampler) | _upstream(workflow, find(workflow, "VAEDecode"))
        dropped = {find(workflow, RETRIEVE), find(workflow, APPLY), find(workflow, ENCODE)}
        template = {node: copy.deepcopy(body) for node, body in workflow.items() if node in keep - dropped}
        self._model = workflow[find(workflow, APPLY)]["inputs"]["model"]
        self._prompt_node = template.pop(self._text)
        self._sample_node = template.pop(self._sampler)
        self._decode_node = template.pop(find(workflow, "VAEDecode"))
        self.graph: Graph = template
        self._loras: dict[tuple[str, int, str, float], list[Any]] = {}

    def add(self, name: str, text: str, loras: list[tuple[str, float]]) -> str:
        """Draw `text` with stock LoRA loaders in a row (none: the base model). Returns the id of its SaveImage."""
        model = self._model
        for lora, strength in loras:
            model = self._lora(model, lora, strength)
        words = f"text_{text}"
        if words not in self.graph:
            self.graph[words] = copy.deepcopy(self._prompt_node)
            self.graph[words]["inputs"]["text"] = text
        sample = copy.deepcopy(self._sample_node)
        sample["inputs"] |= {"model": model, "positive": [words, 0], "seed": self.seed}
        decode = copy.deepcopy(self._decode_node)
        decode["inputs"]["samples"] = [f"sample_{name}", 0]
        self.graph[f"sample_{name}"], self.graph[f"decode_{name}"] = sample, decode
        save = _node("SaveImage", f"Save {name}", images=[f"decode_{name}", 0], filename_prefix=f"autolora/{name}")
        self.graph[f"save_{name}"] = save
        return f"save_{name}"

    def _lora(self, model: list[Any], lora: str, strength: float) -> list[Any]:
        key = (model[0], model[1], lora, strength)
        if key not in self._loras:
            node = f"lora_{len(self._loras)}"
            loader = _node("LoraLoaderModelOnly", f"Load {lora}", model=model, lora_name=lora, strength_model=strength)
            self.graph[node] = loader
            self._loras[key] = [node, 0]
        return self._loras[key]


def _node(class_type: str, title: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}


def _upstream(graph: Graph, node: str) -> set[str]:
    """`node` and everything it depends on."""
    seen, left = set(), [node]
    while left:
        current = left.pop()
        if current in seen:
            continue
        seen.add(current)
        values = graph[current]["inputs"].values()
        left += [v[0] for v in values if isinstance(v, list) and len(v) == 2 and v[0] in graph]
    return seen
