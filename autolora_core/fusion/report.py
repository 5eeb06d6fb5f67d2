"""What was done with every LoRA, in words: the node's report.

A *layer* is always a layer of the base model, however many updates a file has for it: the q, k and v of one fused
projection are one layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..wording import counted, listed
from .requests import Request

SHOWN = 4  # names listed before "and N more"


@dataclass
class LoraOutcome:
    """One LoRA after it was applied: ``matched`` of the file's ``total`` layers of the diffusion model were found.

    ``forwarded``: layer → why it went to ComfyUI's weight patches. ``missing``: layers the model does not have.
    Of the text half: ``clip_layers`` were found, ``encoders`` tells them apart (name → found, layers of the file),
    ``text_missing``: layer → why it is left out; without ``clip_connected`` all of it is.
    """

    name: str
    strength: float
    clip_strength: float
    origin: str = "stack"
    matched: int = 0
    total: int = 0
    clip_layers: int = 0
    clip_connected: bool = True
    encoders: dict[str, tuple[int, int]] = field(default_factory=dict)
    text_missing: dict[str, str] = field(default_factory=dict)
    forwarded: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    outside_gate: str | None = None
    notes: list[str] = field(default_factory=list)

    def lines(self, mode: str) -> list[str]:
        head = f"- {self.name} × {self.strength:g} ({self.origin}): {self.matched} of {counted(self.total, 'layer')}"
        if self.clip_layers:
            head += f"; {counted(self.clip_layers, 'text encoder layer')} × {self.clip_strength:g}"
        out = [head]
        if self.outside_gate and mode != "sum":
            where = "the gate" if mode == "gate" else f"mode {mode}"
            out.append(f"  kept additive, outside {where}: {self.outside_gate}")
        for reason in dict.fromkeys(self.forwarded.values()):
            layers = [layer for layer, why in self.forwarded.items() if why == reason]
            out.append(f"  as weight patches ({reason}): {listed(layers, SHOWN)}")
        if self.missing:
            out.append(f"  not in this model: {listed(self.missing, SHOWN)}")
        out += [f"  {line}" for line in self.text_lines()]
        hidden = len(self.notes) - SHOWN
        out += [f"  {note}" for note in self.notes[:SHOWN]]
        return [*out, f"  and {counted(hidden, 'more note')}"] if hidden > 0 else out

    def text_lines(self) -> list[str]:
        """What became of the text half, encoder by encoder; empty for a LoRA without one."""
        if not self.encoders:
            return []
        if not self.clip_connected:
            left = ", ".join(f"{name} {counted(total, 'layer')}" for name, (_, total) in self.encoders.items())
            return [f"its text half is left out, no CLIP is connected: {left}"] if self.clip_strength else []
        found = (f"{name} {here} of {counted(total, 'layer')}" for name, (here, total) in self.encoders.items())
        lines = [f"text encoders: {', '.join(found)}"]
        for reason in dict.fromkeys(self.text_missing.values()):
            layers = [layer for layer, why in self.text_missing.items() if why == reason]
            lines.append(f"left out of the text encoders ({reason}): {listed(layers, SHOWN)}")
        return lines


def fusion_report(
    mode: str,
    why: str,
    outcomes: Iterable[LoraOutcome],
    gated: int,
    fused: int,
    absent: Iterable[Request] = (),
    warnings: Iterable[str] = (),
    done: Iterable[str] = (),
) -> str:
    """The text of the report. ``gated`` of the ``fused`` layers, those that have a branch beside them, have a gate;
    ``done``: what the mode did, a line each."""
    lines = [f"mode: {mode} ({why})", *(f"warning: {warning}" for warning in warnings)]
    if mode == "gate":
        lines.append(_coverage(gated, fused))
    lines += [f"  {line}" for line in done]
    for outcome in outcomes:
        lines += outcome.lines(mode)
    for request in absent:
        lines += [f"- {request.name}: strength 0, absent", *(f"  {note}" for note in request.notes)]
    if len(lines) == 1:
        lines.append("no LoRA to apply: the model is returned as it came")
    return "\n".join(lines)


def _coverage(gated: int, fused: int) -> str:
    plain = fused - gated
    rest = f"; the other {'is' if plain == 1 else f'{plain} are'} summed" if plain else ""
    return f"gate on {gated} of {counted(fused, 'layer')}{rest}"
