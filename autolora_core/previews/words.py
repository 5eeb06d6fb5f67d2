"""A run of previews in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from ..wording import counted, listed, shown
from .run import Outcome
from .settings import Settings

MOST_TOLD, MOST_NAMED = 40, 5


def preview_report(outcome: Outcome, settings: Settings, others: Sequence[str], notes: Sequence[str] = ()) -> str:
    """``others``: names of files of other base models, which were not asked for by name."""
    lines = [_what(outcome, settings), *notes]
    if outcome.rendered:
        lines += ["", "Rendered (how much pictures change, how alike the changes are over the prompts):"]
        told = list(outcome.rendered.items())
        lines += [
            f"- {shown(name)}: strength {found.strength:.3f}, consistency {found.consistency:.2f}"
            for name, found in told[:MOST_TOLD]
        ]
        if len(told) > MOST_TOLD:
            lines.append(f"- and {len(told) - MOST_TOLD} more")
    if outcome.failed:
        lines += ["", "Not rendered:", *(f"- {shown(name)}: {why}" for name, why in outcome.failed.items())]
    if others:
        names = listed(map(shown, others), MOST_NAMED)
        lines += ["", f"Left out, as they are for another base model: {names}."]
    return "\n".join(lines)


def _what(outcome: Outcome, settings: Settings) -> str:
    said = f"{counted(len(outcome.rendered), 'LoRA')} rendered on {counted(len(settings.prompts), 'prompt')}"
    said += f" ({settings.width} × {settings.height}, {counted(settings.steps, 'step')}, seed {settings.seed})"
    said += f", {len(outcome.there)} had been rendered so before."
    if outcome.left:
        said += f" {counted(outcome.left, 'LoRA')} left: queue it again."
    return said
