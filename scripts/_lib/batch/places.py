"""Where a workflow's prompt, negative prompt, seed and size stand: followed along its wires."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..client import Graph
from ..graphs import RETRIEVE

Place = tuple[str, str]  # node, input
_HOLDERS = ("value", "text", "string", "prompt", "seed", "noise_seed", "int", "number")  # inputs of primitive nodes
_SEEDS = ("seed", "noise_seed")


def is_link(value: Any, graph: Graph) -> bool:
    """Whether an input's value is a wire from another node."""
    return isinstance(value, list) and len(value) == 2 and value[0] in graph


def source(graph: Graph, place: Place) -> Place | None:
    """The place itself, or where its wire comes from: a node with one value in it. None when that is not so simple."""
    node, entry = place
    for _ in graph:
        value = graph[node]["inputs"].get(entry)
        if not is_link(value, graph):
            return node, entry
        node = value[0]
        if graph[node]["class_type"] == RETRIEVE:
            return source(graph, (node, "prompt"))
        inputs = graph[node]["inputs"]
        held = [name for name in inputs if name in _HOLDERS]
        if len(held) != 1:
            return None
        entry = held[0]
    return None  # wires in a circle


def prompts(graph: Graph, retrieves: Iterable[str]) -> list[Place]:
    """Retrieve's prompt, or without such a node the text that the samplers' ``positive`` comes from."""
    of_retrieve = _sources(graph, [(node, "prompt") for node in retrieves])
    return of_retrieve or texts(graph, "positive")


def texts(graph: Graph, kind: str) -> list[Place]:
    """The texts of the encoders that feed ``positive`` or ``negative`` of the samplers."""
    starts = [body["inputs"][name] for body in graph.values() for name in _ways(body, kind, first=True)]
    encoders = {node for link in starts for node in _encoders(graph, link, kind)}
    found = [(node, entry) for node in graph if node in encoders for entry in _text_inputs(graph[node]["inputs"])]
    return _sources(graph, found)


def seeds(graph: Graph) -> list[Place]:
    """Seeds of samplers and noise nodes; of any node when there are none."""
    everywhere = [(n, name) for n, body in graph.items() for name in _SEEDS if name in body["inputs"]]
    drawing = [p for p in everywhere if any(w in graph[p[0]]["class_type"] for w in ("Sampler", "Noise"))]
    return _sources(graph, drawing or everywhere)


def sizes(graph: Graph, side: str) -> list[Place]:
    """Width or height of the empty latents."""
    empty = [n for n, body in graph.items() if {"width", "height", "batch_size"} <= set(body["inputs"])]
    return _sources(graph, [(node, side) for node in empty])


def _sources(graph: Graph, found: Iterable[Place]) -> list[Place]:
    """Each place, or where its wire comes from, once; those that a wire of another kind feeds are left out."""
    ends = [source(graph, place) for place in found]
    return list(dict.fromkeys(place for place in ends if place is not None))


def _ways(body: dict[str, Any], kind: str, first: bool = False) -> list[str]:
    """Inputs through which a conditioning comes: by its own name, else ``conditioning`` of guiders and changers."""
    inputs = body["inputs"]
    if first:
        plain = "conditioning" in inputs and "Guider" in body["class_type"] and kind == "positive"
        return [
            name for name in (kind, "conditioning") if isinstance(inputs.get(name), list) and (name == kind or plain)
        ]
    if kind in inputs:
        return [kind]
    return [name for name in inputs if name.startswith("conditioning")]


def _encoders(graph: Graph, link: Any, kind: str) -> set[str]:
    """The text encoders (nodes with a CLIP and a text) upstream of a conditioning."""
    found, left, seen = set(), [link], set()
    while left:
        link = left.pop()
        if not is_link(link, graph) or link[0] in seen:
            continue
        seen.add(link[0])
        body = graph[link[0]]
        if "clip" in body["inputs"] and _text_inputs(body["inputs"]):
            found.add(link[0])
        else:
            left += [body["inputs"][name] for name in _ways(body, kind)]
    return found


def _text_inputs(inputs: dict[str, Any]) -> list[str]:
    texts = [name for name in inputs if name in ("text", "prompt")]
    return texts or [name for name in inputs if name in ("text_g", "text_l", "clip_l", "t5xxl")]
