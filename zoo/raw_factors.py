"""A LoRA as training leaves it: ``<module>|down`` (r, in) and ``<module>|up`` (out, r) in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.cache import write_atomic

Factors = dict[str, tuple[Tensor, Tensor]]


def write_raw(path: Path, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Path:
    """Store factors by module, in one move."""
    flat = {
        f"{name}|{side}": tensor.contiguous()
        for name, pair in factors.items()
        for side, tensor in zip(("down", "up"), pair, strict=True)
    }
    return write_atomic(path, lambda tmp: save_file(flat, str(tmp)))


def read_raw(path: Path) -> Factors:
    """Module -> (down, up), as stored."""
    flat = load_file(str(path))
    names = [key.removesuffix("|down") for key in flat if key.endswith("|down")]
    return {name: (flat[f"{name}|down"], flat[f"{name}|up"]) for name in names}
