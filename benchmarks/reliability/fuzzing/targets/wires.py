"""MODEL, CLIP and VAE as wildcards, reroutes and other packs may pass them: things of another kind, nothing, classes
that lack a part or raise when they are asked, models of no known base. Every node that takes them is asked in turn, in
the real ComfyUI; what a node refuses must name one of its inputs and say what to do.
"""

from __future__ import annotations

import copy
import random
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from autolora_core.errors import AutoLoRAError
from benchmarks import in_comfy

from .. import mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 3_000
LORA, WIDTH = "wired.safetensors", 16
KINDS = ("none", "model", "clip", "vae", "latent", "picture", "conditioning", "controls", "vision", "text", "number",
         "list", "object", "class", "raises")  # fmt: skip
# In the place of a method: a class could be called, and would be a fault of whoever made it.
THINGS = tuple(kind for kind in KINDS if kind != "class")
NETWORKS = ("plain", "empty", "none", "text", "list", "convolutions", "odd")
# What may be missing of a thing of the right kind, may be something else, or may raise when it is asked for.
PARTS = ("model", "diffusion_model", "clone", "add_patches", "model_options", "get_attachment", "set_attachments",
         "get_model_object", "patcher", "tokenize", "encode_from_tokens_scheduled", "cond_stage_model", "decode",
         "encode", "patches", "patches_uuid")  # fmt: skip
# What a patcher of another pack need not have.
ABSENT = (*PARTS, "object_patches_backup")
NODES = ("apply", "conflicts", "merged", "heat", "retrieve", "picture", "previews", "family", "tower", "gate")


def bound(size: int) -> int:
    return 64 * MIB + 60 * size


def _fresh() -> dict:
    given = {"model": {"kind": "model", "network": "plain"}, "clip": {"kind": "clip"}, "vae": {"kind": "vae"}}
    return {"node": "apply", **given}


def seeds(folder: Path) -> list[bytes]:
    _world(str(folder))
    return [mutate.dumped(_fresh() | {"node": name}) for name in ("family", "picture")]


def make(rng: random.Random, parent: bytes) -> bytes:
    made = mutate.loaded(parent) if rng.random() < 0.6 else None
    made = made if isinstance(made, dict) else _fresh()
    made["node"] = rng.choice(NODES)
    for key in rng.sample(("model", "clip", "vae"), rng.choice((1, 1, 2))):
        one = {"kind": rng.choice((key, key, *KINDS)), "network": rng.choice(NETWORKS)}
        one["without"] = rng.sample(ABSENT, rng.choice((0, 0, 1, 2)))
        one["other"] = {part: rng.choice(THINGS) for part in rng.sample(PARTS, rng.choice((0, 0, 1, 2)))}
        made[key] = one
    return mutate.dumped(made)


def run(data: bytes, folder: Path) -> None:
    said = mutate.loaded(data)
    said = said if isinstance(said, dict) else _fresh()
    world = _world(str(folder))
    given = {key: _thing(said.get(key), world) for key in ("model", "clip", "vae")}
    node = said.get("node")
    try:
        world.ask(node if node in NODES else "apply", given)
    except world.error as error:  # that of the pack as ComfyUI loads it, which is another class of the same name
        if not error.fix:
            raise Wrong(f"it does not say what to do: {error}") from error
        raise AutoLoRAError(error.message, path=error.path, key=error.key, fix=error.fix) from error


