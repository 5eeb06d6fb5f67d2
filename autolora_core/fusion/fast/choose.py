"""Which way a packed layer goes, and why not the fast one: every reason in one place."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .layout import DTYPES, Section

log = logging.getLogger(__name__)
MOST_LORAS, HIGHEST_RANK = 16, 256  # that the kernel has tiles for
_told: set[str] = set()
_broken: list[str] = []
_not_compiled: list[str] = []


def why_written_out(x: Tensor, y0: Tensor) -> str | None:
    """Why a layer is computed as the gate is written down, whatever it runs on; None where it need not be."""
    if torch.is_grad_enabled() and (x.requires_grad or y0.requires_grad):
        return "gradients are asked for"
    if y0.dtype not in DTYPES or x.dtype not in DTYPES:
        return f"activations are {y0.dtype}"
    if y0.shape[:-1] != x.shape[:-1] or x.device != y0.device:
        return "the layer does not keep its tokens"
    return None


def why_no_kernel(device: torch.device, sections: Iterable[Section]) -> str | None:
    """Why gated spans on ``device`` cannot go the fast way; None for a processor, and a GPU with Triton."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"there is no kernel for {device.type}"
    if _broken:
        return _broken[0]
    if not _has_triton():
        return "Triton is not installed"
    for section in sections:
        if len(section.bounds) > MOST_LORAS:
            return f"more than {MOST_LORAS} LoRAs meet at a layer"
        if section.rank > HIGHEST_RANK:
            return f"a LoRA's rank is above {HIGHEST_RANK}"
    return None


def give_up(error: Exception) -> None:
    """The kernel could not be built or started: from now on this process does without it."""
    _broken.append(f"Triton failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300])


def tell_once(reason: str) -> None:
    """A warning the first time a reason occurs: the result is the same, only later."""
    if reason not in _told:
        _told.add(reason)
        log.warning("Gated LoRAs run in plain torch, which is slower: %s", reason)


@functools.cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except Exception:  # whatever a broken installation says
        return False
    return True


def compiled_gate(dtype: torch.dtype) -> Callable[..., None] | None:
    """:func:`.compiled_gate.add_gated`, ready for ``dtype``; None where Numba is not installed or cannot be used, which
    is told once. Asked for the first time it takes some seconds."""
    if _not_compiled or not _has_numba():
        return None
    try:
        from . import compiled_gate as found

        return found.add_gated if found.ready(dtype) else None
    except Exception as error:  # a NumPy too new for it, a processor that LLVM does not know
        _not_compiled.append(f"Numba failed: {type(error).__name__}: {error}"[:300])
        tell_once(_not_compiled[0])
        return None


@contextmanager
def in_plain_torch() -> Iterator[None]:
    """Without the compiled pass, as where Numba is not installed: for measurements and tests."""
    _not_compiled.append("asked for")
    try:
        yield
    finally:
        _not_compiled.remove("asked for")


@functools.cache
def _has_numba() -> bool:
    try:
        import numba  # noqa: F401
    except ModuleNotFoundError as error:
        return error.name != "numba"  # something that it needs is missing: that is told where it is used
    except Exception:  # whatever a broken installation says
        return True
    return True
