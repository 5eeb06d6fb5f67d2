"""How the page on fusion writes numbers and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

NOTHING = "–"
# Kept subjects are a quotient: beyond this the base had none right and it says nothing.
SENSELESS = 100


def share(value: float) -> str:
    return f"{value:.0%}"


def finely(value: float) -> str:
    """For shares that are small."""
    return f"{value:.1%}"


def kept_form(value: float) -> str:
    return f"{value:.2f}" if value < SENSELESS else NOTHING


def points(value: float) -> str:
    """A difference of shares, in points of a hundred."""
    return f"{100 * value:+.1f}"


def digits(many: int, sign: str = "") -> Callable[[float], str]:
    return lambda value: f"{value:{sign}.{many}f}"


COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("subject", "subject", share),
    ("style", "style", share),
    ("hmean", "harmonic mean", share),
    ("worst_retention", "worst retention", digits(2)),
    ("distance", "distance", digits(3)),
    ("unasked_shift", "unasked shift", digits(3)),
    ("unasked_kept", "unasked kept", kept_form),
    ("seconds", "seconds", digits(2)),
    ("memory_mb", "MB", digits(0)),
)
DIFFERENCES = (
    ("joint", "both right", points),
    ("subject", "subject", points),
    ("style", "style", points),
    ("hmean", "harmonic mean", points),
    ("worst_retention", "worst retention", digits(3, "+")),
    ("distance", "distance", digits(3, "+")),
)
REFERENCES = (
    ("real", "the real picture itself"),
    ("base", "the base without any LoRA"),
    ("subject", "the subject's LoRA alone"),
    ("style", "the style's LoRA alone"),
    ("own", "the subject's LoRA alone, asked for the subject in no style"),
)


def span(bounds: tuple[float | None, float | None], form: Callable[[float], str]) -> str:
    return "" if None in bounds else f"[{form(bounds[0])}, {form(bounds[1])}]"


def bounded(row: Mapping[str, Any] | None, form: Callable[[float], str]) -> str:
    """A value with its interval."""
    return f"{form(row['value'])} {span((row['low'], row['high']), form)}".strip() if row else NOTHING


def table(head: tuple[str, ...], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ([*head], ["--"] * len(head), *lines))
