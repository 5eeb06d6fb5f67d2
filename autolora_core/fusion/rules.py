"""Rules that fuse the outputs of several LoRAs at a layer without learned vectors.

``Energy`` rescales their sum; the others say which single LoRA a layer hears at a moment. All are plain data, so that a
plan can be printed, compared and sent to a compiler.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .moment import Moment


@dataclass(frozen=True)
class Energy:
    """The sum of all LoRAs, never longer than the longest single one: see :func:`energy_sum`."""

    def live(self, moment: Moment) -> int | None:
        """All of them."""
        return None


@dataclass(frozen=True)
class Switch:
    """LoRA Switch (arXiv 2402.16843, section 3.1): one LoRA a step, each for ``interval`` steps, in ``order``."""

    order: tuple[int, ...]
    interval: int = 1

    def live(self, moment: Moment) -> int | None:
        """The number of the LoRA that is on: the moment's ``only`` where it is set, so that a compiled layer depends on
        the LoRA and not on the step."""
        if moment.only is not None:
            return moment.only
        return self.order[(moment.step // self.interval) % len(self.order)]


@dataclass(frozen=True)
class Timed:
    """K-LoRA's choice at one layer: LoRA ``early`` first, ``late`` once progress is beyond ``after``."""

    early: int
    late: int
    after: float

    def live(self, moment: Moment) -> int | None:
        """The number of the LoRA that is on."""
        return self.late if moment.progress > self.after else self.early


@dataclass(frozen=True)
class Alone:
    """LoRA Composite (arXiv 2402.16843, section 3.2): one LoRA an evaluation; whoever runs the model says which."""

    def live(self, moment: Moment) -> int | None:
        """The number of the LoRA that is on; None, all of them, outside such an evaluation."""
        return moment.only


Rule = Energy | Switch | Timed | Alone


def energy_sum(values: Iterable[Tensor], dim: int = -1) -> Tensor | None:
    """``Σ y_k · min(1, max_k ‖y_k‖ / ‖Σ y_k‖)``, norms over ``dim`` for every sample and token, at least in float32.

    Where LoRAs pull the same way, their sum gets the energy of the strongest one; where they cancel, nothing is
    amplified. One value gives itself. ``values`` is consumed one by one; the result has their dtype, None without any.
    """
    total = longest = None
    for value in values:
        length = _length(value, dim)
        total = value if total is None else total + value
        longest = length if longest is None else torch.maximum(longest, length)
    if total is None:
        return None
    return total * _factor(total, longest, dim).to(total.dtype)


def energy_factor(values: Sequence[Tensor], dim: int = -1) -> Tensor:
    """What :func:`energy_sum` multiplies the sum of ``values`` by; broadcasts over ``dim``."""
    longest = _length(values[0], dim)
    for value in values[1:]:
        longest = torch.maximum(longest, _length(value, dim))
    return _factor(sum(values[1:], values[0]), longest, dim)


def _factor(total: Tensor, longest: Tensor, dim: int) -> Tensor:
    length = _length(total, dim)
    return torch.where(length > longest, longest / length, torch.ones_like(length))


def _length(value: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(value, dim=dim, keepdim=True, dtype=torch.promote_types(value.dtype, torch.float32))
