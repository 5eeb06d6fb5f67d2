"""What the layers of a loaded base model really read for a prompt: inputs recorded from a live MODEL and CLIP.

The CLIP encodes a text as for any picture; the model then runs once, on a small latent, with fixed noise at one sigma,
and stops as soon as the last layer asked for has been reached. Where the conditioning itself is all that is asked for
nothing is run. The model is used through ComfyUI's own guider, so loading, memory, patches and interruption are
ComfyUI's; a clone carries our options and nothing of the user's model changes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comfy.model_management
import numpy as np
import torch
from torch import Tensor, nn

from ..autolora_core.encode.input_states import TextStates
from ..autolora_core.encode.spaces import IMAGE, Space, named_space
from ..autolora_core.errors import AutoLoRAError
from .bridge_features import injections_of, unpatched
from .bridge_listen import Listener, layer_of
from .bridge_once import latent_shape, quiet_clone, run_once, sigma_of
from .bridge_paths import model_family, throw_if_interrupted
from .text_marks import real_tokens
from .wires import require_clip

log = logging.getLogger(__name__)
# Part of a source's id: raise it when states would differ.
VERSION = 2
# Texts a run of the model, and bytes of conditioning held between encoding and running.
GROUP, MAX_HELD = 16, 1 << 30
# Numbers of a tensor, and tensors, that a model is recognised by.
SAMPLE, MAX_SAMPLED = 64, 96
Conditioning = list
Progress = Callable[[int, int, str], None]


class ModelStates:
    """A ``library.states.StateSource`` made of a MODEL and a CLIP.

    ``id`` names both by their contents, and the sigma, which sampling patches move; a model with patches of its own (a
    LoRA loaded before) is known only as long as ComfyUI runs, so its states are not ``lasting``.
    """

    def __init__(self, model: Any, clip: Any):
        require_clip(clip)
        self.model, self.clip = model, clip
        self.family = model_family(model).name
        self.lasting = not any(_own_changes(patcher) for patcher in (model, clip.patcher))
        made = f"{VERSION} {sigma_of(model)!r} {self.family} {fingerprint(model)} {fingerprint(clip.patcher)}"
        self.id = hashlib.sha256(f"{made} {clip_options(clip)}".encode()).hexdigest()[:24]
        self.group = GROUP

    @property
    def device(self) -> torch.device:
        """Where ComfyUI computes."""
        return comfy.model_management.get_torch_device()

    def record(
        self, texts: Sequence[str], spaces: Sequence[str], progress: Progress | None = None
    ) -> Iterator[TextStates]:
        """See ``StateSource``. Raises ComfyUI's interrupt when the user cancels."""
        steps = _Steps(progress, 2 * len(texts))
        network = self.model.model.diffusion_model
        wanted = [space for name in spaces if (space := named_space(self.family, name)) is not None]
        wanted = [space for space in wanted if space.probe is None or layer_of(network, space.probe) is not None]
        empty = self.clip.tokenize("")
        for block in self._encoded(texts, steps):
            marks = [real_tokens(tokens, empty, cond[0][0].shape[1]) for tokens, cond in block]
            for inputs in self._inputs([cond for _, cond in block], wanted, steps):
                here, marks = marks[: len(inputs)], marks[len(inputs) :]
                yield _collected(inputs, here, wanted)

    @torch.inference_mode()
    def _encoded(self, texts: Sequence[str], steps: _Steps) -> Iterator[list[tuple[dict, Conditioning]]]:
        """``(tokens, conditioning)`` of the texts, in lists that fit in memory: each swap of models costs seconds."""
        block: list[tuple[dict, Conditioning]] = []
        held = 0
        for text in texts:
            throw_if_interrupted()
            tokens = self.clip.tokenize(text)
            cond = self.clip.encode_from_tokens_scheduled(tokens, show_pbar=False)
            block.append((tokens, cond))
            held += cond[0][0].numel() * cond[0][0].element_size()
            steps.take(1, text)
            if held >= MAX_HELD:
                yield block
                block, held = [], 0
        if block:
            yield block

    def _inputs(
        self, conds: list[Conditioning], wanted: list[Space], steps: _Steps
    ) -> Iterator[list[dict[str, Tensor]]]:
        """For each text, reading → its input (T, d) on the CPU; some texts at a time."""
        if all(space.probe is None for space in wanted):
            yield [{space.name: cond[0][0][0].float().cpu() for space in wanted} for cond in conds]
            return
        while conds:
            throw_if_interrupted()
            group = conds[: self.group]
            try:
                found = self._run(group, wanted)
            except AutoLoRAError as error:
                if len(group) == 1:
                    raise
                # Some networks take one text at a time, some texts do not go together (masks, lengths).
                log.info("texts are asked one by one: %s", error)
                self.group = 1
                continue
            conds = conds[len(group) :]
            steps.take(len(group))
            yield found

    @torch.inference_mode()
    def _run(self, conds: list[Conditioning], wanted: list[Space]) -> list[dict[str, Tensor]]:
        listener = Listener(self.model.model.diffusion_model, wanted, conds)
        model = quiet_clone(self.model)
        model.set_model_unet_function_wrapper(listener.apply)
        with listener.listening():
            run_once(model, conds, latent_shape(model, self.family))
        return listener.heard


