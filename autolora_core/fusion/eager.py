"""The fused output of one module, in plain torch: the shipped path and what every faster one must equal.

Everything is per sample and per token: ComfyUI may join or split cond and uncond as memory allows, and the picture
must not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .gate import GateVectors, gated_update
from .plan import Group, ModulePlan

BranchOutput = Callable[[int], Tensor]
VectorsOf = Callable[[int], GateVectors | None]


def fuse(y0: Tensor, plan: ModulePlan, output: BranchOutput, vectors: VectorsOf, dim: int = -1) -> Tensor:
    """``y0`` plus the module's branches.

    ``y0`` (…, d) or (n, d, …) with ``dim`` = 1; ``output(i)`` computes branch ``i`` on the layer's input, on that
    branch's own channels; ``vectors(g)`` gives the gate of group ``g`` on the right device, None for a plain sum.
    The plan itself may be a skeleton, without tensors. ``y0`` is never changed; without groups it is returned itself.
    """
    out = y0
    for number, group in enumerate(plan.groups):
        gate = vectors(number)
        if gate is None:
            for index in (index for lora in group.loras for index in lora):
                out = _add(out, y0, output(index), plan.branches[index].span(plan.channels), dim)
        else:
            base = y0.narrow(dim, group.start, group.stop - group.start)
            values = (_assemble(lora, base, group, plan, output, dim) for lora in group.loras)
            out = _add(out, y0, gated_update(base, values, gate, dim), (group.start, group.stop), dim)
    return out


def _add(out: Tensor, y0: Tensor, value: Tensor, span: tuple[int, int], dim: int) -> Tensor:
    """``out`` with ``value`` added on some channels; copies first while ``out`` still is ``y0``."""
    value = value.to(out.dtype)
    if span == (0, out.shape[dim]):
        return out + value
    if out is y0:
        out = y0.clone()
    out.narrow(dim, span[0], span[1] - span[0]).add_(value)
    return out


def _assemble(
    lora: tuple[int, ...], base: Tensor, group: Group, plan: ModulePlan, output: BranchOutput, dim: int
) -> Tensor:
    """One LoRA's ``y_k`` over the group: its only branch, or its slices side by side, zero where it has none."""
    span = (group.start, group.stop)
    if len(lora) == 1 and plan.branches[lora[0]].span(plan.channels) == span:
        return output(lora[0])
    whole = torch.zeros_like(base)
    for index in lora:
        start, stop = plan.branches[index].span(plan.channels)
        whole.narrow(dim, start - group.start, stop - start).add_(output(index).to(base.dtype))
    return whole