class _World:
    """ComfyUI with an index of one LoRA, and real things to begin with."""

    def __init__(self, folder: str):
        in_comfy.start()
        import folder_paths
        import tiny_models

        place = Path(folder)
        folder_paths.folder_names_and_paths["loras"] = ([str(place / "loras")], {".safetensors"})
        folder_paths.set_user_directory(str(place / "user"))
        folder_paths.set_output_directory(str(place / "output"))
        (place / "loras").mkdir()
        self.real = tiny_models.load(tiny_models.sd3_state(64))
        layers = {"diffusion_model.joint_blocks.0.x_block.attn.qkv": (192, 64)}
        tiny_models.save_lora(place / "loras" / LORA, layers)
        self.error = in_comfy.pack_module("autolora_core.errors").AutoLoRAError
        library = in_comfy.pack_module("autolora_core.library.index").Library
        with library.open(place / "user" / "autolora" / "wired") as opened:
            opened.scan({"loras": place / "loras"})
            self.index = opened.handle
        for node in NODES:  # modules are imported by the first who asks
            with suppress(self.error):
                self.ask(node, {"model": self.real, "clip": _clip(), "vae": _of_kind("vae", None, self)})

    def ask(self, node: str, given: dict[str, Any]) -> None:
        """Let one node, or what several of them ask first, have a look at ``given``."""
        getattr(self, f"_{node}")(**given)

    stack = property(lambda self: [(LORA, 1.0, 1.0)])

    def _apply(self, model: Any, clip: Any, vae: Any) -> None:
        in_comfy.node("gated_apply.AutoLoRAGatedApply").apply(model, "sum", lora_stack=self.stack, clip=clip)

    def _conflicts(self, model: Any, clip: Any, vae: Any) -> None:
        node = in_comfy.node("conflict_report.AutoLoRAConflictReport")
        getattr(node, node.FUNCTION)(
            model=model, clip=clip, lora_stack=self.stack, mode="sum", gate="auto", strength=1.0
        )

    def _merged(self, model: Any, clip: Any, vae: Any) -> None:
        node = in_comfy.node("save_merged.AutoLoRASaveMerged")
        getattr(node, node.FUNCTION)(
            model=model, clip=clip, lora_stack=self.stack, name="made", mode="sum", dtype="float16", strength=1.0,
            overwrite=True,
        )  # fmt: skip

    def _heat(self, model: Any, clip: Any, vae: Any) -> None:
        in_comfy.node("heat_map.AutoLoRAGateHeatMap").show(model, {})

    def _retrieve(self, model: Any, clip: Any, vae: Any) -> None:
        node = in_comfy.node("retrieve.AutoLoRARetrieve")
        node.retrieve(self.index, "an otter", "auto", 3, 0.5, 1.0, "", "", True, True, model=model, clip=clip)

    def _picture(self, model: Any, clip: Any, vae: Any) -> None:
        told = in_comfy.pack_module("nodes.bridge_save_image")
        facts = in_comfy.pack_module("autolora_core.image_info.graph").facts_of({}, None)
        found = told.tell(model, clip, facts, (8, 8), {}, False)
        if "Size: 8x8" not in found.parameters:
            raise Wrong(f"the picture's text is {found.parameters!r:.200}")

    def _previews(self, model: Any, clip: Any, vae: Any) -> None:
        node = in_comfy.node("render_previews.AutoLoRARenderPreviews")
        node.render(
            self.index, model, clip, vae, "a thing", steps=1, cfg=1.0, width=16, height=16, names="no such name"
        )

    def _family(self, model: Any, clip: Any, vae: Any) -> None:
        in_comfy.pack_module("nodes.bridge_paths").model_family(model)

    def _tower(self, model: Any, clip: Any, vae: Any) -> None:
        in_comfy.pack_module("nodes.clip_tower").ClipTower(clip)

    def _gate(self, model: Any, clip: Any, vae: Any) -> None:
        node = in_comfy.node("train_gate.AutoLoRATrainFusionGate")
        getattr(node, node.FUNCTION)(model, clip, vae, lora_stack=self.stack[:1])


@cache
def _world(folder: str) -> _World:
    return _World(folder)


def _thing(said: Any, world: _World) -> Any:
    """The Python object that a recipe describes; nothing of the input becomes code."""
    said = said if isinstance(said, dict) else {"kind": said}
    kind, without, other = said.get("kind"), said.get("without"), said.get("other")
    made = _of_kind(kind if kind in KINDS else "none", said.get("network"), world)
    without = [one for one in without if one in ABSENT] if isinstance(without, list) else []
    other = (
        {part: one for part, one in other.items() if part in PARTS and one in THINGS} if isinstance(other, dict) else {}
    )
    if not without and not other:
        return made
    return _Lame(made, frozenset(without), {part: _of_kind(one, None, world) for part, one in other.items()})


class _Lame:
    """Another pack's class around a thing, which lacks some parts of it and has others in their place."""

    def __init__(self, whole: Any, without: frozenset[str], other: dict[str, Any]):
        self.__dict__["_whole"], self.__dict__["_without"], self.__dict__["_other"] = whole, without, other

    def __getattr__(self, name: str) -> Any:
        if name in self._without:
            raise AttributeError(name)
        if name in self._other:
            return self._other[name]
        found = getattr(self._whole, name)
        inside = name in ("model", "patcher") and not isinstance(found, torch.nn.Module)
        return _Lame(found, self._without, self._other) if inside else found


class _Raises:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is not there yet")


def _of_kind(kind: Any, network: Any, world: _World) -> Any:
    tensor = torch.zeros(1, 4, 4, 3)
    if kind == "model":
        return _model(network, world)
    if kind == "clip":
        return _clip()
    if kind == "vae":
        from test_train_gate_comfy import Halves

        return Halves()
    things = {
        "latent": {"samples": tensor}, "picture": tensor, "conditioning": [[tensor, {}]], "text": "model",
        "number": 3.5, "list": [], "object": object(), "class": object, "raises": _Raises(),
        "controls": type("ControlNet", (), {"control_model": torch.nn.Linear(2, 2)})(),
        "vision": type("ClipVisionModel", (), {"encode_image": len, "model": torch.nn.Linear(2, 2)})(),
    }  # fmt: skip
    return things.get(kind if isinstance(kind, str) else "none")


def _clip() -> Any:
    """A CLIP of few words, each text in tokens that its table has."""
    from word_clip import WordClip

    made = WordClip()
    plain = made.tokenize
    made.tokenize = lambda text: plain(" ".join(text.split()[:8])) if len(made.words) < 150 else plain("")
    return made


def _model(network: Any, world: _World) -> Any:
    """A MODEL: the real one, or a clone of it around a network of no known base."""
    linear, conv = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Conv2d(3, WIDTH, 3)
    networks = {
        "empty": torch.nn.Module(), "none": None, "text": "network", "list": [linear],
        "convolutions": torch.nn.Sequential(conv, conv), "odd": torch.nn.ModuleDict({"a b": linear, "\u202e": conv}),
    }  # fmt: skip
    if not isinstance(network, str) or network not in networks:
        return world.real
    made = world.real.clone()
    made.model = copy.copy(made.model)
    made.model._modules = {name: part for name, part in made.model._modules.items() if name != "diffusion_model"}
    made.model.__dict__["diffusion_model"] = networks[network]
    return made
