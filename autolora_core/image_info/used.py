"""What an Apply node did, as a note on the MODEL it gave: read when the picture is saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT = "autolora-image/1"


@dataclass(frozen=True)
class UsedLora:
    """One LoRA that was applied. ``name`` is that of the loras list, or without folders where the list has none;
    ``path`` and ``stamp`` (time of change, size) tell the file and never leave this machine.

    ``autov3`` is what the file's header says, "" where it says nothing. ``layers`` and ``clip_layers`` count
    what was changed, ``outside`` is why it was kept beside the gate or mode.
    """

    name: str
    strength: float
    clip_strength: float
    origin: str = "stack"
    path: str = ""
    stamp: tuple[int, int] = (0, 0)
    role: str | None = None
    triggers: tuple[str, ...] = ()
    layers: int = 0
    clip_layers: int = 0
    outside: str | None = None
    autov3: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data without paths; what there is nothing to say of is left out."""
        shown = {
            "name": self.name.replace("\\", "/"),
            "strength": self.strength,
            "clip_strength": self.clip_strength,
            "origin": self.origin,
            "layers": self.layers,
            "clip_layers": self.clip_layers,
        }
        more = {"role": self.role, "triggers": list(self.triggers), "kept_additive": self.outside}
        return shown | {key: value for key, value in more.items() if value}


@dataclass(frozen=True)
class Used:
    """One Apply node: ``mode`` and ``why`` it was taken, the ``gate`` file's name, ``settings`` of the mode, the
    ``family`` of the base, the selection's ``prompt`` and the node's ``report``."""

    mode: str
    why: str
    family: str
    loras: tuple[UsedLora, ...]
    gate: str = ""
    gate_path: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    report: str = ""

    def to_json(self) -> dict[str, Any]:
        told = {"mode": self.mode, "why": self.why, "family": self.family}
        more = {"gate": self.gate, "settings": dict(self.settings), "prompt": self.prompt}
        return told | {key: value for key, value in more.items() if value} | {"report": self.report}


def unique(notes: Iterable[Used]) -> list[Used]:
    """Each note once: MODEL and CLIP of one Apply node carry the same object. Two nodes may well say the same."""
    return list({id(note): note for note in notes}.values())
