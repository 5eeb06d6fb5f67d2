"""An Apple GPU as far as a program can tell: tensors that say ``mps``, live apart from the CPU's, and have no float64.

What it refuses is what the real one refuses: any float64 tensor, bfloat16 before macOS 14, operations on tensors of two
devices, and a few operations that Metal lacks or restricts. The numbers are computed on the CPU behind it, so results
can be compared. It does not tell how fast or how exact the real one is.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# With a number: torch looks for a driver when it has to find the number itself.
MPS = torch.device("mps:0")
aten = torch.ops.aten
# Not implemented for MPS in some of the versions of torch that ComfyUI supports.
LACKING = {aten.kthvalue.default, aten.linalg_qr.default, aten._linalg_svd.default, aten._linalg_eigh.default}
READERS = {Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__, Tensor.item, Tensor.tolist}
CROSSING = {aten.copy_.default, aten._to_copy.default, aten._has_compatible_shallow_copy_type.default}


class Refused(TypeError):
    """What the real device answers with; a TypeError there too."""


class OnMps(Tensor):
    """A tensor on the device; ``inner`` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnMps:
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=MPS,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnMps({self.inner!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Some functions ask for a driver before they are dispatched, so they are done here."""
        if func in READERS:
            return func(args[0].inner, *args[1:])
        if func is Tensor.__getitem__ and isinstance(args[0], OnMps):
            return OnMps(args[0].inner[_unwrapped(args[1])])
        if func is Tensor.__setitem__ and isinstance(args[0], OnMps):
            args[0].inner[_unwrapped(args[1])] = _unwrapped(args[2])
            return None
        if func is Tensor.copy_:
            onto, source = args[:2]
            (onto.inner if isinstance(onto, OnMps) else onto).copy_(_unwrapped(source))
            return onto
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, kwargs or {}, True)


class FakeMps(TorchDispatchMode):
    """While it is entered, the device ``mps`` exists. ``bfloat16``: as on macOS 14; False as before."""

    def __init__(self, bfloat16: bool = True):
        super().__init__()
        self.bfloat16 = bfloat16

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, kwargs or {}, self.bfloat16)


def run(func: Any, args: tuple, kwargs: dict, bfloat16: bool) -> Any:
    """One operation, wherever its tensors are."""
    leaves = tree_leaves((args, kwargs))
    tensors = [one for one in leaves if isinstance(one, Tensor)]
    there = any(isinstance(one, OnMps) for one in tensors)
    asked = [one for one in leaves if isinstance(one, torch.device)]  # by position too: ``to`` in inference mode
    on_mps = asked[0].type == "mps" if asked else there
    args, kwargs = tree_map(lambda one: torch.device("cpu") if isinstance(one, torch.device) else one, (args, kwargs))
    if not there and not on_mps:
        return func(*args, **kwargs)
    if there:
        _check_operation(func, args, tensors)
    owners = {id(one.inner): one for one in tensors if isinstance(one, OnMps)}
    out = func(*_unwrapped(args), **_unwrapped(kwargs))
    return tree_map(functools.partial(_wrapped, owners=owners, on_mps=on_mps, bfloat16=bfloat16, func=func), out)


def _check_operation(func: Any, args: tuple, tensors: list[Tensor]) -> None:
    if func in LACKING:
        raise NotImplementedError(f"{func} is not implemented for the MPS device")  # as torch itself does there
    crosses = func in CROSSING or func.name().partition(".")[0] == "aten::to"
    if not crosses and any(one.ndim and not isinstance(one, OnMps) for one in tensors):
        raise RuntimeError(f"{func}: tensors on cpu and on mps")
    if func is aten._adaptive_avg_pool2d.default:
        sizes = zip(args[0].shape[-2:], args[1], strict=True)
        if any(have % want for have, want in sizes):
            raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes")


def _unwrapped(value: Any) -> Any:
    return tree_map(lambda one: one.inner if isinstance(one, OnMps) else one, value)


def _wrapped(one: Any, owners: dict[int, OnMps], on_mps: bool, bfloat16: bool, func: Any) -> Any:
    if not isinstance(one, Tensor) or not on_mps:
        return one
    if id(one) in owners:  # an operation in place gives back what it was given
        return owners[id(one)]
    if one.dtype in (torch.float64, torch.complex128):
        raise Refused(f"{func}: the MPS framework does not support float64")
    if one.dtype == torch.bfloat16 and not bfloat16:
        raise Refused(f"{func}: BFloat16 is not supported on MPS before macOS 14")
    if one.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        raise Refused(f"{func}: float8 is not supported on MPS")
    return OnMps(one)


class NoDoubles(TorchDispatchMode):
    """Refuses float64 on every device, for what cannot run on the one above: gradients need a driver."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(one, Tensor) and one.dtype == torch.float64 for one in tree_leaves(out)):
            raise Refused(f"{func}: the MPS framework does not support float64")
        return out
