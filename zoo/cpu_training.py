"""What makes training on a few CPU cores quick: bf16 convolutions with a cheap bias gradient, and Muon for all of
them at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.optimiser import orthogonal


class FastConv(torch.autograd.Function):
    """bf16 convolution whose bias gradient is a matrix product: PyTorch's own costs as much as the weight gradient
    on CPUs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        """x (B, C, H, W) bf16, weight and bias float32 -> bf16."""
        w = weight.to(torch.bfloat16, memory_format=torch.channels_last)
        ctx.save_for_backward(x, w)
        ctx.stride, ctx.has_bias = stride, bias is not None
        return F.conv2d(x, w, None if bias is None else bias.to(torch.bfloat16), stride, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for x (bf16), weight and bias (float32)."""
        x, w = ctx.saved_tensors
        g = grads[0].contiguous(memory_format=torch.channels_last)
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        s = [ctx.stride] * 2
        gx, gw, _ = torch.ops.aten.convolution_backward(g, x, w, None, s, [1, 1], [1, 1], False, [0, 0], 1, mask)
        gb = None
        if ctx.has_bias and ctx.needs_input_grad[2]:
            flat = g.permute(0, 2, 3, 1).reshape(-1, g.shape[1])
            gb = (torch.ones(16, len(flat), dtype=flat.dtype) @ flat)[0].float()  # 16 rows: one alone takes a slow path
        return gx, None if gw is None else gw.float(), gb, None


def use_fast_convolutions(model: nn.Module) -> None:
    """Route every convolution of `model` through `FastConv`; parameters and keys stay as they are."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.forward = lambda x, c=layer: FastConv.apply(x, c.weight, c.bias, c.stride[0])  # type: ignore[method-assign]


@dataclass
class Optimiser:
    """Muon for the 64 x 64 convolutions (all at once), Adam for everything else."""

    params: dict[str, nn.Parameter]
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.big = [k for k, p in self.params.items() if p.ndim == 4 and min(p.shape[:2]) >= 64]
        self.small = [k for k in self.params if k not in set(self.big)]
        shape = (len(self.big), *(self.params[self.big[0]].shape))
        self.state.setdefault("muon", torch.zeros(shape))
        for k in self.small:
            for moment in ("m", "v"):
                self.state.setdefault(f"{moment}.{k}", torch.zeros_like(self.params[k]))

    @torch.no_grad()
    def step(self, lr: float, count: int) -> None:
        """One update; `count` starts at 1. Changes parameters and state in place."""
        grad = torch.stack([self.params[k].grad for k in self.big])  # type: ignore[misc]
        momentum = self.state["muon"].lerp_(grad, 0.05)
        flat = grad.lerp(momentum, 0.95).flatten(2)
        update = orthogonal(flat).float() * (0.2 * math.sqrt(flat.shape[2]))  # the size of an Adam update
        for k, u in zip(self.big, update, strict=True):
            self.params[k].mul_(1 - 0.01 * lr).sub_(u.view_as(self.params[k]), alpha=lr)
        for k in self.small:
            g, p = self.params[k].grad, self.params[k]
            m, v = self.state[f"m.{k}"].lerp_(g, 0.1), self.state[f"v.{k}"].lerp_(g * g, 0.01)
            p.sub_(lr * (m / (1 - 0.9**count)) / ((v / (1 - 0.99**count)).sqrt() + 1e-8))
        for p in self.params.values():
            p.grad = None


def one_cycle(progress: float, peak: float) -> float:
    """Learning rate: up over the first 4 %, flat to 30 %, cosine down to 1 %."""
    if progress < 0.04:
        return peak * (0.05 + 0.95 * progress / 0.04)
    fall = max(progress - 0.3, 0) / 0.7
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(fall, 1))))
