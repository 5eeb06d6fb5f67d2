"""A MODEL with LoRAs and a gate in training: errors of its predictions, with gradients for the gate.

Training runs inside ComfyUI's own guider, as a sampler that never finishes a picture: so loading, memory, conditioning
and dtype are ComfyUI's, for every architecture. The gate acts through hooks on the layers, on the same branches and by
the same formula as the Apply node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ..autolora_core.fusion.branches import Branch
from ..autolora_core.fusion.eager import side_by_side
from ..autolora_core.fusion.plan import by_module
from ..autolora_core.fusion.training.examples import Draw
from ..autolora_core.fusion.training.fused import FusedLoras
from ..autolora_core.fusion.training.parameters import GateParameters, hooked_update
from .bridge_bank import LowRank, branch_module

EMPTY = -1  # number of the empty text


@dataclass
class Material:
    """``latents`` (n, …): pictures in the model's own scale. ``conds``: text number → CONDITIONING, :data:`EMPTY` too.

    ``branches``: LoRA number → its branches; ``roles`` likewise. ``channels``: module → its output channels.
    """

    latents: Tensor
    conds: Mapping[int, list]
    branches: Mapping[int, Sequence[Branch]]
    roles: Mapping[int, str | None]
    channels: Mapping[str, int]


def work_on(model: Any, material: Material, job: Callable[[ModelStudio], None]) -> None:
    """Load ``model`` and run ``job`` with a studio around it."""
    guider = _Guider(model)
    guider.inner_set_conds({str(number): cond for number, cond in material.conds.items()})
    latent = torch.zeros_like(material.latents[:1])
    with torch.inference_mode(False), torch.enable_grad():
        guider.sample(
            torch.zeros_like(latent), latent, _Session(material, job), torch.tensor([1.0, 0.0]), disable_pbar=True
        )


class _Guider(comfy.samplers.CFGGuider):
    """Predicts for one text at a time, ``active``."""

    active = EMPTY

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: Any = None) -> Tensor:
        conds = [self.conds[str(self.active)]]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options or {})[0]


class _Session(comfy.samplers.Sampler):
    """A sampler that hands the loaded model to a job and returns nothing of interest."""

    def __init__(self, material: Material, job: Callable[[ModelStudio], None]):
        self.material, self.job = material, job

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *others: Any) -> Tensor:
        with normal_parameters(model_wrap.inner_model.diffusion_model):
            studio = ModelStudio(model_wrap, self.material, extra_args, noise.device)
            with studio.listening():
                self.job(studio)
        return latent_image


@contextmanager
def normal_parameters(network: nn.Module) -> Iterator[None]:
    """Weights loaded while a prompt runs are inference tensors, which no gradient may pass: these become copies.

    Blocks are evaluated anew when gradients pass them, so that activations of one block are all that is kept.
    """
    for name, value in list(network.named_parameters()):
        if value.is_inference():
            comfy.utils.set_attr_param(network, name, value.clone())
    for name, value in list(network.named_buffers()):
        if value.is_inference():
            comfy.utils.set_attr(network, name, value.clone())
    network.requires_grad_(False)
    blocks = [b for holder in network.modules() if isinstance(holder, nn.ModuleList) for b in holder]
    blocks = [block for block in blocks if "forward" not in block.__dict__]
    for block in blocks:
        block.forward = _anew(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _anew(forward: Callable) -> Callable:
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return checkpointed


@dataclass
class _Now:
    """What the hooks should do: the LoRAs of the draw, and the gate."""

    loras: tuple[int, ...] = ()
    gate: GateParameters | None = None
    u: float = 0.0


@dataclass
class ModelStudio:
    """The ``Studio`` of ``fusion.training``."""

    wrap: Any
    material: Material
    extra: dict
    device: torch.device
    now: _Now = field(default_factory=_Now)

    def error(self, draw: Draw, picture: int, text: int | None, gate: GateParameters | None, grad: bool) -> Tensor:
        """See ``Studio``."""
        sampling = self.wrap.inner_model.model_sampling
        sigma = torch.tensor([float(sampling.percent_to_sigma(draw.u))], device=self.device)
        clean = self.material.latents[picture : picture + 1].to(self.device)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(draw.seed)).to(clean)
        noisy = sampling.noise_scaling(sigma.view(-1, *[1] * (clean.ndim - 1)), noise, clean, False)
        self.wrap.active = EMPTY if text is None else text
        self.now.loras, self.now.gate, self.now.u = draw.loras, gate, draw.u
        with nullcontext() if grad else torch.no_grad():
            told = self.wrap(noisy, sigma, **self.extra)
            # Of velocity for flows, of noise for the older kinds: what the network itself predicts.
            return ((told.float() - clean.float()) / sigma.clamp_min(1e-3)).square().mean()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks on every layer that a LoRA changes."""
        network = self.wrap.inner_model.diffusion_model
        handles, per_layer = [], {}
        for lora, branches in self.material.branches.items():
            for name, own in by_module(branches).items():
                per_layer.setdefault(name, {})[lora] = own
        try:
            for name, loras in per_layer.items():
                layer = network.get_submodule(name)
                hook = _Beside(self.now, self.material, name, layer, loras)
                handles.append(layer.register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Beside:
    """The branches of one layer, gated. Factors wait on the CPU and are copied while they are used."""

    def __init__(self, now: _Now, material: Material, name: str, layer: nn.Module, loras: Mapping[int, list[Branch]]):
        self.now, self.material, self.name, self.loras = now, material, name, loras
        self.dim = 1 if hasattr(layer, "kernel_size") else -1
        self.made = {lora: [branch_module(branch, layer) for branch in own] for lora, own in loras.items()}
        self.fused = FusedLoras(name, material.channels[name], loras) if FusedLoras.take(loras) else None

    def __call__(self, _: nn.Module, args: tuple, y0: Tensor) -> Tensor:
        there = [lora for lora in self.now.loras if lora in self.made]
        if not there:
            return y0
        roles, count = self.material.roles, float(len(self.now.loras))
        if self.fused is not None and self.now.gate is not None:
            heard = {lora: [_heard(run, args[0]) for run in self.made[lora]] for lora in there}
            return self.fused.output(self.now.gate, y0, heard, roles, count, self.now.u, self.dim)
        outputs = {lora: self._whole(lora, args[0], y0) for lora in there}
        if self.now.gate is None:
            return y0 + sum(outputs.values())
        update = hooked_update(self.now.gate, self.name, y0, outputs, roles, count, self.now.u, self.dim)
        return y0 + update.to(y0.dtype)

    def _whole(self, lora: int, x: Tensor, y0: Tensor) -> Tensor:
        """One LoRA's output on all channels of the layer."""
        spans = [branch.span(self.material.channels[self.name]) for branch in self.loras[lora]]
        return side_by_side(y0, spans, (run(x) for run in self.made[lora]), self.dim).to(y0.dtype)


def _heard(run: LowRank, x: Tensor) -> Tensor:
    """What the up factor of a branch reads."""
    for stage in run.stages:
        x = stage(x)
    return run.scaled(x)
