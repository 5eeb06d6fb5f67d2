"""Where the factors live while a model runs: modules of ComfyUI's own casting layers, under their own ModelPatcher.

So ComfyUI counts their memory, moves them, streams them under a tiny budget and casts them to the dtype and device of
the activations. Nothing here looks at the base layer's weight: it may be fp8, packed or elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, reduce
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn

from ..autolora_core.fusion.branches import Branch
from ..autolora_core.fusion.eager import fuse
from ..autolora_core.fusion.fast.layout import DTYPES, can_be_packed
from ..autolora_core.fusion.gate import GateVectors
from ..autolora_core.fusion.moment import Moment
from ..autolora_core.fusion.plan import FusionPlan, ModulePlan
from .bridge_features import computes_in_bfloat16
from .bridge_packed import Contents, Factors, held

_CONVOLUTIONS = {1: "Conv1d", 2: "Conv2d", 3: "Conv3d"}


class FusionBank(nn.Module):
    """All layers of one node application. ``layers[i]`` belongs to ``names[i]``; all go by one ``moment``. ``dtype``:
    what the model computes in, None where nobody knows; ``contents``: see :class:`.bridge_packed.Factors`."""

    def __init__(
        self, plan: FusionPlan, modules: dict[str, nn.Module], moment: Moment | None = None,
        dtype: torch.dtype | None = None, contents: Contents | None = None,
    ):  # fmt: skip
        super().__init__()
        self.names = tuple(plan.modules)
        moment = moment or Moment()
        self.layers = nn.ModuleList(
            [FusionLayer(plan.modules[name], modules[name], moment, dtype, contents) for name in self.names]
        )


class FusionLayer(nn.Module):
    """The branches and gates of one base layer; called with the layer's input and output.

    Low-rank branches of a linear layer that are gated or summed stand in a few stacked ``factors`` (see
    :mod:`.bridge_packed`), all others are ``branches`` and ``gates``, one by one.
    """

    def __init__(
        self, plan: ModulePlan, base: nn.Module, moment: Moment | None = None, dtype: torch.dtype | None = None,
        contents: Contents | None = None,
    ):  # fmt: skip
        super().__init__()
        self.moment = moment or Moment()
        convolution = hasattr(base, "kernel_size")
        self.dim = 1 if convolution else -1
        packed = not convolution and can_be_packed(plan)
        self.factors = Factors(plan, _common_dtype(plan.branches, dtype), contents) if packed else None
        self.branches = nn.ModuleList([] if packed else [branch_module(branch, base) for branch in plan.branches])
        self.gates = nn.ModuleList([] if packed else [Gate(group.vectors) for group in plan.groups])
        self.plan = plan.skeleton()

    def forward(self, x: Tensor, y0: Tensor, own: bool = False) -> Tensor:
        """``own``: nobody else has ``y0``, it may be written over."""
        if self.factors is not None and self.moment.recorder is None and self.factors.runs_fast(x, y0):
            out = self.factors.fast(x, y0, self.moment, own)
            if out is not None:
                return out
        return self.written_out(x, y0)

    def written_out(self, x: Tensor, y0: Tensor) -> Tensor:
        """The gate and the rules as they are written down, a branch's output after the other; tells the recorder."""
        recorder, module = self.moment.recorder, self.plan.name

        def output(index: int) -> Tensor:
            lora = self.plan.branches[index].lora_index
            y = self.branches[index](x) if self.factors is None else self.factors.branch(index, x)
            if recorder is not None:
                recorder.whole(module, lora, y)
            presence = self.moment.presences.get(lora)
            return y if presence is None else presence.of(y, module, self.dim)

        def vectors(number: int) -> GateVectors | None:
            return self.gates[number](y0.device) if self.factors is None else self.factors.vectors(number, y0)

        if recorder is None:
            return fuse(y0, self.plan, output, vectors, self.dim, self.moment)
        recorder.base(module, y0, self.moment.only)
        return fuse(y0, self.plan, output, vectors, self.dim, self.moment, partial(recorder.passed, module))


class Gate(nn.Module):
    """The nine vectors of one group, float32. Moved when used: a plain parameter may be left on the offload device."""

    def __init__(self, vectors: GateVectors | None):
        super().__init__()
        self.eps = vectors.eps if vectors is not None else 0.0
        stack = vectors.stack() if vectors is not None else None
        self.register_parameter("stack", None if stack is None else nn.Parameter(stack, requires_grad=False))

    def forward(self, device: torch.device) -> GateVectors | None:
        return None if self.stack is None else GateVectors.from_stack(self.stack.to(device), self.eps)


