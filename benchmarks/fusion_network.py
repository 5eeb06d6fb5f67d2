"""The demo network with fused LoRAs in it, as fast as a CPU allows.

Whatever is linear in a layer's input is merged into its weight for the pictures of one case: the sum of branches
beside a layer and a changed weight are the same layer (a test compares with ``eager.fuse``). Switch, K-LoRA and
Composite are changed weights too, others at other moments. Only what depends on the activations (gates, energy) runs
beside the layers, through ``eager.fuse`` itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora_core.fusion.eager import fuse
from autolora_core.fusion.moment import Moment
from autolora_core.fusion.plan import FusionPlan, ModulePlan
from autolora_core.fusion.rules import Energy, energy_sum
from benchmarks.fusion_gated import GatedNetwork
from zoo.autoencoder import Autoencoder, decode_latents
from zoo.multi_lora import target_layers
from zoo.sampler import sample
from zoo.text_bank import encode

Weights = Mapping[str, Tensor]  # module → (out, in); modules that are absent keep the base's
Passes = Callable[[Moment], Sequence[Weights]]


@dataclass(frozen=True)
class Course:
    """How a set of LoRAs is run: at every step the mean prediction over ``passes``, with ``plan`` beside the layers.

    ``hooks``: module → what makes a forward hook of the moment, for what no plan can say.
    """

    passes: Passes = lambda moment: ({},)
    plan: FusionPlan | None = None
    hooks: Mapping[str, Callable[[Moment], Callable]] = field(default_factory=dict)


class Network:
    """The base with exchangeable weights. ``dtype`` of linear layers and activations; norms stay in float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.bfloat16, compiled: bool = False):
        self.model, self.dtype, self.compiled = model.eval().requires_grad_(False), dtype, compiled
        self.layers: dict[str, nn.Linear] = {n: model.get_submodule(n) for n in target_layers(model)}  # type: ignore[misc]
        self.base = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        self.channels = {name: layer.out_features for name, layer in self.layers.items()}
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data.to(dtype)
        self._own = {name: layer.weight.data for name, layer in self.layers.items()}
        self._quick = torch.compile(model.forward, dynamic=False) if compiled else model.forward
        self._gated: GatedNetwork | None = None

    def weights(self, updates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Base weight plus update (out, in) of each module, rounded once."""
        return {name: (self.base[name] + update).to(self.dtype) for name, update in updates.items()}

    @contextmanager
    def running(self, course: Course, steps: int) -> Iterator[Callable[..., Tensor]]:
        """Gives ``velocity(x, t, context, pooled)``, to be called once a step."""
        moment, hooks = Moment(0, steps), []
        if self.compiled and course.plan and GatedNetwork.takes(course.plan):
            yield self._gated_velocity(course.plan, moment)
            return
        for name, plan in (course.plan.modules if course.plan else {}).items():
            hooks.append(self.layers[name].register_forward_hook(self.beside(name, plan, moment)))

        def velocity(*inputs: Tensor) -> Tensor:
            passes, total = course.passes(moment), None
            run = self.model if hooks else self._quick  # hooks change from case to case: each would be compiled anew
            for weights in passes:
                self._install(weights)
                out = run(*inputs)
                total = out if total is None else total + out
            moment.go(moment.step + 1, steps)
            return total / len(passes)

        hooks += [self.layers[name].register_forward_hook(make(moment)) for name, make in course.hooks.items()]
        try:
            yield velocity
        finally:
            self._install({})
            for hook in hooks:
                hook.remove()

    def beside(self, name: str, plan: ModulePlan, moment: Moment) -> Callable[..., Tensor]:
        """The forward hook that fuses the branches of module ``name``."""
        return beside(plan, moment, self.dtype, self.compiled)

    def _gated_velocity(self, plan: FusionPlan, moment: Moment) -> Callable[..., Tensor]:
        if self._gated is None:
            self._gated = GatedNetwork(copy.deepcopy(self.model), self.dtype, self.compiled)
        self._gated.load(plan)

        def velocity(*inputs: Tensor) -> Tensor:
            out = self._gated.velocity(moment.progress, *inputs)
            moment.go(moment.step + 1, moment.steps)
            return out

        return velocity

    def _install(self, weights: Weights) -> None:
        for name, layer in self.layers.items():
            layer.weight.data = weights.get(name, self._own[name])

    def computing(self):
        """Autocast where the network computes in half precision."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast("cpu", self.dtype)


def beside(plan: ModulePlan, moment: Moment, dtype: torch.dtype, compiled: bool) -> Callable[..., Tensor]:
    """A forward hook that fuses the branches of one module to its output, as ``eager.fuse`` does.

    All down factors are one product, and a sum by energy over whole layers is one loop where it may be compiled.
    """
    down = torch.cat([b.down for b in plan.branches]).to(dtype)
    ups = [(b.up * b.scale).to(dtype) for b in plan.branches]
    ranks = [up.shape[1] for up in ups]
    whole = all(up.shape[0] == plan.channels for up in ups) and len(plan.groups) == 1
    quick = compiled and whole and isinstance(plan.groups[0].rule, Energy)
    vectors = [group.vectors for group in plan.groups]

    def hook(_: nn.Module, args: tuple, out: Tensor) -> Tensor:
        heard = F.linear(args[0].to(dtype), down).split(ranks, -1)
        outputs = [F.linear(h, up) for h, up in zip(heard, ups, strict=True)]
        if quick:
            return out + compiled_energy()(outputs).to(out.dtype)
        return fuse(out, plan, outputs.__getitem__, vectors.__getitem__, moment=moment)

    return hook


@cache
def compiled_energy() -> Callable[[list[Tensor]], Tensor]:
    return torch.compile(energy_sum, dynamic=True)


class Painter:
    """Pictures of prompts by a course. The states of a text are computed once."""

    def __init__(self, network: Network, decoder: Autoencoder, steps: int, cfg: float = 4.0):
        self.network, self.decoder, self.steps, self.cfg = network, decoder, steps, cfg
        self._states: dict[str, tuple[Tensor, Tensor]] = {}

    def states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Context (n, 24, 384) and pooled (n, 384)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._states]
        if new:
            context, pooled = encode(new)
            self._states |= {text: (c, p) for text, c, p in zip(new, context, pooled, strict=True)}
        rows = [self._states[text] for text in texts]
        return torch.stack([c for c, _ in rows]), torch.stack([p for _, p in rows])

    def forget(self) -> None:
        self._states.clear()

    def latents(self, course: Course, prompts: Sequence[str], seed: int) -> Tensor:
        """(n, 16, 16, 16); sample i starts from the noise of ``seed`` + i."""
        empty = self.states([""])
        with self.network.running(course, self.steps) as velocity, self.network.computing():
            return sample(velocity, *self.states(prompts), empty, steps=self.steps, cfg=self.cfg, seed=seed).float()

    def draw(self, course: Course, prompts: Sequence[str], seed: int) -> np.ndarray:
        """uint8 (n, 128, 128, 3)."""
        return decode_latents(self.latents(course, prompts, seed), self.decoder, batch=8)
