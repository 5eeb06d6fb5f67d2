"""Hooks that hear what layers of a base model read, during one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..autolora_core.encode.spaces import Space
from ..autolora_core.errors import AutoLoRAError

# Image tokens that are recorded of a layer.
MAX_TOKENS = 64
Conditioning = list


class _Reached(Exception):
    """Raised inside the network once every input asked for has been seen; never leaves this module."""


class Listener:
    """Hooks on the probes of ``wanted``; ``heard[i]`` maps a reading to what was read for text i."""

    def __init__(self, network: nn.Module, wanted: list[Space], conds: list[Conditioning]):
        self.network = network
        self.wanted = [space for space in wanted if space.probe is not None]
        self.heard: list[dict[str, Tensor]] = [
            {space.name: cond[0][0][0].float().cpu() for space in wanted if space.probe is None} for cond in conds
        ]
        self._awaited = {space.reading for space in self.wanted}
        self._rows: list[int] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks in place inside the block only."""
        handles = []
        try:
            for space in self.wanted:
                module = layer_of(self.network, space.probe)
                handles.append(module.register_forward_pre_hook(lambda _, args, space=space: self._hear(space, args)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def apply(self, run: Callable, call: dict) -> Tensor:
        """Stands in for ComfyUI's ``apply_model``: remembers whose rows are in the batch, and ends the run early."""
        self._rows = call["cond_or_uncond"]
        try:
            run(call["input"], call["timestep"], **call["c"])
        except _Reached:
            pass  # all that was wanted has been heard; nobody needs the picture
        return torch.zeros_like(call["input"])

    def _hear(self, space: Space, args: tuple) -> None:
        states = args[0].detach()
        image = space.tokens != "text"
        if states.ndim > 3 and image:
            states = states.flatten(1, -2)  # rows and columns (and frames) of the picture apart
        if states.ndim == 3 and states.shape[0] == 1 and states.shape[1] % len(self._rows) == 0:
            states = states.reshape(len(self._rows), -1, states.shape[2])  # PixArt lays its batch in one line
        if states.ndim != 3 or states.shape[0] != len(self._rows):
            if image:  # the text's layers say most; these are done without
                self._awaited.discard(space.reading)
                return
            raise AutoLoRAError(
                f"the layers of this model are fed in a way this pack does not know: {tuple(states.shape)}",
                key=space.probe,
                fix="disconnect the CLIP from Retrieve LoRAs from Prompt",
            )
        for row, text in enumerate(self._rows):
            own = _image_tokens(states[row], space) if image else states[row]
            self.heard[text][space.reading] = own.float().cpu()
        if all(self._awaited <= self.heard[text].keys() for text in self._rows):
            raise _Reached


def _image_tokens(states: Tensor, space: Space) -> Tensor:
    """At most ``MAX_TOKENS`` of the picture's tokens of (T, d), evenly; behind a text they are the last."""
    if space.tokens == "tail":
        return states[-MAX_TOKENS:]
    return states[:: max(1, len(states) // MAX_TOKENS)][:MAX_TOKENS]


def layer_of(network: nn.Module, name: str | None) -> nn.Module | None:
    """The layer called ``name``, or None when this model has no such layer."""
    found: Any = network
    for part in (name or "").split("."):
        found = (
            getattr(found, part, None) if not part.isdigit() else found[int(part)] if int(part) < len(found) else None
        )
        if found is None:
            return None
    return found
