"""Where sampling stands, for rules that depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .presence import Presence
from .record import Recorder

TOLERANCE = 1e-4


def _zero() -> Tensor:
    with torch.inference_mode(False):  # it is written wherever the model is run
        return torch.zeros(())


@dataclass
class Moment:
    """Shared by the fused layers of one node application; whoever runs the model writes it before every evaluation.

    ``step`` of ``steps`` counts from 0. ``only``: the one LoRA that is on, None for all. ``share`` is the progress once
    more, in a tensor without axes that is written in place: a compiled layer that reads it is compiled once.
    ``presences``: LoRA number → its schedule and mask, of those that have any. ``recorder`` notes what passes. ``size``
    of the whole latent that is sampled, (frames…, h, w); None outside sampling.
    """

    step: int = 0
    steps: int = 1
    only: int | None = None
    share: Tensor = field(default_factory=_zero, compare=False, repr=False)
    presences: dict[int, Presence] = field(default_factory=dict, compare=False, repr=False)
    recorder: Recorder | None = field(default=None, compare=False, repr=False)
    size: tuple[int, ...] | None = field(default=None, compare=False, repr=False)

    def go(self, step: int, steps: int) -> None:
        self.step, self.steps = step, steps
        self.share.fill_(self.progress)

    @property
    def progress(self) -> float:
        """0 at the first step, 1 after the last."""
        return self.step / self.steps


def step_of(sigma: float, schedule: Sequence[float]) -> tuple[int, int]:
    """``(step, steps)`` of an evaluation at ``sigma``; ``schedule`` falls, and ends with the sigma after the last step.

    A sampler that looks in between two sigmas of the schedule is still in the step that began at the larger one.
    """
    starts = list(schedule)[:-1]
    if not starts:
        return 0, 1
    begun = sum(start >= sigma * (1 - TOLERANCE) for start in starts)
    return max(begun - 1, 0), len(starts)
