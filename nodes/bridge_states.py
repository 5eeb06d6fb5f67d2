"""What the text-fed layers of a loaded base model really read: states recorded from a live MODEL and CLIP.

The CLIP encodes a text as for any picture; the model then runs once, on the smallest latent it takes, with fixed noise
at one sigma, and stops as soon as the last layer asked for has been reached. Where the conditioning itself is what the
layers read (SD and SDXL) nothing is run. The model is used through ComfyUI's own guider, so loading, memory, patches
and interruption are ComfyUI's; a clone carries our options and nothing of the user's model changes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import numpy as np
import torch
from torch import Tensor, nn

from ..autolora_core.encode.response import TextStates
from ..autolora_core.encode.text_fed import Space, named_space
from ..autolora_core.errors import AutoLoRAError
from .bridge_paths import model_family, throw_if_interrupted
from .text_marks import real_tokens

log = logging.getLogger(__name__)
# Part of a source's id: raise it when states would differ.
VERSION = 1
# Share of the denoising that is done at the sigma used: the prompt decides what is drawn in early steps.
PERCENT = 0.2
COMPILED = "torch.compile"  # ComfyUI's key for the wrapper that runs a compiled copy of the network
SEED = 0
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
        self.model, self.clip = model, clip
        self.family = model_family(model).name
        self.lasting = not any(_own_changes(patcher) for patcher in (model, clip.patcher))
        made = f"{VERSION} {sigma_of(model)!r} {self.family} {fingerprint(model)} {fingerprint(clip.patcher)}"
        self.id = hashlib.sha256(f"{made} {_options(clip)}".encode()).hexdigest()[:24]
        self.group = GROUP

    @torch.inference_mode()
    def record(self, texts: Sequence[str], spaces: Sequence[str], progress: Progress | None = None) -> TextStates:
        """See ``StateSource``. Raises ComfyUI's interrupt when the user cancels."""
        steps = _Steps(progress, 2 * len(texts))
        network = self.model.model.diffusion_model
        wanted = [space for name in spaces if (space := named_space(self.family, name)) is not None]
        wanted = [space for space in wanted if space.probe is None or _module(network, space.probe) is not None]
        empty = self.clip.tokenize("")
        parts: list[TextStates] = []
        for block in self._encoded(texts, steps):
            marks = [real_tokens(tokens, empty, cond[0][0].shape[1]) for tokens, cond in block]
            inputs = self._inputs([cond for _, cond in block], wanted, steps)
            parts.append(_collected(inputs, marks, wanted))
        return TextStates.join(parts) if parts else TextStates(np.zeros(0, int), {})

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

    def _inputs(self, conds: list[Conditioning], wanted: list[Space], steps: _Steps) -> list[dict[str, Tensor]]:
        """For each text, space → its input (T, d) on the CPU."""
        if all(space.probe is None for space in wanted):
            return [{space.name: cond[0][0][0].float().cpu() for space in wanted} for cond in conds]
        found: list[dict[str, Tensor]] = []
        while len(found) < len(conds):
            throw_if_interrupted()
            group = conds[len(found) : len(found) + self.group]
            try:
                found += self._run(group, wanted)
            except AutoLoRAError as error:
                if len(group) == 1:
                    raise
                # Some networks take one text at a time, some texts do not go together (masks, lengths).
                log.info("texts are asked one by one: %s", error)
                self.group = 1
                continue
            steps.take(len(group))
        return found

    def _run(self, conds: list[Conditioning], wanted: list[Space]) -> list[dict[str, Tensor]]:
        listener = _Listener(self.model.model.diffusion_model, wanted, len(conds))
        model = quiet_clone(self.model)
        model.set_model_unet_function_wrapper(listener.apply)
        with listener.listening():
            run_once(model, conds, latent_shape(model, self.family))
        return listener.heard


def quiet_clone(model: Any) -> Any:
    """A clone whose layers can be heard: hooks have no say in a compiled copy of the network."""
    model = model.clone()
    model.remove_wrappers_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, COMPILED)
    return model


