"""What a queued graph (ComfyUI's PROMPT) says about the picture that one of its nodes is given.

Read backwards from that node, nearest first. A value that comes over a link is known only where an ancestor holds it as
typed; what a node computes at run time is not in the graph.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = sys.float_info.max
Graph = Mapping[str, Mapping[str, Any]]
MODEL_FILES = ("ckpt_name", "unet_name", "model_name", "base_ckpt_name", "gguf_name", "model_path")
TEXTS = ("text", "prompt", "string", "value", "text_g", "t5xxl", "clip_l", "wildcard_text", "populated_text")
NEGATIVE_OF = ("positive", "negative")  # output 0 and 1 of nodes that take both, such as Apply ControlNet
NOT_TEXT = ("model", "clip", "vae", "image", "pixels", "samples", "mask", "control_net", "style_model", "index")
MOST_NODES = 2000
MOST_HOPS = 10  # from an input to where its value is typed


@dataclass(frozen=True)
class GraphLora:
    """A LoRA that another node of the graph loads."""

    name: str
    strength: float
    clip_strength: float
    node: str


@dataclass(frozen=True)
class UnknownLora:
    """A LoRA that a node loads, of which the graph does not tell the name (None) or a strength."""

    name: str | None
    node: str


@dataclass(frozen=True)
class Facts:
    """None where the graph does not tell. ``lost_at``: nodes behind which the model's way is not known."""

    seed: int | None = None
    steps: int | None = None
    cfg: float | None = None
    sampler: str | None = None
    scheduler: str | None = None
    denoise: float | None = None
    model: str | None = None
    positive: str | None = None
    negative: str | None = None
    loras: tuple[GraphLora, ...] = ()
    unknown_loras: tuple[UnknownLora, ...] = ()
    lost_at: tuple[str, ...] = ()


def facts_of(graph: Graph | None, node_id: str | None) -> Facts:
    """The facts behind ``images`` of the node ``node_id``; no facts where graph or sampler are not found."""
    if not isinstance(graph, Mapping) or str(node_id) not in graph:
        return Facts()
    start = _inputs(graph, str(node_id)).get("images")
    sampler = next((name for name, _ in _upstream(graph, start) if _is_sampler(graph, name)), None)
    if sampler is None:
        return Facts()
    inputs = _sampling_inputs(graph, sampler)
    chain, lost_at = _model_chain(graph, inputs.get("model"))
    loras = [lora for node in reversed(chain) for lora in _loras_of(graph, node)]
    positive, negative = inputs.get("positive", inputs.get("conditioning")), inputs.get("negative")
    return Facts(
        seed=_integer(_value(graph, inputs, "noise_seed", "seed")),
        steps=_integer(_value(graph, inputs, "steps")),
        cfg=_number(_value(graph, inputs, "cfg")),
        sampler=_text_value(_value(graph, inputs, "sampler_name")),
        scheduler=_text_value(_value(graph, inputs, "scheduler")),
        denoise=_number(_value(graph, inputs, "denoise")),
        model=next((name for name in (_model_file(graph, node) for node in chain) if name), None),
        positive=_prompt(graph, positive),
        negative=_prompt(graph, negative),
        loras=tuple(lora for lora in loras if isinstance(lora, GraphLora)),
        unknown_loras=tuple(lora for lora in loras if isinstance(lora, UnknownLora)),
        lost_at=tuple(lost_at),
    )


def _inputs(graph: Graph, name: str) -> Mapping[str, Any]:
    found = graph.get(name)
    inputs = found.get("inputs") if isinstance(found, Mapping) else None
    return inputs if isinstance(inputs, Mapping) else {}


def _is_link(graph: Graph, value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str) and value[0] in graph


def _upstream(graph: Graph, *starts: Any, skip: Iterable[str] = ()) -> Iterator[tuple[str, int]]:
    """(node, output) of everything that ``starts`` (links) depend on, nearest first, each once."""
    queue, seen, skipped = [link for link in starts if _is_link(graph, link)], set(), tuple(skip)
    while queue and len(seen) < MOST_NODES:
        name, slot = queue.pop(0)
        if name in seen:
            continue
        seen.add(name)
        yield name, slot
        inputs = _inputs(graph, name)
        queue += [link for key, link in inputs.items() if key not in skipped and _is_link(graph, link)]


def _is_sampler(graph: Graph, name: str) -> bool:
    """By what a node takes, so that samplers of other packs count: a picture's noise and something to steer it."""
    inputs = _inputs(graph, name)
    whole = {"positive", "model"} <= inputs.keys() and bool(inputs.keys() & {"seed", "noise_seed", "sigmas"})
    return whole or {"guider", "sigmas"} <= inputs.keys()


def _sampling_inputs(graph: Graph, sampler: str) -> dict[str, Any]:
    """The sampler's own inputs and those of the nodes it is put together from."""
    inputs = dict(_inputs(graph, sampler))
    for part in ("guider", "noise", "sampler", "sigmas"):
        for name, _ in _upstream(graph, inputs.get(part), skip=("model", "positive", "negative", "conditioning")):
            inputs = {**_inputs(graph, name), **inputs}
    return inputs


def _value(graph: Graph, inputs: Mapping[str, Any], *keys: str) -> Any:
    """The first of ``keys`` that is there, as typed here or in the node it comes from."""
    key = next((key for key in keys if key in inputs), None)
    return None if key is None else _typed(graph, inputs[key], (*keys, "value", "int", "float", "number"))


def _typed(graph: Graph, value: Any, keys: tuple[str, ...], depth: int = MOST_HOPS) -> Any:
    if not _is_link(graph, value):
        return value
    inputs = _inputs(graph, value[0])
    key = next((key for key in keys if key in inputs), None)
    return _typed(graph, inputs[key], keys, depth - 1) if key and depth else None


