"""ComfyUI's weight adapters as branches of the layers they belong to.

Layers are told apart by their attributes, never by class: the Linear of mixed-precision checkpoints is no
``nn.Linear``. What is not additive in the activations is left to ComfyUI's own weight patches, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import torch
from comfy.weight_adapter import WeightAdapterBase

from ..autolora_core.errors import FamilyError, UnsupportedAdapterError
from ..autolora_core.fusion.branches import (
    Branch,
    hadamard_factors,
    hadamard_pays,
    lowrank_factors,
)


class NotABranch(Exception):
    """This update goes to ComfyUI's weight patches; the message is the reason."""


@dataclass(frozen=True)
class Layer:
    """``out`` and ``n_in`` channels, ``kernel`` () for linear layers; ``rows`` (start, stop) when only a slice."""

    name: str
    out: int
    n_in: int
    kernel: tuple[int, ...] = ()
    rows: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        start, stop = self.rows or (0, self.out)
        return (stop - start, self.n_in, *self.kernel)


def describe_layer(name: str, module: torch.nn.Module) -> Layer:
    """The layer's sizes. Raises ``NotABranch`` for anything a branch cannot stand beside."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return Layer(name, module.out_features, module.in_features)
    if not all(hasattr(module, needed) for needed in ("kernel_size", "in_channels", "out_channels", "stride")):
        raise NotABranch("not a linear or convolution layer")
    if getattr(module, "transposed", False) or module.groups != 1:
        raise NotABranch("a grouped or transposed convolution")
    if type(module).__name__ not in ("Conv1d", "Conv2d", "Conv3d"):
        raise NotABranch("a convolution with its own padding rules")
    return Layer(name, module.out_channels, module.in_channels, tuple(module.kernel_size))


def branch_of(patch: Any, target: Any, layer: Layer, lora_index: int, strength: float, source: str) -> Branch | None:
    """The branch for one entry of ``comfy.lora.load_lora``; None for an update that is exactly zero.

    ``target`` is its key: a weight name, or ``(name, offset[, function])``. Raises ``NotABranch`` for what only a
    weight patch can do, ``UnsupportedAdapterError`` for what nobody should apply, ``FamilyError`` for wrong sizes.
    """
    offset, function = target_parts(target)
    if offset is not None:
        if offset[0] != 0:
            raise NotABranch(f"a slice along dimension {offset[0]}")
        layer = replace(layer, rows=(offset[1], offset[1] + offset[2]))
    if not isinstance(patch, WeightAdapterBase):
        raise NotABranch({"diff": "a full weight difference", "set": "a replaced weight"}.get(patch[0], str(patch[0])))
    convert = _CONVERTERS.get(patch.name)
    if convert is None:
        raise NotABranch(f"a {patch.name} adapter, which depends on the base weight")
    if _is_zero(patch):
        return None
    fields, scale = convert(patch, layer, source)
    branch = Branch(layer.name, lora_index, scale=strength * scale, slice=layer.rows, **fields)
    return branch if function is None else branch.permuted(_row_order(function, layer.shape[0]))


def _is_zero(patch: Any) -> bool:
    """One factor of a product is all zero, as in layers that were never trained. DoRA rescales the weight even then."""
    factors = [part for part in patch.weights if isinstance(part, torch.Tensor)]
    if patch.name == "lora":
        up, down, _, mid, dora_scale, reshape = patch.weights
        factors = [up, down] + ([mid] if mid is not None else [])
        if reshape is not None:
            return False
    else:
        dora_scale = patch.weights[-1]
    return dora_scale is None and not all(part.any() for part in factors)


def target_parts(target: Any) -> tuple[tuple[int, int, int] | None, Callable | None]:
    """(offset, function) of a patch key; both None for a plain weight name."""
    if isinstance(target, str):
        return None, None
    return target[1], target[2] if len(target) > 2 else None


def _row_order(function: Callable, rows: int) -> torch.Tensor:
    """Which row of the update stands where after ``function``. Only permutations can move into the activations."""
    moved = function(torch.arange(rows, dtype=torch.float64).unsqueeze(1))
    order = moved.flatten().long()
    if moved.shape != (rows, 1) or not order.sort().values.equal(torch.arange(rows)):
        raise NotABranch("an update that is rearranged in its own way")
    return order


Converted = tuple[dict[str, torch.Tensor], float]


def _lora(patch: Any, layer: Layer, source: str) -> Converted:
    up, down, alpha, mid, dora_scale, reshape = patch.weights
    if reshape is not None:
        raise UnsupportedAdapterError(
            f"{source} enlarges the layer {layer.name} to {tuple(reshape)}: a control LoRA, with inputs of its own",
            key=layer.name,
            fix="load it with ComfyUI's own LoRA loader, before this node",
        )
    _no_dora(dora_scale)
    _check_sizes(layer, up, down, mid, source)
    fields = lowrank_factors(up, down, layer.kernel, mid)
    return fields, 1.0 if alpha is None else alpha / down.shape[0]


def _check_sizes(layer: Layer, up: torch.Tensor, down: torch.Tensor, mid: torch.Tensor | None, source: str) -> None:
    out, per_row = layer.shape[0], math.prod(layer.shape[1:] if mid is None else layer.shape[1:2])
    rank = down.shape[0]
    if up.numel() == out * rank and down.numel() == rank * per_row:
        return
    raise FamilyError(
        f"{source} does not fit this model: for {layer.name} it has an update of {up.shape[0]}×{down[0].numel()}, the "
        f"model's layer is {out}×{per_row}",
        key=layer.name,
        fix="choose a LoRA made for this base model",
    )


def _no_dora(dora_scale: Any) -> None:
    if dora_scale is not None:
        raise NotABranch("DoRA, which depends on the norm of the base weight")


def _loha(patch: Any, layer: Layer, source: str) -> Converted:
    w1a, w1b, alpha, w2a, w2b, t1, _, dora_scale = patch.weights
    _no_dora(dora_scale)
    n_in, rank = math.prod(layer.shape[1:]), w1b.shape[0] * w2b.shape[0]
    if t1 is not None or not hadamard_pays(rank, layer.shape[0], n_in):
        return _dense(patch, layer, source)
    fields = hadamard_factors(w1a, w1b, w2a, w2b)
    _check_sizes(layer, fields["up"], fields["down"], None, source)
    return lowrank_factors(**fields, kernel=layer.kernel), 1.0 if alpha is None else alpha / w1b.shape[0]


def _lokr(patch: Any, layer: Layer, source: str) -> Converted:
    w1, w2, alpha, w1a, w1b, w2a, w2b, t2, dora_scale = patch.weights
    _no_dora(dora_scale)
    dim = w2b.shape[0] if w2 is None else w1b.shape[0] if w1 is None else None
    left = w1 if w1 is not None else w1a.float() @ w1b.float()
    right = _right_factor(w2, w2a, w2b, t2)
    per_row = math.prod(layer.kernel)
    if right[0].numel() % per_row or left.shape[0] * right.shape[0] != layer.shape[0]:
        return _dense(patch, layer, source)
    right = right.reshape(right.shape[0], -1, *layer.kernel)
    if left.shape[1] * right.shape[1] != layer.n_in:
        return _dense(patch, layer, source)
    return {"left": left, "right": right}, alpha / dim if alpha is not None and dim else 1.0


def _right_factor(w2: Any, w2a: Any, w2b: Any, t2: Any) -> torch.Tensor:
    """The larger factor of LoKr, (c, d·k) or (c, d, *k); stored whole, as a product, or as a Tucker product."""
    if w2 is not None:
        return w2
    if t2 is None:
        return w2a.float() @ w2b.float()
    # torch.kron fails on the strides that einsum leaves behind.
    return torch.einsum("ij...,jr,ip->pr...", t2.float(), w2b.float(), w2a.float()).contiguous()


def _dense(patch: Any, layer: Layer, source: str) -> Converted:
    """ComfyUI's own arithmetic, on zeros: exact for whatever is additive, alpha included."""
    zeros = torch.zeros(layer.shape)
    dense = comfy.lora.calculate_weight(
        [(1.0, patch, 1.0, None, None)], zeros, f"{layer.name}.weight", intermediate_dtype=torch.float32
    )
    # ComfyUI logs a wrong shape and goes on with the weight unchanged.
    if not dense.any():
        sizes = ", ".join("×".join(map(str, part.shape)) for part in patch.weights if isinstance(part, torch.Tensor))
        raise FamilyError(
            f"{source} does not fit this model: for {layer.name} it has factors of {sizes}, the model's layer is "
            f"{'×'.join(map(str, layer.shape))}",
            key=layer.name,
            fix="choose a LoRA made for this base model",
        )
    return {"dense": dense}, 1.0


_CONVERTERS: dict[str, Callable[[Any, Layer, str], Converted]] = {"lora": _lora, "loha": _loha, "lokr": _lokr}