def run_once(model: Any, conds: list[Conditioning], shape: tuple[int, ...]) -> None:
    """Evaluate a MODEL once at ``PERCENT`` of the denoising, on fixed noise, for every one of ``conds``.

    Raises ``AutoLoRAError`` when the model cannot be run on them.
    """
    guider = _Guider(model)
    guider.inner_set_conds({str(number): cond for number, cond in enumerate(conds)})
    latent = torch.zeros(shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    with _explained():
        guider.sample(noise, latent, _Once(), torch.tensor([sigma_of(model), 0.0]), disable_pbar=True, seed=SEED)


def sigma_of(model: Any) -> float:
    """The sigma of the evaluation, by the model's own or patched sampling."""
    return float(model.get_model_object("model_sampling").percent_to_sigma(PERCENT))


@contextmanager
def _explained() -> Iterator[None]:
    """A network that cannot be run on this conditioning says so in words of its own; memory errors are ComfyUI's."""
    try:
        yield
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except (RuntimeError, KeyError) as error:
        raise AutoLoRAError(
            f"the model could not be run on what the CLIP makes of a text ({error})",
            fix="connect the CLIP that belongs to the model, or disconnect it",
        ) from error


class _Steps:
    """Counts what is done of ``total`` and tells it."""

    def __init__(self, tell: Progress | None, total: int):
        self.tell, self.total, self.done = tell, total, 0

    def take(self, count: int, name: str = "") -> None:
        """``count`` more are done."""
        self.done += count
        if self.tell is not None:
            self.tell(self.done, self.total, name)


class _Reached(Exception):
    """Raised inside the network once every input asked for has been seen; never leaves this module."""


class _Listener:
    """Hooks on the probes of ``wanted``; ``heard[i]`` maps a space to what it read for text i."""

    def __init__(self, network: nn.Module, wanted: list[Space], texts: int):
        self.network = network
        self.wanted = [space for space in wanted if space.probe is not None]
        self.heard: list[dict[str, Tensor]] = [{} for _ in range(texts)]
        self._rows: list[int] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks in place inside the block only."""
        handles = []
        try:
            for space in self.wanted:
                module = _module(self.network, space.probe)
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
        if states.ndim == 3 and states.shape[0] == 1 and states.shape[1] % len(self._rows) == 0:
            states = states.reshape(len(self._rows), -1, states.shape[2])  # PixArt lays its batch in one line
        if states.ndim != 3 or states.shape[0] != len(self._rows):
            raise AutoLoRAError(
                f"the text layers of this model are fed in a way this pack does not know: {tuple(states.shape)}",
                key=space.probe,
                fix="disconnect the CLIP from Retrieve LoRAs from Prompt",
            )
        for row, text in enumerate(self._rows):
            self.heard[text][space.name] = states[row].float().cpu()
        if all(space.name in self.heard[text] for space in self.wanted for text in self._rows):
            raise _Reached


class _Guider(comfy.samplers.CFGGuider):
    """Runs every condition it was given, each on its own rows of the batch; ComfyUI decides how many at a time."""

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: Any = None) -> Tensor:
        conds = [self.conds[str(number)] for number in range(len(self.conds))]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options or {})[0]


class _Once(comfy.samplers.Sampler):
    """A sampler of a single evaluation at the first sigma."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *others: Any) -> Tensor:
        sampling = model_wrap.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))
        return model_wrap(x, sigmas[:1].expand(len(x)), **extra_args)


def latent_shape(model: Any, family: str) -> tuple[int, ...]:
    """The smallest latent the network takes: 4×4, more where a patch or a position table needs it."""
    latents = model.model.latent_format
    side = 64 if family == "pixart" else 16 if latents.latent_channels == 3 else 4
    return (1, latents.latent_channels, *[1] * (latents.latent_dimensions - 2), side, side)


def _collected(inputs: list[dict[str, Tensor]], marks: list[np.ndarray], wanted: list[Space]) -> TextStates:
    """The marked tokens of every text, one after another; spaces that some text lacks or broke are left out."""
    limit = float(np.finfo(np.float16).max)
    tokens: dict[str, np.ndarray] = {}
    for space in wanted:
        rows = [_marked(own.get(space.name), mark) for own, mark in zip(inputs, marks, strict=True)]
        if all(row is not None and np.isfinite(row).all() for row in rows):
            tokens[space.name] = np.concatenate(rows).clip(-limit, limit).astype(np.float16)
    return TextStates(np.array([int(mark.sum()) for mark in marks], int), tokens)


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
    backup = getattr(patcher, "backup", {})
    for name, value in state.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        # Quantised and packed tensors are classes of their own; their names and shapes have to do.
        if name in sampled and type(value) in (Tensor, nn.Parameter):
            kept = backup[name].weight if name in backup else value
            numbers = kept.detach().flatten()[:SAMPLE].to("cpu", torch.float32)
            digest.update(numbers.numpy().tobytes())
    digest.update(_own_changes(patcher).encode())
    return digest.hexdigest()[:24]


def _own_changes(patcher: Any) -> str:
    """Patches and injections of a model, by names that last as long as ComfyUI runs; empty without any."""
    named = [str(patcher.patches_uuid)] if patcher.patches else []
    return " ".join([*named, *sorted(getattr(patcher, "injections", {}))])


def _options(clip: Any) -> str:
    """What else decides a CLIP's states: the layer it stops at, its tokenizer's options."""
    return f"{clip.layer_idx} {sorted(clip.tokenizer_options.items())}"


def _module(network: nn.Module, name: str | None) -> nn.Module | None:
    """The layer called ``name``, or None when this model has no such layer."""
    found: Any = network
    for part in (name or "").split("."):
        found = (
            getattr(found, part, None) if not part.isdigit() else found[int(part)] if int(part) < len(found) else None
        )
        if found is None:
            return None
    return found
