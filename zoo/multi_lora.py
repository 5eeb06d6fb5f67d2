"""Many LoRAs at once on one frozen base: K adapters share a forward pass, each for its own slice of the batch.

A layer's input (K·b, L, in) is viewed as (K, b·L, in) and multiplied by stacked factors (K, R, in) and (K, out, R).
Ranks and layer sets differ between LoRAs: the missing rows of ``down`` and columns of ``up`` start at zero, and the
gradient of each is a product with the other, so they stay exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.lora_plan import ATTENTION, CONTEXT, MLP
from zoo.optimiser import is_matrix


class Recipe(Protocol):
    """What training needs to know of a creator."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def lr(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def rule(self) -> str: ...
    @property
    def layers(self) -> tuple[str, ...]: ...


@runtime_checkable
class ChoosesModules(Protocol):
    """A creator that chooses single modules, not only kinds of layers."""

    def trains(self, module: str) -> bool: ...


def trains(creator: Recipe, name: str, kind: str) -> bool:
    return creator.trains(name) if isinstance(creator, ChoosesModules) else kind in creator.layers


def target_layers(model: nn.Module) -> dict[str, str]:
    """Module name -> kind, for every linear layer of the blocks but the modulations."""
    out = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_matrix(name, module.weight.shape):
            text = any(word in name for word in (".context_block.", ".txt_attn.", ".txt_mlp."))
            out[name] = CONTEXT if text else ATTENTION if "attn." in name else MLP
    return out


class StackedAdapters(nn.Module):
    """Factors of K LoRAs for every target layer, all padded to rank ``rank``."""

    def __init__(self, model: nn.Module, count: int, rank: int):
        super().__init__()
        self.kinds, self.count, self.rank = target_layers(model), count, rank
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self.register_buffer("scale", torch.zeros(count, 1, 1))
        for name in self.kinds:
            layer = model.get_submodule(name)
            key = name.replace(".", "/")
            self.down[key] = nn.Parameter(torch.zeros(count, rank, layer.in_features))
            self.up[key] = nn.Parameter(torch.zeros(count, layer.out_features, rank))
            self._wrap(layer, key)

    def _wrap(self, layer: nn.Linear, key: str) -> None:
        def forward(x: Tensor) -> Tensor:
            y = F.linear(x, layer.weight, layer.bias)
            stacked = x.reshape(self.count, -1, x.shape[-1])
            delta = torch.bmm(torch.bmm(stacked, self.down[key].mT), self.up[key].mT) * self.scale.to(x.dtype)
            return y + delta.view(y.shape)

        layer.forward = forward  # type: ignore[method-assign]

    @torch.no_grad()
    def reset(self, creators: Sequence[Recipe], seeds: Sequence[int]) -> None:
        """Fresh factors: ``down`` uniform as in LoRA (Hu et al. 2021, section 4.1), ``up`` zero."""
        for p in self.parameters():
            p.zero_()
        for k, (creator, seed) in enumerate(zip(creators, seeds, strict=True)):
            generator = torch.Generator().manual_seed(seed)
            self.scale[k] = creator.alpha
            for name, kind in self.kinds.items():
                down = self.down[name.replace(".", "/")]
                bound = 1 / math.sqrt(down.shape[2])
                fresh = (torch.rand(creator.rank, down.shape[2], generator=generator) * 2 - 1) * bound * math.sqrt(3)
                if trains(creator, name, kind):
                    down[k, : creator.rank] = fresh

    def factors(self, k: int, creator: Recipe) -> dict[str, tuple[Tensor, Tensor]]:
        """Module name -> (down (r, in), up (out, r)) of LoRA ``k``, float32, without padding and without the scale."""
        out = {}
        for name, kind in self.kinds.items():
            if trains(creator, name, kind):
                key, r = name.replace(".", "/"), creator.rank
                out[name] = self.down[key][k, :r].detach().clone(), self.up[key][k, :, :r].detach().clone()
        return out


class StackedAdam:
    """Adam or a sign rule for each LoRA apart: own rate, own number of steps, cosine fall to a tenth."""

    def __init__(self, adapters: StackedAdapters, creators: Sequence[Recipe]):
        self.params = dict(adapters.named_parameters())
        self.first = {k: torch.zeros_like(p) for k, p in self.params.items()}
        self.second = {k: torch.zeros_like(p) for k, p in self.params.items()}
        self.creators = creators
        self.signs = torch.tensor([c.rule == "sign" for c in creators])[:, None, None]

    def rates(self, step: int) -> Tensor:
        """(K, 1, 1), zero once a LoRA has had its steps."""
        out = []
        for c in self.creators:
            progress = step / c.steps
            fall = 0.55 + 0.45 * math.cos(math.pi * min(progress, 1))
            out.append(0.0 if progress > 1 else c.lr * min(1, step / 20) * fall)
        return torch.tensor(out)[:, None, None]

    @torch.no_grad()
    def step(self, step: int) -> None:
        rates = self.rates(step)
        for key, p in self.params.items():
            m = self.first[key].lerp_(p.grad, 0.1)
            v = self.second[key].lerp_(p.grad.square(), 0.01)
            adam = (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-10)
            p.sub_(rates * torch.where(self.signs, m.sign(), adam))
            p.grad.zero_()
