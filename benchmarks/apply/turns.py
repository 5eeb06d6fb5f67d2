"""Timing several ways of the same thing in one process: in turns, so that whatever the machine does meets all alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

THREADS = 2


def threads() -> int:
    """Set PyTorch's threads: ``OMP_NUM_THREADS`` where it is set, else two; the number."""
    count = int(os.environ.get("OMP_NUM_THREADS", THREADS))
    torch.set_num_threads(count)
    return count


def in_turns(
    ways: Mapping[str, Callable[[], object]], turns: int, before: Callable[[str], object] | None = None
) -> dict[str, float]:
    """Median seconds of each way; a first turn is not counted, nor is what runs ``before`` a way, given its name."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            if before:
                before(name)
            began = time.perf_counter()
            way()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in taken.items()}
