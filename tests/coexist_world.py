"""A server, two small bases and graphs with our Apply beside other nodes, for the tests of coexistence.

What is compared are latents, number by number. After every case the base is sampled once more and its parameters are
hashed: both must be what they were before the first case, bit for bit.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from conftest import emoji_factors, write_lora
from e2e_world import StandIn, node
from safetensors.torch import save_file

from scripts._lib.server import PACK_NAME, REPO, ComfyServer

Link = list[Any]
ALIKE = 1e-4  # of the spread of the latents: the same sum in another order of float32 additions, over two steps
CHANGED = 0.05  # a LoRA moves these latents by more
STACK = (("a.safetensors", 0.8), ("b.safetensors", 0.6), ("c.safetensors", -0.5))
SD15_STACK = (("sd15_a.safetensors", 0.9), ("sd15_b.safetensors", 0.7))
_nonces = itertools.count()


class Scene:
    """A graph being written. ``model`` is the base's link; `sample` gives a latent that `Stage.run` returns."""

    loader = {"class_type": "UNETLoader", "unet_name": "emoji_mmdit.safetensors", "weight_dtype": "default"}
    latent = {"class_type": "EmptySD3LatentImage", "width": 128, "height": 128, "batch_size": 1}
    sizes = {"tokens": 24, "width": 384, "pooled": 384}

    def __init__(self) -> None:
        self.graph: dict[str, Any] = {"base": node(**self.loader)}
        self.model: Link = ["base", 0]
        self.empty = self.add(**self.latent)
        self.positive = self.add("RandomConditioning", seed=11, **self.sizes)
        self.negative = self.add("RandomConditioning", seed=12, **self.sizes)

    def add(self, class_type: str, **inputs: Any) -> Link:
        """Write a node; the link of its first output."""
        name = f"n{len(self.graph)}"
        self.graph[name] = node(class_type, **inputs)
        return [name, 0]

    def ours(self, model: Link, *stack: tuple[str, float], mode: str = "sum", **apply: Any) -> Link:
        """Gated Multi-LoRA Apply with a LORA_STACK of (name, strength)."""
        lines = "\n".join(f"{name}|{strength}|{strength}" for name, strength in stack)
        lora_stack = self.add("StackFromText", lines=lines)
        settings = {"mode": mode, "gate": "auto", "strength": 1.0, **apply}
        return self.add("AutoLoRAGatedApply", model=model, lora_stack=lora_stack, **settings)

    def stock(self, model: Link, *stack: tuple[str, float]) -> Link:
        """ComfyUI's LoraLoaderModelOnly, one after the other."""
        for name, strength in stack:
            model = self.add("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=strength)
        return model

    def sample(self, model: Link, **settings: Any) -> Link:
        """Two steps of KSampler, shown."""
        how = {"seed": 7, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        how |= {"positive": self.positive, "negative": self.negative, "latent_image": self.empty}
        return self.see(self.add("KSampler", model=model, **{**how, **settings}))

    def see(self, samples: Link) -> Link:
        self.add("SeeNumbers", samples=samples)
        return samples

    def see_image(self, image: Link) -> None:
        self.add("SeeNumbers", image=image)


class SmallSD15(Scene):
    """A UNet, for convolutions, attention patches and the ControlNets of UNets."""

    loader = {"class_type": "UNETLoader", "unet_name": "tiny_sd15.safetensors", "weight_dtype": "default"}
    latent = {"class_type": "EmptyLatentImage", "width": 64, "height": 64, "batch_size": 1}
    sizes = {"tokens": 8, "width": 768, "pooled": 8}


class Stage:
    """The server while one module's cases run on it, and what the bases were before the first."""

    def __init__(self, server: ComfyServer, models: StandIn):
        self.server, self.models = server, models
        self._before: dict[str, tuple[np.ndarray, str]] = {}
        self._used: list[Scene] = []

    def run(self, scene: Scene, **options: Any) -> list[np.ndarray]:
        """Run a graph; the latents and pictures it shows, in the order they were written. The base is watched."""
        self.know(scene)
        result = self.server.run(scene.graph, **options)
        return seen(scene.graph, result.outputs)

    def one(self, scene: Scene) -> np.ndarray:
        """The only latent of a graph."""
        (latent,) = self.run(scene)
        return latent

    def drawn(self, scene: Scene, model: Link) -> np.ndarray:
        """The latent of one more sampler on ``model``."""
        scene.sample(model)
        return self.run(scene)[-1]

    def know(self, scene: Scene) -> None:
        """Sample the base of a graph alone, unless that was done before; it is looked at again after the case."""
        base = json.dumps(scene.graph["base"], sort_keys=True)
        if base not in self._before:
            self._before[base] = self._alone(scene)
        if base not in [json.dumps(one.graph["base"], sort_keys=True) for one in self._used]:
            self._used.append(scene)

    def check(self) -> None:
        """Every base used since the last check is bit for bit what it was."""
        used, self._used = self._used, []
        for scene in used:
            before, weights = self._before[json.dumps(scene.graph["base"], sort_keys=True)]
            after, now = self._alone(scene)
            assert now == weights, "the base model's parameters have changed"
            assert after.tobytes() == before.tobytes(), "the base model draws something else than before"

    def _alone(self, scene: Scene) -> tuple[np.ndarray, str]:
        alone = type(scene)()
        alone.graph["base"] = dict(scene.graph["base"])
        fresh = alone.add("FreshLatent", samples=alone.empty, nonce=str(next(_nonces)))
        samples = alone.sample(alone.model, latent_image=fresh)
        (shown, _) = alone.add("PrintModel", model=alone.model, after=samples)
        result = self.server.run(alone.graph)
        told = json.loads(result.text(shown))
        assert not told["fused"], f"{told['fused']} fused layers were left in the base model"
        return seen(alone.graph, result.outputs)[0], told["weights"]


def seen(graph: dict[str, Any], outputs: dict[str, Any]) -> list[np.ndarray]:
    """What the SeeNumbers nodes of a graph showed."""
    names = [name for name, body in graph.items() if body["class_type"] == "SeeNumbers"]
    return [_numbers(outputs[name]["text"][0]) for name in names]


def _numbers(text: str) -> np.ndarray:
    told = json.loads(text)
    return np.frombuffer(base64.b64decode(told["values"]), "<f4").reshape(told["shape"])


def gap(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two latents, in units of the spread of the second."""
    assert one.shape == other.shape and np.isfinite(one).all() and np.isfinite(other).all()
    return float(np.abs(one - other).max() / other.std())


def stage_fixtures(build: Any = None, packs: dict[str, Path] | None = None, **server_options: Any) -> tuple[Any, Any]:
    """The fixtures ``stage`` (one server a module) and ``base_stays`` (after every test). ``build(models, request)``
    writes more files into the `StandIn` before the server starts; ``packs`` are loaded beside ours."""

    @pytest.fixture(scope="module")
    def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
        models = StandIn(tmp_path_factory.mktemp("models"))
        for number, name in enumerate("abc"):
            write_lora(models.loras / f"{name}.safetensors", emoji_factors(500 + number, 4))
        if build is not None:
            build(models, request)
        loaded = {PACK_NAME: REPO, "e2e_pack": Path(__file__).parent / "e2e_pack", **(packs or {})}
        folders = {**models.models(), "controlnet": [models.root]}
        with ComfyServer(tmp_path_factory.mktemp("e2e"), models=folders, packs=loaded, **server_options) as server:
            yield Stage(server, models)

    @pytest.fixture(autouse=True)
    def base_stays(stage: Stage) -> Iterator[None]:
        yield
        stage.check()

    return stage, base_stays


def write_sd15(models: StandIn, request: pytest.FixtureRequest) -> None:
    """A small UNet and two LoRAs on all its layers, convolutions too."""
    request.getfixturevalue("comfy")
    state = tiny_models.sd15_state(scale=0.05, middle=True)
    save_file({name: value.half().contiguous() for name, value in state.items()}, models.root / "tiny_sd15.safetensors")
    for number, (name, _) in enumerate(SD15_STACK):
        layers = tiny_models.linear_layers(state)
        tiny_models.save_lora(models.loras / name, layers, rank=2, seed=20 + number, scale=0.15)


def has_node(stage: Stage, class_type: str) -> bool:
    """Whether this ComfyUI has a node; for skipping by feature."""
    return bool(stage.server.client.object_info(class_type))


def need_node(stage: Stage, class_type: str) -> None:
    if not has_node(stage, class_type):
        pytest.skip(f"this ComfyUI has no node {class_type}")
