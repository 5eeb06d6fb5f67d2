"""What passed of each LoRA while a model was sampled: one table a step, read afterwards.

Everything stays on the device as running sums of squares, a few numbers a layer, so that watching is cheap and nothing
waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .blocks import block_of, in_order

FORMAT = "autolora-heat/1"
WHOLE, PASSED = 0, 1


class Recorder:
    """Of one node application: ``names`` of its LoRAs by number, its fused ``modules``.

    ``now`` (modules, loras + 1, 2) holds the sums of squares of this step: what a LoRA put out, and what of that was
    added; the last row is the base's output.
    """

    def __init__(self, names: Sequence[str], modules: Sequence[str]):
        self.names, self.modules = list(names), list(modules)
        self.number = {name: row for row, name in enumerate(self.modules)}
        self.now = torch.zeros(len(self.modules), len(self.names) + 1, 2)
        self._done: list[tuple[int, Tensor]] = []
        self._step: int | None = None
        self._run: Any = None

    def begin(self, run: Any, step: int, device: torch.device | str) -> None:
        """Before an evaluation: ``run`` is any object that stands for one sampling; a new one forgets the last."""
        if run is not self._run or (self._step is not None and step < self._step):
            self._run, self._done, self._step = run, [], None
        if step != self._step:
            self._finish()
            self._step = step
            self.now = self.now.to(device)
            self.now.zero_()

    def whole(self, module: str, lora: int, y: Tensor) -> None:
        """A LoRA's output, before schedule, mask, gate and rules."""
        self.now[self.number[module], lora, WHOLE] += _square(y)

    def passed(self, module: str, lora: int, y: Tensor) -> None:
        """What of it is added to the layer."""
        self.now[self.number[module], lora, PASSED] += _square(y)

    def base(self, module: str, y0: Tensor) -> None:
        self.now[self.number[module], -1, WHOLE] += _square(y0)

    def _finish(self) -> None:
        if self._step is not None:
            self._done.append((self._step, self.now.clone()))

    def heat(self) -> Heat:
        """Of the last sampling so far."""
        steps = [*self._done, *([] if self._step is None else [(self._step, self.now)])]
        table = torch.stack([one.double().cpu() for _, one in steps]) if steps else torch.zeros(0, *self.now.shape)
        return Heat(self.names, self.modules, [step for step, _ in steps], table)


def _square(y: Tensor) -> Tensor:
    return torch.linalg.vector_norm(y, dtype=torch.float32).square()


@dataclass(frozen=True)
class Heat:
    """``table`` (steps, modules, loras + 1, 2): sums of squares as in :class:`Recorder`."""

    names: list[str]
    modules: list[str]
    steps: list[int]
    table: Tensor

    def passing(self) -> Tensor:
        """(steps, modules, loras): ‖what is added‖ / ‖what the LoRA put out‖, 0 where it was not heard, nan where it
        has nothing to say."""
        return self._ratio(self.table[:, :, :-1, WHOLE])

    def loudness(self) -> Tensor:
        """(steps, modules, loras): ‖what is added‖ / ‖the base's output‖."""
        return self._ratio(self.table[:, :, -1:, WHOLE])

    def _ratio(self, by: Tensor) -> Tensor:
        passed = self.table[:, :, :-1, PASSED]
        ratio = torch.where(by > 0, passed / by.clamp_min(1e-30), torch.zeros_like(passed)).sqrt()
        silent = self.table[:, :, :-1, WHOLE].sum(0) == 0
        return torch.where(silent, torch.nan, ratio)

    def by_block(self, values: Tensor) -> tuple[list[str], Tensor]:
        """Blocks, and the mean over their modules: (steps, blocks, loras); nan where a LoRA has no layer."""
        blocks = in_order(map(block_of, self.modules))
        rows = [[i for i, name in enumerate(self.modules) if block_of(name) == block] for block in blocks]
        return blocks, torch.stack([values[:, own].nanmean(1) for own in rows], 1)

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