def _number(value: Any) -> float | None:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if real and -LARGEST <= value <= LARGEST else None


def _integer(value: Any) -> int | None:
    return int(value) if _number(value) is not None else None


def _text_value(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _model_chain(graph: Graph, link: Any) -> tuple[list[str], list[str]]:
    """Nodes that the model came through, nearest first, and those where its way is lost.

    Its way is along every input that carries a model (both of a merge), else along the only link that there is (a
    reroute). A node with several links and none for a model, as a switch, may give any of them.
    """
    queue, chain, lost_at = [link], [], []
    while queue and len(chain) < MOST_NODES:
        link = queue.pop(0)
        if not _is_link(graph, link) or link[0] in chain:
            continue
        name = link[0]
        chain.append(name)
        inputs = _inputs(graph, name)
        if _carrying(graph, inputs):
            queue += _carrying(graph, inputs)
        elif not inputs.keys() & set(MODEL_FILES):
            others = [value for value in inputs.values() if _is_link(graph, value)]
            queue += others if len(others) == 1 else []
            lost_at += [name] if len(others) > 1 else []
    return chain, lost_at


def _carrying(graph: Graph, inputs: Mapping[str, Any]) -> list[Any]:
    """Links of the inputs that carry a model."""
    named = (key for key in inputs if key.startswith(("model", "unet")) and key not in MODEL_FILES)
    return [inputs[key] for key in named if _is_link(graph, inputs[key])]


def _model_file(graph: Graph, name: str) -> str | None:
    inputs = _inputs(graph, name)
    return next((inputs[key] for key in MODEL_FILES if _text_value(inputs.get(key))), None)


def _loras_of(graph: Graph, name: str) -> list[GraphLora | UnknownLora]:
    """Stock loaders and those that name their inputs alike; rgthree's Power Lora Loader; Lora-Manager's loader."""
    inputs = _inputs(graph, name)
    if "lora_name" in inputs:
        model = _number(_value(graph, inputs, "strength_model"))
        clip = _number(_value(graph, inputs, "strength_clip")) if "strength_clip" in inputs else 0.0
        return _one(_value(graph, inputs, "lora_name"), model, clip, name)
    found: list[GraphLora | UnknownLora] = []
    for value in inputs.values():
        if isinstance(value, Mapping) and {"on", "lora", "strength"} <= value.keys() and value["on"]:
            model = _number(value["strength"])
            clip = model if value.get("strengthTwo") is None else _number(value["strengthTwo"])
            found += _one(value["lora"], model, clip, name)
    listed = inputs.get("loras")
    if _is_link(graph, listed):
        return [*found, UnknownLora(None, name)]
    listed = listed.get("__value__") if isinstance(listed, Mapping) else listed
    for entry in listed if isinstance(listed, (list, tuple)) else ():
        if isinstance(entry, Mapping) and entry.get("active") and "name" in entry:
            model = _loose(entry.get("strength"))
            clip = model if entry.get("clipStrength") is None else _loose(entry["clipStrength"])
            found += _one(entry["name"], model, clip, name)
    return found


def _loose(value: Any) -> float | None:
    try:
        return _number(float(value))
    except (TypeError, ValueError, OverflowError):
        return None


def _one(lora: Any, model: float | None, clip: float | None, node: str) -> list[GraphLora | UnknownLora]:
    """None where the slot of a loader is empty, or both strengths are 0."""
    if lora == "" or isinstance(lora, str) and lora.lower() == "none" or (model, clip) == (0, 0):
        return []
    if not isinstance(lora, str) or model is None or clip is None:
        return [UnknownLora(_text_value(lora), node)]
    return [GraphLora(lora, model, clip, node)]


def _prompt(graph: Graph, link: Any) -> str | None:
    """The text behind a conditioning: of the nearest node that encodes one."""
    seen: set[str] = set()
    queue = [link]
    while queue and len(seen) < MOST_NODES:
        link = queue.pop(0)
        if not _is_link(graph, link) or link[0] in seen:
            continue
        name, slot = link
        seen.add(name)
        inputs, body = _inputs(graph, name), graph[name]
        if isinstance(body, Mapping) and body.get("class_type") == "ConditioningZeroOut":
            return ""
        text = _typed_text(graph, inputs)
        if text is not None:
            return text
        if set(NEGATIVE_OF) <= inputs.keys():
            queue.append(inputs[NEGATIVE_OF[1 if slot == 1 else 0]])
        else:
            queue += [value for key, value in inputs.items() if key not in NOT_TEXT]
    return None


def _typed_text(graph: Graph, inputs: Mapping[str, Any], depth: int = MOST_HOPS) -> str | None:
    if {"string_a", "string_b"} <= inputs.keys():
        return _concatenated(graph, inputs, depth)
    for key in TEXTS:
        value = inputs.get(key)
        if isinstance(value, str) and value.strip():
            return value
        if depth and _is_link(graph, value):
            found = _typed_text(graph, _inputs(graph, value[0]), depth - 1)
            if found is not None:
                return found
    return "" if any(isinstance(inputs.get(key), str) for key in ("text", "text_g")) else None


def _concatenated(graph: Graph, inputs: Mapping[str, Any], depth: int) -> str | None:
    """ComfyUI's own Concatenate node."""
    parts = [_typed_text(graph, {"text": inputs[key]}, depth) for key in ("string_a", "string_b")]
    delimiter = inputs.get("delimiter", "")
    known = depth and isinstance(delimiter, str) and None not in parts
    return delimiter.join(parts) if known else None
