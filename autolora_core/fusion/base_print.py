"""Was a gate trained on this very base, or on another one of the same shape? Told from a hundred numbers.

The gate file keeps the first few values of a few of the base's vectors (biases and norm scales: never quantised, small,
and changed by every full training). Hashes would not do: the model in use may be bfloat16 or float8 where the gate was
trained in float32. A base that differs only by LoRAs merged into its matrices counts as the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

VECTORS, VALUES = 12, 8
# ‖a − b‖ / ‖b‖ that rounding can cause, with room: bfloat16 has 0.001, float8 up to 0.07.
TOLERANCE, TOLERANCE_OF_FLOAT8 = 0.005, 0.15


def base_fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """The first 8 numbers of up to 12 vectors, spread over the base's names; constant ones tell nothing.

    ``tensors`` are the diffusion model's, under its own names.
    """
    names = sorted(name for name, value in tensors.items() if _tells(value))
    step = max(1, -(-len(names) // VECTORS))
    return {name: [float(f"{value:.5g}") for value in _head(tensors[name]).tolist()] for name in names[::step]}


def is_same_base(fingerprint: Mapping[str, Sequence[float]], tensors: Mapping[str, Tensor]) -> bool | None:
    """Whether ``tensors`` are those of the base a fingerprint was taken from; None when none of them can be compared.

    Another base differs in nearly all vectors; a LoRA with bias entries, merged, in a few: half of them decide.
    """
    differ = []
    for name, values in fingerprint.items():
        own = tensors.get(name)
        if own is None or own.ndim != 1 or own.numel() < len(values) or own.is_meta:
            continue
        tolerance = TOLERANCE_OF_FLOAT8 if own.dtype.itemsize == 1 else TOLERANCE
        known = torch.tensor(values, dtype=torch.float64)
        differ.append(bool((_head(own)[: len(values)].double() - known).norm() > tolerance * known.norm()))
    return sum(differ) * 2 < len(differ) if differ else None


def _tells(value: Tensor) -> bool:
    if value.ndim != 1 or value.numel() < VALUES or not value.is_floating_point() or value.is_meta:
        return False
    head = _head(value)
    return bool((head != head[0]).any())


def _head(value: Tensor) -> Tensor:
    """(8,) float32 on the CPU; float8 has no arithmetic of its own."""
    return value[:VALUES].detach().cpu().float()
