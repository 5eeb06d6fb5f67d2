"""What was done with every LoRA, in words: the node's report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

SHOWN = 4  # names listed before "and N more"


@dataclass
class LoraOutcome:
    """One LoRA after it was applied: ``matched`` of the file's ``total`` layers of the diffusion model were found.

    ``forwarded``: layer → why it went to ComfyUI's weight patches. ``missing``: layers the model does not have.
    """

    name: str
    strength: float
    clip_strength: float
    origin: str = "stack"
    matched: int = 0
    total: int = 0
    clip_layers: int = 0
    forwarded: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    outside_gate: str | None = None
    notes: list[str] = field(default_factory=list)

    def lines(self, mode: str) -> list[str]:
        head = f"- {self.name} × {self.strength:g} ({self.origin}): {self.matched} of {self.total} layers"
        if self.clip_layers:
            head += f"; {self.clip_layers} text encoder layers × {self.clip_strength:g}"
        out = [head]
        if self.outside_gate and mode == "gate":
            out.append(f"  kept additive, outside the gate: {self.outside_gate}")
        for reason in dict.fromkeys(self.forwarded.values()):
            layers = [layer for layer, why in self.forwarded.items() if why == reason]
            out.append(f"  as weight patches ({reason}): {listed(layers)}")
        if self.missing:
            out.append(f"  not in this model: {listed(self.missing)}")
        hidden = len(self.notes) - SHOWN
        out += [f"  {note}" for note in self.notes[:SHOWN]]
        return [*out, f"  and {hidden} more notes"] if hidden > 0 else out


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def fusion_report(
    mode: str, why: str, outcomes: Iterable[LoraOutcome], gated: int, modules: int, absent: Iterable[str] = ()
) -> str:
    """The text of the report. ``gated`` of ``modules`` changed layers have a gate."""
    lines = [f"mode: {mode} ({why})"]
    if mode == "gate":
        plain = modules - gated
        lines.append(
            f"gate on {gated} of {modules} changed layers" + (f"; the other {plain} are summed" if plain else "")
        )
    for outcome in outcomes:
        lines += outcome.lines(mode)
    lines += [f"- {name}: strength 0, absent" for name in absent]
    if len(lines) == 1:
        lines.append("no LoRA to apply: the model is returned as it came")
    return "\n".join(lines)
