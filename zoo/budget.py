"""How long to train: by the clock, or by steps: then a run can be repeated, the same data at the same rates, and its
weights are the same up to rounding.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Training time over all runs, and number of updates; what is spent first ends the training."""

    minutes: float = math.inf
    steps: float = math.inf

    def progress(self, seconds: float, steps: float) -> float:
        """How much is spent, 0 to 1 and above. Learning rates fall along this."""
        return max(seconds / (60 * self.minutes), steps / self.steps)

    def spent(self, seconds: float, steps: float) -> bool:
        return self.progress(seconds, steps) >= 1


def positive(text: str) -> float:
    """An argparse type: a number above zero."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def positive_int(text: str) -> int:
    """An argparse type: a whole number above zero."""
    return int(positive(str(int(text))))


def add_options(parser: argparse.ArgumentParser, default: float, prefix: str = "--") -> None:
    """``<prefix>minutes`` and ``<prefix>steps``."""
    parser.add_argument(
        f"{prefix}minutes", type=positive, help=f"training time over all runs (default {default:g}; with steps: none)"
    )
    parser.add_argument(f"{prefix}steps", type=positive, help="updates over all runs; repeatable")


def chosen(minutes: float | None, steps: float | None, default: float) -> Budget:
    """The budget of those two options; `default` minutes when neither is given."""
    if minutes is None:
        minutes = math.inf if steps else default
    return Budget(minutes, steps or math.inf)
