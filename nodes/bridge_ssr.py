"""Calibration for SSR-Merge: one forward of the user's own base model for every text that a LoRA goes by.

What the base's layers read goes through the stacked down matrices; only the (R, R) products are kept. The base runs as
it came to the node, without the LoRAs in question. Routers are remembered by content: model, text encoder, LoRA files
and texts; on disk too when all of these mean the same tomorrow.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.utils
import torch
from torch import Tensor, nn

from ..autolora_core.fusion.branches import Branch
from ..autolora_core.fusion.methods import router_store
from ..autolora_core.fusion.methods.planner import Member, Routed, ssr_stacks
from ..autolora_core.fusion.methods.ssr import Signals, Stack
from ..autolora_core.library.metadata import read_words
from . import bridge_paths
from .bar import Bar
from .bridge_bank import down_layer
from .bridge_loras import PREFIX, LoadedLora
from .bridge_once import COMPILED, latent_shape, quiet_clone, run_once
from .bridge_states import ModelStates

VERSION = 3  # part of a router's key: raise it when routers would differ
SIDE, PIXEL_SIDE = 32, 128  # of the latent the base runs on, where the network takes it
REMEMBERED, MOST = 256 << 20, 256  # bytes of routers kept in memory, and sets: small ones cost more than their bytes
ROUTERS = ".routers"  # beside the libraries, under a name that none of them can have
_memory: OrderedDict[str, dict[str, Tensor]] = OrderedDict()


def find_routers(
    model: Any,
    clip: Any,
    branches: Sequence[Branch],
    channels: Mapping[str, int],
    loras: Mapping[int, LoadedLora],
    members: Sequence[Member],
    prompt: str,
) -> tuple[dict[str, Routed], list[str]]:
    """(module → stack and R, where LoRAs meet; a line for the report on every LoRA's text)."""
    stacks = ssr_stacks(branches, channels)
    texts = {index: own_text(lora, prompt) for index, lora in loras.items()}
    notes = [f"{loras[index].name} was asked for by {source}: '{text}'" for index, (text, source) in texts.items()]
    if not stacks:
        return {}, ["no layer has two LoRAs: nothing to route"]
    source = ModelStates(model, clip)
    routers = _routers(source, stacks, members, texts)
    return {name: (stack, routers[name]) for name, stack in stacks.items() if name in routers}, notes


def _routers(
    source: ModelStates, stacks: Mapping[str, Stack], members: Sequence[Member], texts: Mapping[int, tuple]
) -> dict[str, Tensor]:
    """Remembered ones, or those that the model is asked for."""
    said = {index: text for index, (text, _) in texts.items()}
    if _is_steered(source.model):
        return _calibrate(source, stacks, said)
    key = _key(source, members, texts, stacks)
    folder = Path(bridge_paths.user_directory(), "autolora", ROUTERS) if source.lasting else None
    routers = _memory.get(key) or (router_store.read(folder, key) if folder else None)
    if routers is None:
        routers = _calibrate(source, stacks, said)
        if folder:
            router_store.write(folder, key, routers)
    _remember(key, routers)
    return routers


def _is_steered(model: Any) -> bool:
    """Whether code of other nodes acts inside the network: no name tells what it does, so nothing is remembered.

    Nodes of ours in front are not meant: their injections have keys that are never used twice.
    """
    options = model.model_options
    wrappers = {str(key) for keyed in model.wrappers.values() for key, those in keyed.items() if those}
    foreign = [key for key in wrappers if key != COMPILED and not key.startswith("autolora_")]
    return bool(foreign or "model_function_wrapper" in options or any(options["transformer_options"].values()))


def _remember(key: str, routers: dict[str, Tensor]) -> None:
    """Keep a set in memory; those used longest ago make room, and one too large for all of it is not kept."""
    _memory.pop(key, None)
    if router_store.size_of(routers) > REMEMBERED:
        return
    _memory[key] = routers
    while len(_memory) > MOST or sum(map(router_store.size_of, _memory.values())) > REMEMBERED:
        _memory.popitem(last=False)


def own_text(lora: LoadedLora, prompt: str) -> tuple[str, str]:
    """(text, what it is): trigger words of the selection, those of the file, its title, the words of the LoRA that its
    weights are near to, the selection's prompt."""
    path, request = lora.file.path, lora.request
    words = read_words(path, lora.file.metadata, os.listdir(os.path.dirname(path))).text
    found = (
        (", ".join(request.triggers[:3]), "its trigger words"),
        (", ".join(words.triggers[:3]), "its trigger words"),
        (words.title, "its title"),
        (request.near, "the words of a LoRA near to it"),
        (prompt, "the prompt, having no words of its own"),
    )
    return next(((text, source) for text, source in found if text.strip()), ("", "no words at all"))


def _key(source: ModelStates, members: Sequence[Member], texts: Mapping[int, tuple], stacks: Mapping) -> str:
    """Strengths are no part of it: they act behind the router."""
    said = [f"{VERSION} {source.id} {sorted(source.model.object_patches)}"]
    said += [f"{member.content} {texts[member.index][0]!r}" for member in members]
    said += [f"{name} {stack.owner.tolist()}" for name, stack in stacks.items()]
    return hashlib.sha256("\n".join(said).encode("utf-8", "backslashreplace")).hexdigest()[:32]


@torch.inference_mode()
def _calibrate(source: ModelStates, stacks: Mapping[str, Stack], texts: Mapping[int, str]) -> dict[str, Tensor]:
    groups = _by_text(texts)
    bar, steps = Bar(), len(groups) + 1
    model = quiet_clone(source.model)
    conds = {}
    for text in groups:
        bar(0, steps, text)
        conds[text] = source.clip.encode_from_tokens_scheduled(source.clip.tokenize(text), show_pbar=False)
    ear = _Ear(model, stacks)
    with ear.listening():
        for done, (text, cond) in enumerate(conds.items(), start=1):
            bar(done, steps, text)
            ear.loras = groups[text]
            run_once(model, [cond], _shape(model, source.family))
    return {name: signals.router().float() for name, signals in ear.signals.items()}


def _by_text(texts: Mapping[int, str]) -> dict[str, list[int]]:
    """Text → the LoRAs it belongs to: mute ones share the prompt, versions of one LoRA their trigger words."""
    groups: dict[str, list[int]] = {}
    for index, text in texts.items():
        groups.setdefault(" ".join(text.split()), []).append(index)
    return groups


def _shape(model: Any, family: str) -> tuple[int, ...]:
    """A latent with some hundred tokens; less where a table of positions ends earlier."""
    *front, height, _ = latent_shape(model, family)
    side = max(height, PIXEL_SIDE if model.model.latent_format.latent_channels == 3 else SIDE)
    network = model.model.diffusion_model
    table, patch = getattr(network, "pos_embed_max_size", None), getattr(network, "patch_size", 1)
    side = min(side, table * patch) if isinstance(table, int) and isinstance(patch, int) else side
    return (*front, side, side)


class _Ear:
    """Hooks on the layers where LoRAs meet. ``loras``: whose prompt is running."""

    def __init__(self, model: Any, stacks: Mapping[str, Stack]):
        self.loras: list[int] = []
        self.layers = {name: comfy.utils.get_attr(model.model, PREFIX + name) for name in stacks}
        self.downs = {name: down_layer(stack.down, self.layers[name]) for name, stack in stacks.items()}
        self.signals = {name: Signals(stack.owner) for name, stack in stacks.items()}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks in place inside the block only."""
        handles: list[Any] = []
        try:
            for name, layer in self.layers.items():
                handles.append(layer.register_forward_pre_hook(self._hook(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def hear(_: nn.Module, args: tuple) -> None:
            z = self.downs[name](args[0].detach().float())
            z = z.movedim(1, -1) if hasattr(self.layers[name], "kernel_size") else z
            z = z.reshape(-1, z.shape[-1])
            self.signals[name].add(self.loras, z.T @ z)

        return hear
