"""What was saved, in words and as the file's own metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...wording import counted, listed
from ..report import LoraOutcome
from ..requests import Request
from .pack import Piece

FORMAT = "autolora-merged/1"
COARSE = 0.01  # a relative rounding error above gets a word of advice


@dataclass
class Tally:
    """Counts the pieces of a file; ``kinds``: low rank, lokr or dense → the parameters stored so."""

    kinds: dict[str, list[str]] = field(default_factory=dict)
    ranks: list[int] = field(default_factory=list)
    size: float = 0.0
    wrong: float = 0.0
    worst: tuple[float, str] = (0.0, "")

    def add(self, name: str, piece: Piece) -> None:
        """``name`` is the parameter's."""
        kind = "low rank" if piece.rank is not None else "dense" if piece.dense else "lokr"
        self.kinds.setdefault(kind, []).append(name.removesuffix(".weight"))
        if piece.rank is not None:
            self.ranks.append(piece.rank)
        self.size += piece.size
        self.wrong += piece.wrong
        self.worst = max(self.worst, (math.sqrt(piece.wrong / piece.size), name))

    @property
    def error(self) -> float:
        """‖stored − exact‖ / ‖exact‖ of the whole update."""
        return math.sqrt(self.wrong / self.size) if self.size else 0.0

    def lines(self, dtype: str) -> list[str]:
        """How the updates are stored and what rounding did to them."""
        out = []
        if self.ranks:
            low, high = min(self.ranks), max(self.ranks)
            span = f"{low}" if low == high else f"{low} to {high}"
            out.append(f"{counted(len(self.ranks), 'layer')} of low rank ({span})")
        if "lokr" in self.kinds:
            out.append(f"{counted(len(self.kinds['lokr']), 'layer')} as LoKr: {listed(self.kinds['lokr'])}")
        if "dense" in self.kinds:
            out.append(f"{counted(len(self.kinds['dense']), 'weight')} stored densely: {listed(self.kinds['dense'])}")
        share, name = self.worst
        out.append(f"rounding to {dtype}: {self.error:.2g} of the update, at most {share:.2g} ({name})")
        if self.error > COARSE:
            out.append("warning: that is much; choose dtype bfloat16 or float32")
        return out


@dataclass(frozen=True)
class Origin:
    """Where a merged file comes from: ``mode`` and ``why``, its ``settings``, ``notes`` and ``warnings``; ``gate`` and
    ``gate_sha256`` when there is one, which holds at ``gated`` of the ``fused`` layers."""

    mode: str
    why: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    gate: str = ""
    gate_sha256: str = ""
    gated: int = 0
    fused: int = 0


def merged_metadata(
    title: str, loras: Sequence[tuple[Request, str]], origin: Origin, triggers: Iterable[str], family: str
) -> dict[str, str]:
    """``loras``: each with the SHA-256 of its file."""
    made = {
        "loras": [
            {"name": request.name, "model": request.model, "clip": request.clip, "asked": request.asked,
             "sha256": sha256}
            for request, sha256 in loras
        ],
        "mode": origin.mode,
        **({"settings": dict(origin.settings)} if origin.settings else {}),
        **({"gate": origin.gate, "gate_sha256": origin.gate_sha256} if origin.gate else {}),
    }  # fmt: skip
    names = ", ".join(f"{request.name} × {request.model:g}" for request, _ in loras)
    found = {
        "format": FORMAT,
        "autolora.family": family,
        "autolora.merged": json.dumps(made, ensure_ascii=False),
        "modelspec.title": title,
        "modelspec.description": f"Merged from {names} (mode {origin.mode}).",
        "modelspec.trigger_phrase": ", ".join(dict.fromkeys(triggers)),
    }
    return {key: value for key, value in found.items() if value}


def merged_report(
    name: str, megabytes: float, dtype: str, origin: Origin, outcomes: Iterable[LoraOutcome], absent: Iterable[Request],
    tally: Tally,
) -> str:  # fmt: skip
    """The node's text: the file, the way, a line a LoRA, how it is stored and how exactly."""
    lines = [f"saved as {name} ({megabytes:.1f} MB, {dtype})", f"mode: {origin.mode} ({origin.why})"]
    lines += [f"warning: {warning}" for warning in origin.warnings]
    if origin.gate:
        lines.append(f"gate on {origin.gated} of {counted(origin.fused, 'layer')}: a factor for each channel, exact")
    lines += [f"  {note}" for note in origin.notes]
    for outcome in outcomes:
        lines += replace(outcome, forwarded={}).lines(origin.mode)
    lines += [f"- {request.name}: strength 0, absent" for request in absent]
    return "\n".join([*lines, *tally.lines(dtype)])
