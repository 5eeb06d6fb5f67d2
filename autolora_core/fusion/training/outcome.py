"""What a training came to, in words and as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...portable import file_stem
from ...wording import counted
from ..files import write_gate
from .parameters import GateParameters

STEPS, MOST = 200, 3


@dataclass(frozen=True)
class Options:
    """``steps`` of learning; ``most`` LoRAs at once; ``name`` of the file, empty: after the family."""

    steps: int = STEPS
    most: int = MOST
    name: str = ""


@dataclass(frozen=True)
class Outcome:
    """Losses on draws that nothing was learnt from, of the plain sum and of the gate; ``path`` None: not saved."""

    summed: float
    gated: float
    steps: int
    path: Path | None
    history: Sequence[tuple[int, float]]

    @property
    def pays(self) -> bool:
        return self.gated < self.summed


def gate_path(folder: Path, family: str, name: str) -> Path:
    """Where a gate is saved."""
    stem = file_stem(name.strip().removesuffix(".safetensors") or f"{family}-trained-gate")
    return folder / f"{stem or 'gate'}.safetensors"


def save_gate(
    path: Path, gate: GateParameters, *, family: str, most: int, recipe: str, base_id: str,
    fingerprint: Mapping[str, Sequence[float]],
) -> None:  # fmt: skip
    """A gate file with where it comes from."""
    write_gate(
        path, gate.vectors(), family=family, k_range=(2, most), recipe=recipe, base_fingerprint=fingerprint,
        metadata={"base_id": base_id},
    )  # fmt: skip


def training_report(outcome: Outcome, loras: Sequence[str], pictures: int, notes: Sequence[str]) -> str:
    """The node's report."""
    losses = np.array([loss for _, loss in outcome.history])
    lines = [
        f"{counted(outcome.steps, 'step')} on {counted(len(loras), 'LoRA')} and {counted(pictures, 'picture')}",
        f"loss on draws that nothing was learnt from: plain sum {outcome.summed:.4f}, gate {outcome.gated:.4f}",
    ]
    if len(losses) >= 20:
        tenth = max(len(losses) // 10, 1)
        lines.append(f"loss while learning: {losses[:tenth].mean():.4f} at first, {losses[-tenth:].mean():.4f} at last")
    if outcome.path is not None:
        lines.append(f"saved as {outcome.path.name}: mode auto and gate of the Apply node use it")
    else:
        lines.append("the gate does no better than the plain sum on these LoRAs: nothing was saved")
    return "\n".join([*lines, *notes])
