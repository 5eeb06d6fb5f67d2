"""A whole small world for the end-to-end tests, a model, a VAE and LoRAs of random weights in a folder of their own;
and what those tests ask of graphs, runs and pictures.

Sizes and key names are the demo model's, so ComfyUI loads the files with its stock loaders. What they draw is noise,
but the same noise every time, and that is what these tests compare.
"""

from __future__ import annotations

import copy
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import emoji_factors, write_lora
from PIL import Image
from safetensors.torch import save_file
from tiny_models import random_state

from scripts._lib.cli import ScriptFailed
from scripts._lib.client import Graph
from scripts._lib.graphs import WORKFLOW, find, load
from scripts._lib.server import DEMO_MODELS
from scripts._lib.showcase import check_models
from zoo.autoencoder import SD3_SCALE, SD3_SHIFT, Autoencoder
from zoo.mmdit import MMDiT

WORDS = (
    "otter", "castle", "volcano", "sunflower", "tractor", "rocket", "cupcake", "anchor", "pixel art style",
    "watercolour style", "blueprint style", "stained glass style",
)  # fmt: skip
SEEDED = {"steps": 2, "cfg": 3.0}
# of the shipped workflow, and of what `shown` adds to it
ENCODE, RETRIEVE, APPLY, SAMPLER, SAVE = "4", "5", "6", "10", "12"
PICKS, SHOWN_PROMPT, FUSION = "picks", "shown prompt", "fusion"


class StandIn:
    """Random files in ``root``: ``models()`` is what `ComfyServer` takes."""

    def __init__(self, root: Path):
        self.root, self.loras = root, root / "loras"
        self.loras.mkdir(parents=True)
        _write_base(root / "emoji_mmdit.safetensors")
        _write_vae(root / "emoji_vae.safetensors")
        for number, words in enumerate(WORDS):
            self.lora(f"{words.replace(' ', '_')}.safetensors", number, words)
        for number in range(8):
            self.lora(f"nameless/last-{number:06d}.safetensors", 100 + number)

    def models(self) -> dict[str, list[Path]]:
        return {"diffusion_models": [self.root], "vae": [self.root], "loras": [self.loras]}

    def lora(self, name: str, seed: int, words: str | None = None, rank: int = 2) -> Path:
        """Write one LoRA; ``words`` become its tags. Small enough that a sum of three stays a picture."""
        tags = {"ss_tag_frequency": json.dumps({"train": {words: 40}})} if words else None
        return write_lora(self.loras / name, emoji_factors(seed, rank), tags)


def _write_base(path: Path) -> None:
    torch.manual_seed(5)
    state = random_state(MMDiT(), seed=5, scale=0.05)
    save_file({name: value.half().contiguous() for name, value in state.items()}, path)


def _write_vae(path: Path) -> None:
    """An untrained autoencoder starts as 8×8 averaging, so its pictures depend on every latent."""
    torch.manual_seed(6)
    state = {name: value.contiguous() for name, value in Autoencoder().state_dict().items()}
    scaling = {"vae_scale": torch.tensor(SD3_SCALE), "vae_shift": torch.tensor(SD3_SHIFT)}
    save_file(state | scaling, path)


def main_graph(prompt: str = "an otter, pixel art style", *, seed: int = 7, library: str = "e2e", **retrieve) -> Graph:
    """The shipped workflow at two steps; keyword arguments go to Retrieve LoRAs from Prompt."""
    graph = load(WORKFLOW)
    graph[find(graph, "KSampler")]["inputs"] |= {"seed": seed, **SEEDED}
    graph[find(graph, "AutoLoRAEncodeLibrary")]["inputs"] |= {"folder": "loras", "library": library}
    graph[find(graph, "AutoLoRARetrieve")]["inputs"] |= {"prompt": prompt, **retrieve}
    return graph


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def without_pack(graph: Graph) -> Graph:
    """The same picture with our three nodes taken out: the base model straight into the sampler, the prompt typed."""
    pack = {find(graph, name) for name in ("AutoLoRAEncodeLibrary", "AutoLoRARetrieve", "AutoLoRAGatedApply")}
    model = graph[find(graph, "AutoLoRAGatedApply")]["inputs"]["model"]
    prompt = graph[find(graph, "AutoLoRARetrieve")]["inputs"]["prompt"]
    bare = json.loads(json.dumps({name: body for name, body in graph.items() if name not in pack}))
    for name in [name for name, body in bare.items() if body["class_type"] == "PreviewAny"]:
        del bare[name]
    sampler = bare[find(bare, "KSampler")]["inputs"]
    sampler["model"] = model
    bare[sampler["positive"][0]]["inputs"]["text"] = prompt
    return bare


def need_demo_models() -> None:
    """Fail, saying what to do, unless the demo's own models are in the repository."""
    try:
        check_models(DEMO_MODELS)
    except ScriptFailed as error:
        pytest.fail(str(error))


def shown(graph):
    """The graph with nodes that show the selection, the prompt with trigger words and the report of Apply."""
    more = {
        PICKS: node("PreviewAny", source=[RETRIEVE, 0]),
        SHOWN_PROMPT: node("PreviewAny", source=[RETRIEVE, 2]),
        FUSION: node("PreviewAny", source=[APPLY, 2]),
    }
    return graph | more


def stacked(lines, **apply):
    """No retrieval: a stack of LoRAs from another pack's node goes into Apply."""
    graph = without_pack(main_graph())
    graph["stack"] = node("StackFromText", lines=lines)
    graph[APPLY] = node("AutoLoRAGatedApply", model=["1", 0], lora_stack=["stack", 0])
    graph[APPLY]["inputs"] |= {"mode": "auto", "gate": "auto", "strength": 1.0, **apply}
    graph[SAMPLER]["inputs"]["model"] = [APPLY, 0]
    graph[FUSION] = node("PreviewAny", source=[APPLY, 2])
    return graph


def drawn(server, result):
    return server.client.fetch(result.images(SAVE)[0])


def ran(result):
    """Ids of the nodes that were executed, not reused."""
    return {data["node"] for kind, data in result.events if kind == "executing" and data["node"]}


def levels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def furthest(one, other):
    """The largest difference of two pictures in 8-bit levels."""
    return int(np.abs(levels(one) - levels(other)).max())


def sampled_again(graph):
    """The same picture from a graph whose sampler the server has no result of: the latents go one node further."""
    again = copy.deepcopy(graph)
    again["same latents"] = node("RepeatLatentBatch", samples=again[SAMPLER]["inputs"]["latent_image"], amount=1)
    again[SAMPLER]["inputs"]["latent_image"] = ["same latents", 0]
    return again


def forget(server):
    """Have the server drop every model and every result; it does so between two runs, a moment after the request."""
    server.client.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1.0)


def finished(server, prompt_id, limit=300.0):
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        record = server.client.get(f"/history/{prompt_id}").get(prompt_id)
        if record is not None:
            return record
        time.sleep(0.1)
    raise AssertionError(f"run {prompt_id} did not end in {limit:g} s")


def picks(result):
    return json.loads(result.text(PICKS))["picks"]
