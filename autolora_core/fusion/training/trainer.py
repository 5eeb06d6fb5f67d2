"""How a gate is trained on a user's base: losses, memory, interruption, resuming, and whether it paid.

The model may be huge, so never more than one evaluation's graph is kept: all errors of a step are measured first,
without gradients, the loss says how much each of them counts, and then each is evaluated once more and goes backward.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...portable import load_whole
from ..files import replace_file
from .examples import VALIDATION, Draw, Example, draw
from .parameters import GateParameters

log = logging.getLogger(__name__)
RATE, WARM, LEAST = 3e-3, 10, 0.05
FLOW, UNTOLD = 0.3, 0.15  # weight of the plain error; how often that is of the empty text
# Of the difference between two errors, relative to their size: where a picture counts as well told apart.
SHARPNESS = 0.3
SAVE_EVERY, MEASURED = 10, 12
SCALE = 1024.0  # of what goes backward: half-precision models lose small gradients


class Studio(Protocol):
    """A base model with LoRAs and the gate in it."""

    def error(self, draw: Draw, picture: int, text: int | None, gate: GateParameters | None, grad: bool) -> Tensor:
        """Mean squared error of the model's prediction (velocity or noise) for a picture, at the draw's time and
        noise, under a text or the empty one, with the draw's LoRAs through ``gate`` (None: summed)."""
        ...


@dataclass
class Training:
    """State of one training; ``history``: (step, loss) of every step."""

    gate: GateParameters
    examples: Sequence[Example]
    loras: int
    most: int
    folder: Path | None = None
    step: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(self.gate.groups(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)

    def run(self, studio: Studio, until: int, steps: int, tick: Callable[[int, int], None]) -> None:
        """Go on to step ``until`` of the ``steps`` that the rate is planned for. ``tick`` may raise to interrupt; what
        was learnt by then is kept."""
        try:
            while self.step < until:
                tick(self.step, steps)
                self._one(studio, self.step + 1, steps)
                self.step += 1
                if self.step % SAVE_EVERY == 0:
                    self.save()
        finally:
            self.save()

    def _one(self, studio: Studio, number: int, steps: int) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = group["times"] * RATE * min(1, number / WARM) * max(LEAST, 1 - number / (steps + 1))
        self.optimiser.zero_grad()
        loss = backward(studio, draw(self.examples, self.loras, self.most, number), self.gate)
        grads = [p.grad for p in self.gate.parameters() if p.grad is not None]
        if all(torch.isfinite(grad).all() for grad in grads):
            for grad in grads:
                grad /= SCALE
            self.optimiser.step()
        self.history.append((number, loss))

    def measure(self, studio: Studio, gate: GateParameters | None) -> float:
        """The loss on draws that nothing was learnt from; ``gate`` None is the plain sum."""
        draws = [draw(self.examples, self.loras, self.most, VALIDATION + i) for i in range(MEASURED)]
        return float(np.mean([_weigh(_errors(studio, one, gate), False)[0] for one in draws]))

    # On disk

    def save(self) -> None:
        if self.folder is None:
            return
        tensors = {f"gate.{name}": value.detach().cpu().contiguous() for name, value in self.gate.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": torch.as_tensor(v).cpu().contiguous() for name, v in state.items()}
        about = {"step": str(self.step), "history": json.dumps(self.history)}
        replace_file(self.folder / "state.safetensors", tensors, about)

    def resume(self) -> bool:
        """Go on from what is on disk, if it fits."""
        path = self.folder / "state.safetensors" if self.folder else None
        if path is None or not path.exists():
            return False
        try:
            tensors, about = load_whole(path)
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be used (%s); training from the beginning", path, error)
            return False
        self.gate.load_state_dict({n[5:]: v for n, v in tensors.items() if n.startswith("gate.")})
        whole = self.optimiser.state_dict()
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, number, what = name.split(".", 2)
                whole["state"].setdefault(int(number), {})[what] = value
        self.optimiser.load_state_dict(whole)
        self.step, self.history = int(about["step"]), [tuple(one) for one in json.loads(about["history"])]
        return True


def _errors(studio: Studio, one: Draw, gate: GateParameters | None) -> list[tuple[int, int | None, float]]:
    """(picture, text, error): the picture under its text and without, and the other one likewise."""
    pictures = [one.example.picture] + ([one.other.picture] if one.other else [])
    asks = [(picture, text) for picture in pictures for text in (one.example.text, None)]
    return [(p, t, float(studio.error(one, p, t, gate, False))) for p, t in asks]


def _weigh(errors: Sequence[tuple[int, int | None, float]], untold: bool) -> tuple[float, list[float]]:
    """Loss and its derivative by each error that goes backward (those without text do not, but for ``untold``).

    By Bayes' rule p(text | picture) falls from the error without text to that with it; guided sampling sharpens just
    that. The picture's own must be above the other one's.
    """
    values = [value for _, _, value in errors]
    weights = [0.0] * len(values)
    plain = 1 if untold else 0
    loss = FLOW * values[plain]
    weights[plain] += FLOW
    if len(values) == 4:
        scale = SHARPNESS * max((values[1] + values[3]) / 2, 1e-8)
        gap = ((values[3] - values[2]) - (values[1] - values[0])) / scale
        loss += math.log1p(math.exp(-abs(gap))) + max(gap, 0.0)
        slope = 1 / (1 + math.exp(-gap)) if gap > -60 else 0.0
        weights[0] += slope / scale
        weights[2] -= slope / scale
    return loss, weights


def backward(studio: Studio, one: Draw, gate: GateParameters) -> float:
    """Adds the gradient of one draw's loss, times :data:`SCALE`, to the gate's parameters; the loss."""
    errors = _errors(studio, one, gate)
    loss, weights = _weigh(errors, one.seed % 1000 < 1000 * UNTOLD)
    for (picture, text, _), weight in zip(errors, weights, strict=True):
        if weight:
            (SCALE * weight * studio.error(one, picture, text, gate, True)).backward()
    return loss
