"""The demo network with gates, compiled once for each number of LoRAs: an eager gate is several times slower.

A plan's factors, gates and tilts are copied into buffers of one shape, every rank padded to :data:`RANK`; what is
compiled never changes. A test compares with ``eager.fuse``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora_core.fusion.gate import EPS, VECTORS
from autolora_core.fusion.plan import FusionPlan, Group, ModulePlan
from autolora_core.fusion.training.parameters import spans_of
from zoo.multi_lora import target_layers

RANK = 16


class GatedLayer(nn.Module):
    """Stands in for a linear layer: K LoRAs beside it, gated in ``parts`` equal spans of its channels."""

    def __init__(self, layer: nn.Linear, parts: int, u: Tensor):
        super().__init__()
        self.layer, self.parts, self.u = layer, parts, u

    def resize(self, count: int) -> None:
        """Room for ``count`` LoRAs."""
        out, inner, dtype = self.layer.out_features, self.layer.in_features, self.layer.weight.dtype
        self.down = torch.zeros(count * RANK, inner, dtype=dtype)
        self.up = torch.zeros(count, RANK, out, dtype=dtype)
        self.stack = torch.zeros(len(VECTORS), self.parts, out // self.parts)
        self.tilts = torch.zeros(count, 4, self.parts)

    def load(self, plan: ModulePlan | None, order: dict[int, int]) -> None:
        """``order``: LoRA number → its place. Without a plan nothing is added."""
        for buffer in (self.down, self.up, self.tilts):
            buffer.zero_()
        for branch in plan.branches if plan else ():
            place, (start, stop) = order[branch.lora_index], branch.span(plan.channels)
            first = place * RANK
            self.down[first : first + len(branch.down)] = branch.down
            self.up[place, : len(branch.down), start:stop] = (branch.up * branch.scale).T
        for group in plan.groups if plan else ():
            part = group.start * self.parts // plan.channels
            self.stack[:, part] = group.vectors.stack()
            for place, tilt in zip(self._places(plan, group, order), group.tilts or (), strict=False):
                self.tilts[place, :, part] = torch.tensor([*tilt.shift, *tilt.gain])

    @staticmethod
    def _places(plan: ModulePlan, group: Group, order: dict[int, int]) -> list[int]:
        return [order[plan.branches[own[0]].lora_index] for own in group.loras]

    def forward(self, x: Tensor) -> Tensor:
        y0 = self.layer(x)
        heard = F.linear(x.to(self.down.dtype), self.down).unflatten(-1, (-1, RANK))
        base = _normed(y0.unflatten(-1, (self.parts, -1))) * self.stack[5] + self.stack[6]
        way, update = 2 * self.u - 1, 0.0
        for place in range(len(self.up)):
            y = (heard[..., place, :] @ self.up[place]).unflatten(-1, (self.parts, -1)).float()
            tilt = self.tilts[place].unsqueeze(-1)
            lora = _normed(y) * self.stack[7] + self.stack[8]
            logits = lora * (self.stack[1] + base * self.stack[2]) + base * self.stack[0] + self.stack[4]
            gate = torch.sigmoid(logits + tilt[0] + way * tilt[1]) * torch.exp(tilt[2] + way * tilt[3])
            update = update + gate * self.stack[3] * y
        return y0 + update.flatten(-2).to(y0.dtype)


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS)


class GatedNetwork:
    """``model`` is this network's own; its linear layers are replaced."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, compiled: bool):
        self.model, self.u, self.count = model.eval().requires_grad_(False), torch.zeros(()), 0
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data.to(dtype)
        self.layers: dict[str, GatedLayer] = {}
        for name in target_layers(model):
            parent, _, leaf = name.rpartition(".")
            linear = model.get_submodule(name)
            layer = GatedLayer(linear, len(spans_of(name, linear.out_features)), self.u)
            setattr(model.get_submodule(parent), leaf, layer)
            self.layers[name] = layer
        self.run = torch.compile(model.forward, dynamic=False) if compiled else model.forward

    @staticmethod
    def takes(plan: FusionPlan) -> bool:
        """Whether every module of the plan is gated throughout, in spans that this network knows, by low ranks."""
        return all(
            all(group.vectors is not None and group.rule is None for group in own.groups)
            and all(b.kind == "lowrank" and b.mid is None and len(b.down) <= RANK for b in own.branches)
            for own in plan.modules.values()
        )

    def load(self, plan: FusionPlan) -> None:
        loras = sorted({branch.lora_index for own in plan.modules.values() for branch in own.branches})
        if len(loras) != self.count:
            self.count = len(loras)
            for layer in self.layers.values():
                layer.resize(self.count)
        order = {lora: place for place, lora in enumerate(loras)}
        for name, layer in self.layers.items():
            layer.load(plan.modules.get(name), order)

    def velocity(self, progress: float, *inputs: Tensor) -> Tensor:
        self.u.fill_(progress)
        return self.run(*inputs)