class _Steps:
    """Counts what is done of ``total`` and tells it."""

    def __init__(self, tell: Progress | None, total: int):
        self.tell, self.total, self.done = tell, total, 0

    def take(self, count: int, name: str = "") -> None:
        """``count`` more are done."""
        self.done += count
        if self.tell is not None:
            self.tell(self.done, self.total, name)


def _collected(inputs: list[dict[str, Tensor]], marks: list[np.ndarray], wanted: list[Space]) -> TextStates:
    """The marked tokens of every text, one after another, and the image tokens; readings that some text lacks or broke
    are left out."""
    tokens: dict[str, np.ndarray] = {}
    for reading in (space.reading for space in wanted):
        own = [found.get(reading) for found in inputs]
        image = reading.endswith(IMAGE)
        rows = [_numbers(one) if image else _marked(one, mark) for one, mark in zip(own, marks, strict=True)]
        if all(row is not None and np.isfinite(row).all() for row in rows):
            tokens[reading] = np.concatenate(rows)
    return TextStates(np.array([int(mark.sum()) for mark in marks], int), tokens)


def _numbers(states: Tensor | None) -> np.ndarray | None:
    return None if states is None else states.numpy()


def _marked(states: Tensor | None, mark: np.ndarray) -> np.ndarray | None:
    """The text's own tokens of (T, d). Pictures and padding may follow the text; a shorter stream lost its front."""
    if states is None:
        return None
    lost = max(0, len(mark) - len(states))
    return None if mark[:lost].any() else states.numpy()[: len(mark)][mark[lost:]]


def fingerprint(patcher: Any) -> str:
    """A model's identity: names, shapes and some numbers of its weights without patches, and the patches it has."""
    digest = hashlib.sha256()
    # The tables of sigmas are those of whoever was loaded last.
    state = {name: one for name, one in patcher.model.state_dict().items() if not name.startswith("model_sampling.")}
    sampled = set(list(state)[:: max(1, len(state) // MAX_SAMPLED)])
    for name, value in state.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        # Quantised and packed tensors are classes of their own; their names and shapes have to do.
        if name in sampled and type(value) in (Tensor, nn.Parameter):
            numbers = unpatched(patcher, name, value).detach().flatten()[:SAMPLE].to("cpu", torch.float32)
            digest.update(numbers.numpy().tobytes())
    digest.update(_own_changes(patcher).encode())
    return digest.hexdigest()[:24]


def _own_changes(patcher: Any) -> str:
    """Patches and injections of a model, by names that last as long as ComfyUI runs; empty without any."""
    named = [str(patcher.patches_uuid)] if patcher.patches else []
    return " ".join([*named, *sorted(injections_of(patcher))])


def clip_options(clip: Any) -> str:
    """What else decides a CLIP's states: the layer it stops at, its tokenizer's options."""
    return f"{clip.layer_idx} {sorted(clip.tokenizer_options.items())}"
