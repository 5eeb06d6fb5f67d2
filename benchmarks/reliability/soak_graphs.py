"""What the soak sends: prompts that pick other LoRAs each time, and the pictures that must not change meanwhile."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from typing import Any

from benchmarks.results_file import REPO
from scripts._lib.client import Graph
from scripts._lib.graphs import APPLY, ENCODE, RETRIEVE, find, load
from zoo.captions import STYLE_NAMES, with_article

# Every way of Gated Apply; the first three are what people use most.
COMMON = ("auto", "gate", "sum")
OTHERS = ("energy", "ties", "dare", "magnitude", "klora", "np", "ssr", "switch", "composite")
STEPS, CFG, SIDE = 2, 4.0, 128
LORAS, MODEL, CLIP, VAE = "soak loras", "1", "3", "2"
SAMPLER, SAVE, TEXT, NEGATIVE = "10", "12", "7", "8"


@dataclass(frozen=True)
class Ask:
    """One prompt of the soak with the settings of Retrieve and Apply."""

    prompt: str
    mode: str
    top_k: int
    strength: float
    seed: int


def asks(count: int, seed: int = 0) -> list[Ask]:
    """``count`` asks, all different: subjects and styles of the shelf in turn, 1 to 3 LoRAs, every mode."""
    draw = random.Random(seed)
    shelf = json.loads((REPO / "zoo" / "loras.json").read_text(encoding="utf-8"))
    subjects = sorted({row["subject"].replace("-", " ") for row in shelf if row["subject"]})
    styles = sorted({STYLE_NAMES[row["style"]] for row in shelf if row["style"]})
    made = []
    for number in range(count):
        subject, style = draw.choice(subjects), draw.choice(styles)
        prompt = f"{with_article(subject)} in {style} style"
        if number % 5 == 4:
            prompt = f"{with_article(subject)} and {with_article(draw.choice(subjects))} in {style} style"
        mode = OTHERS[number // 2 % len(OTHERS)] if number % 2 else COMMON[number // 2 % len(COMMON)]
        made.append(Ask(prompt, mode, number % 3 + 1, round(draw.uniform(0.4, 1.2), 2), number))
    return made


def picture(ask: Ask) -> Graph:
    """The shipped workflow for one ask, at few steps; a node shows the JSON of the selection under ``picks``."""
    graph = load()
    retrieve, apply = find(graph, RETRIEVE), find(graph, APPLY)
    graph[find(graph, ENCODE)]["inputs"]["folder"] = "loras"
    graph[retrieve]["inputs"] |= {"prompt": ask.prompt, "top_k": ask.top_k, "strength": ask.strength}
    graph[apply]["inputs"] |= {"mode": ask.mode, "clip": [CLIP, 0]}
    for text in (TEXT, NEGATIVE):
        graph[text]["inputs"]["clip"] = [apply, 1]
    graph[SAMPLER]["inputs"] |= {"steps": STEPS, "cfg": CFG, "seed": ask.seed}
    graph["picks"] = _node("PreviewAny", source=[retrieve, 0])
    return graph


def base_picture(seed: int = 1) -> Graph:
    """The same picture without the pack's three nodes, and a hash of every weight after it was sampled (``print``)."""
    graph = picture(Ask("a fox", "auto", 1, 1.0, seed))
    for name in [n for n, body in graph.items() if body["class_type"] in (ENCODE, RETRIEVE, APPLY, "PreviewAny")]:
        del graph[name]
    graph[SAMPLER]["inputs"]["model"] = [MODEL, 0]
    graph[TEXT]["inputs"] |= {"text": "a fox", "clip": [CLIP, 0]}
    graph[NEGATIVE]["inputs"]["clip"] = [CLIP, 0]
    graph["print"] = _node("PrintModel", model=[MODEL, 0], after=[SAMPLER, 0])
    return graph


def stock_picture(ask: Ask, names: list[str]) -> Graph:
    """A stock loader for each of ``names`` in a row: what ComfyUI does by itself."""
    graph = base_picture(ask.seed)
    del graph["print"]
    model: list[Any] = [MODEL, 0]
    for number, name in enumerate(names):
        graph[f"lora {number}"] = _node("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=ask.strength)
        model = [f"lora {number}", 0]
    graph[SAMPLER]["inputs"]["model"] = model
    graph[TEXT]["inputs"]["text"] = ask.prompt
    return graph


def counts(graph: Graph, nonce: str) -> Graph:
    """Only the loaders of ``graph``, which so stay in the server's cache, and the count of objects (``objects``)."""
    kept = {name: copy.deepcopy(graph[name]) for name in (MODEL, CLIP, VAE)}
    wires = {"model": [MODEL, 0], "clip": [CLIP, 0], "vae": [VAE, 0]}
    kept["objects"] = _node("SeeObjects", nonce=nonce, pack="autolora", **wires)
    return kept


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
