"""Operations and bytes of a way, counted from the calls that PyTorch makes: what a roofline is drawn from.

A call reads its tensors and writes its result, once each; views cost nothing. That is what a way moves between memory
and processor where nothing stays in a cache from call to call, as on a layer of real size. Ours works on pieces that do
stay there; of it only operations are counted, and its bytes are the least there can be: see :func:`least_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from autolora_core.fusion.fast.choose import in_plain_torch

from .shapes import Shape
from .ways import Layer

FEW = (64, 128)  # tokens at which a way is counted; all it does is a constant and so much a token
PER_NUMBER = {"native_layer_norm": 8}  # operations a number of the result; other calls that are no products: one


@dataclass
class Work:
    flops: float = 0.0
    bytes: float = 0.0


class Counting(TorchDispatchMode):
    """Adds up what is called inside."""

    def __init__(self):
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns):
            made = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
            read = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            name = func.name().removeprefix("aten::").partition(".")[0]
            if name not in ("empty", "empty_like", "empty_strided", "detach"):
                self.work.bytes += sum(one.numel() * one.element_size() for one in made + read)
            if func.overloadpacket in flop_registry:
                self.work.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            elif made and name not in ("empty", "empty_like", "empty_strided", "detach", "zeros_like", "copy_"):
                self.work.flops += made[0].numel() * PER_NUMBER.get(name, 1)
        return out


def counted(shape: Shape, count: int, rank: int, dtype: torch.dtype, way: Callable[[Layer], object]) -> Work:
    """Of ``way`` at all tokens of ``shape``."""
    found = []
    for tokens in FEW:
        layer = Layer.make(replace(shape, tokens=tokens), [rank] * count, dtype, "cpu")
        # In inference mode a linear layer is one call of no known cost; a compiled pass is no call at all.
        with in_plain_torch(), torch.no_grad(), Counting() as counting:
            way(layer)
        found.append(counting.work)
    more = (shape.tokens - FEW[0]) / (FEW[1] - FEW[0])
    first, second = found
    return Work(first.flops + more * (second.flops - first.flops), first.bytes + more * (second.bytes - first.bytes))


def least_bytes(shape: Shape, count: int, rank: int, size: int) -> float:
    """That any way must move beyond the base layer's own: it reads the input once more for the down factors, reads the
    base's output and writes the sum, and reads the factors. ``size``: bytes of a number."""
    factors = count * rank * (shape.n_in + shape.out)
    hidden = 2 * shape.tokens * count * rank
    return size * (shape.tokens * (shape.n_in + 2 * shape.out) + factors + hidden)


def work_rows(shape: Shape, count: int, rank: int, dtype: torch.dtype) -> list[dict]:
    """Operations and bytes of each way at a layer."""
    ways = {"base": Layer.base, "bypass": Layer.bypass, "eager": Layer.eager, "ours": Layer.chunked}
    found = {name: counted(shape, count, rank, dtype, way) for name, way in ways.items()}
    found["ours"].bytes = found["base"].bytes + least_bytes(shape, count, rank, dtype.itemsize)
    name = str(dtype).removeprefix("torch.")
    return [
        {"what": "work", "shape": shape.name, "k": count, "rank": rank, "dtype": name, "way": way, "flops": work.flops,
         "bytes": work.bytes}
        for way, work in found.items()
    ]  # fmt: skip
