"""What passed of each LoRA while a model was sampled: one table a step, read afterwards.

Everything stays on the device as running sums of squares, a few numbers a layer, so that watching is cheap and nothing
waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .blocks import block_of, in_order

FORMAT = "autolora-heat/1"
WHOLE, PASSED, BASE = 0, 1, 2


class Recorder:
    """Of one node application: ``names`` of its LoRAs by number, its fused ``modules``.

    ``now`` (modules, loras, 3) holds the sums of squares of this step: what a LoRA put out, what of that was added, and
    the base's output beside it. ``told(step, heat)`` is called whenever a step is done, with the heat of that step
    alone.
    """

    def __init__(self, names: Sequence[str], modules: Sequence[str], told: Callable[[int, Heat], None] | None = None):
        self.names, self.modules, self.told = list(names), list(modules), told
        self.number = {name: row for row, name in enumerate(self.modules)}
        with torch.inference_mode(False):  # it is written wherever the model is run
            self.now = torch.zeros(len(self.modules), len(self.names), 3)
        self.card: dict[str, Any] | None = None  # what the page shows of the application
        self._done: dict[int, Tensor] = {}
        self._step: int | None = None
        self._run: Any = None

    def begin(self, run: Any, step: int, device: torch.device | str) -> None:
        """Before an evaluation: ``run`` is any object that stands for one sampling; a new one forgets the last.

        A sampler may look ahead and come back: what a step did before is added to.
        """
        if run is not self._run or (run is None and self._step is not None and step < self._step):
            self._run, self._done, self._step = run, {}, None
        if step != self._step:
            self._keep()
            self._step = step
            self.now = self.now.to(device)
            self.now.zero_()

    def whole(self, module: str, lora: int, y: Tensor) -> None:
        """A LoRA's output, before schedule, mask, gate and rules."""
        self.now[self.number[module], lora, WHOLE] += _square(y)

    def passed(self, module: str, lora: int, y: Tensor) -> None:
        """What of it is added to the layer."""
        self.now[self.number[module], lora, PASSED] += _square(y)

    def base(self, module: str, y0: Tensor, only: int | None = None) -> None:
        """The layer's own output; ``only``: the one LoRA that is on in this evaluation."""
        lora = slice(None) if only is None else only
        self.now[self.number[module], lora, BASE] += _square(y0)

    def _keep(self) -> None:
        if self._step is not None:
            before = self._done.get(self._step)
            self._done[self._step] = self.now.clone() if before is None else before + self.now
            if self.told is not None:
                self.told(self._step, self._of([self._step]))

    def heat(self) -> Heat:
        """Of the last sampling so far."""
        self._keep()
        self._step = None
        return self._of(sorted(self._done))

    def _of(self, steps: list[int]) -> Heat:
        tables = [self._done[step].cpu().double() for step in steps]  # in this order: Apple's GPUs have no float64
        return Heat(self.names, self.modules, steps, torch.stack(tables) if tables else torch.zeros(0, *self.now.shape))


def _square(y: Tensor) -> Tensor:
    return torch.linalg.vector_norm(y, dtype=torch.float32).square()


@dataclass(frozen=True)
class Heat:
    """``table`` (steps, modules, loras, 3): sums of squares as in :class:`Recorder`."""

    names: list[str]
    modules: list[str]
    steps: list[int]
    table: Tensor

    def beside(self, other: Heat) -> Heat:
        """The LoRAs of two applications to one model, side by side."""
        modules = list(dict.fromkeys([*self.modules, *other.modules]))
        steps = sorted({*self.steps, *other.steps})
        table = torch.zeros(len(steps), len(modules), len(self.names) + len(other.names), 3, dtype=torch.float64)
        for heat, first in ((self, 0), (other, len(self.names))):
            rows = torch.tensor([modules.index(name) for name in heat.modules], dtype=torch.long)
            for place, step in enumerate(heat.steps):
                table[steps.index(step)][rows, first : first + len(heat.names)] = heat.table[place]
        return Heat([*self.names, *other.names], modules, steps, table)

    def passing(self) -> Tensor:
        """(steps, modules, loras): ‖what is added‖ / ‖what the LoRA put out‖, 0 where it was not heard, nan where it
        has nothing to say."""
        return self._ratio(self.table[..., WHOLE])

    def loudness(self) -> Tensor:
        """(steps, modules, loras): ‖what is added‖ / ‖the base's output‖."""
        return self._ratio(self.table[..., BASE])

    def _ratio(self, by: Tensor) -> Tensor:
        passed = self.table[..., PASSED]
        ratio = torch.where(by > 0, passed / by.clamp_min(1e-30), torch.zeros_like(passed)).sqrt()
        silent = self.table[..., WHOLE].sum(0) == 0
        return torch.where(silent, torch.nan, ratio)

    def by_block(self, values: Tensor) -> tuple[list[str], Tensor]:
        """Blocks, and the mean over their modules: (steps, blocks, loras); nan where a LoRA has no layer."""
        blocks = in_order(map(block_of, self.modules))
        rows = [[i for i, name in enumerate(self.modules) if block_of(name) == block] for block in blocks]
        return blocks, torch.stack([values[:, own].nanmean(1) for own in rows], 1)

    def columns(self) -> dict[str, Any]:
        """What passes, in numbers: block × step × LoRA."""
        blocks, passing = self.by_block(self.passing())
        return {"blocks": blocks, "loras": {name: _plain(passing[:, :, k].T) for k, name in enumerate(self.names)}}

    def as_json(self) -> dict[str, Any]:
        """Everything, in numbers: block × step × LoRA, and every module's mean over the steps."""
        blocks, passing = self.by_block(self.passing())
        loudness = self.by_block(self.loudness())[1]
        return {
            "format": FORMAT,
            "steps": [step + 1 for step in self.steps],
            "blocks": blocks,
            "loras": [
                {"name": name, "passes": _plain(passing[:, :, k].T), "loudness": _plain(loudness[:, :, k].T)}
                for k, name in enumerate(self.names)
            ],
            "modules": {
                module: _plain(row) for module, row in zip(self.modules, self.passing().nanmean(0), strict=True)
            },
        }


def _plain(values: Tensor) -> Any:
    """Nested lists rounded to four places, None for nan."""
    if values.ndim:
        return [_plain(row) for row in values]
    return None if torch.isnan(values) else round(float(values), 4)