class Scaled(nn.Module):
    """A branch with a strength. A compiled graph takes it as an input, so that another strength is no other graph."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale
        self.register_buffer("scale_input", torch.tensor(scale, dtype=torch.float32), persistent=False)

    def scaled(self, x: Tensor) -> Tensor:
        """``scale · x`` in x's dtype, the product in float32 at least."""
        if not torch.compiler.is_compiling():
            return x * self.scale
        return (x.to(torch.promote_types(x.dtype, torch.float32)) * self.scale_input).to(x.dtype)


class LowRank(Scaled):
    """``up(scale · (mid) down(x))``."""

    def __init__(self, stages: list[nn.Module], up: nn.Module, scale: float):
        super().__init__(scale)
        self.stages, self.up = nn.ModuleList(stages), up

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.up(self.scaled(x))


class Kronecker(Scaled):
    """``scale · (left ⊗ right) ∗ x`` by two small products, over the channel axis ``dim``: b·d → b, c → a, c."""

    def __init__(self, left: nn.Module, right: nn.Module, scale: float, dim: int):
        super().__init__(scale)
        self.left, self.right, self.dim = left, right, dim
        self.columns = left.in_features

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(self.dim, (self.columns, -1))
        if self.dim == -1:
            return self._mix(self.right(x), -2).flatten(-2)
        # A convolution takes one batch axis: the b parts of the channels become more samples.
        parts = self.right(x.flatten(0, 1)).unflatten(0, (-1, self.columns))
        return self._mix(parts, 1).flatten(1, 2)

    def _mix(self, x: Tensor, dim: int) -> Tensor:
        return self.left(self.scaled(x.movedim(dim, -1))).movedim(-1, dim)


class Dense(Scaled):
    """``scale · dense(x)``."""

    def __init__(self, layer: nn.Module, scale: float):
        super().__init__(scale)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(self.layer(x))


def branch_module(branch: Branch, base: nn.Module) -> nn.Module:
    """What computes a branch on the input of ``base``."""
    return (_convolution_branch if hasattr(base, "kernel_size") else _linear_branch)(branch, base)


def _linear_branch(branch: Branch, base: nn.Module) -> nn.Module:
    if branch.kind == "kron":
        return Kronecker(_linear(branch.left), _linear(branch.right), branch.scale, -1)
    if branch.kind == "dense":
        return Dense(_linear(branch.dense), branch.scale)
    return LowRank([_linear(branch.down)], _linear(branch.up), branch.scale)


def down_layer(weight: Tensor, base: nn.Module) -> nn.Module:
    """A layer that reads what ``base`` reads: linear for ``weight`` (r, in), a convolution like base's for kernels."""
    return _convolution(weight, _walk(base)) if hasattr(base, "kernel_size") else _linear(weight)


def _walk(base: nn.Module) -> dict[str, Any]:
    """How a convolution goes over its input."""
    return {name: getattr(base, name) for name in ("stride", "padding", "dilation", "padding_mode")}


def _convolution_branch(branch: Branch, base: nn.Module) -> nn.Module:
    """The first kernel of full size walks over the image as the base layer does; the others are 1×1."""
    walk = _walk(base)
    if branch.kind == "kron":
        return Kronecker(_linear(branch.left), _convolution(branch.right, walk), branch.scale, 1)
    if branch.kind == "dense":
        return Dense(_convolution(branch.dense, walk), branch.scale)
    up = _convolution(branch.up.reshape(*branch.up.shape, *[1] * len(base.kernel_size)), {})
    if branch.mid is None:
        return LowRank([_convolution(branch.down, walk)], up, branch.scale)
    return LowRank([_convolution(branch.down, {}), _convolution(branch.mid, walk)], up, branch.scale)


def _linear(weight: Tensor) -> nn.Module:
    return held(weight.to(kept_dtype(weight.dtype)))


def _convolution(weight: Tensor, walk: dict[str, Any]) -> nn.Module:
    kind = getattr(comfy.ops.manual_cast, _CONVOLUTIONS[weight.ndim - 2])
    layer = kind(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=False, device="meta", **walk)
    return _with_weight(layer, weight)


def _with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    weight = weight.detach().to(kept_dtype(weight.dtype))
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return layer


def kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """The file's precision where torch computes in it, here; all else, float64 and float8 too, becomes float32."""
    kept = dtype in DTYPES
    if dtype == torch.bfloat16:
        kept = computes_in_bfloat16(comfy.model_management.get_torch_device())
    return dtype if kept else torch.float32


def _common_dtype(branches: Iterable[Branch], computed: torch.dtype | None) -> torch.dtype:
    """What a layer's factors are kept in together: what the model computes in, or what loses nothing of any file."""
    if computed in DTYPES:
        return kept_dtype(computed)
    found = [kept_dtype(factor.dtype) for branch in branches for factor in (branch.down, branch.up)]
    return reduce(torch.promote_types, found)
