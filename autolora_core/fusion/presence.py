"""How present a LoRA is while the model runs: its schedule and its mask, at the moment of sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .area import Area, Layout
from .terms import Schedule, Term


class Presence:
    """One LoRA's, shared by all layers of a node application; :meth:`go` before every evaluation of the model.

    ``loud`` is a tensor without axes that is written in place: a compiled layer that reads it is compiled once.
    """

    def __init__(self, term: Term):
        self.schedule: Schedule | None = term.schedule
        self.mask: Tensor | None = term.mask
        with torch.inference_mode(False):  # it is written wherever the model is run
            self.loud = torch.ones(())
        self.area: Area | None = None
        self._seen: tuple | None = None

    def go(self, progress: float, size: Sequence[int] | None, layout: Layout, device: torch.device | str) -> None:
        """``size`` (frames…, h, w) of the latent, None where it is only a part of it; ``device`` where it is."""
        if self.schedule is not None:
            self.loud.fill_(self.schedule.at(progress))
        if self.mask is None:
            return
        now = (size and tuple(size), str(device))
        if now != self._seen:
            self.area, self._seen = Area(self.mask, size, layout, device), now
        self.area.layout = layout  # prompts differ in length, the picture does not

    def of(self, y: Tensor, module: str, dim: int) -> Tensor:
        """What stays of ``y``, this LoRA's output at ``module`` with its channels at ``dim``; ``y``'s dtype."""
        if self.schedule is not None:
            y = y * self.loud.to(y.dtype)
        if self.area is not None:
            y = y * self.area.over(y, module, dim).to(y.dtype)
        return y
