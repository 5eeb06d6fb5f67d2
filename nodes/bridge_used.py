"""What Apply did, noted on the MODEL and CLIP it gives, and read again where the picture is saved."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ..autolora_core.fusion.methods.planner import METHODS, Blend
from ..autolora_core.fusion.report import LoraOutcome
from ..autolora_core.image_info.used import Used, UsedLora, unique
from ..autolora_core.library.hashes import stamp
from ..autolora_core.library.metadata import autov3
from .bridge_gates import GateChoice
from .bridge_loras import LoadedLora, told_name
from .bridge_methods import Wishes
from .bridge_prepare import Prepared

KEY = "autolora_used"
METADATA = "lora_metadata"  # as newer ComfyUI calls it; at 0.3.75 nobody reads it


def used_by(ready: Prepared, chosen: GateChoice, made: Blend, wishes: Wishes, report: str) -> Used:
    """One Apply node as a note."""
    mode, gate = made.plan.mode, chosen.gate.path if chosen.gate is not None and made.plan.gated_modules else ""
    return Used(
        mode,
        chosen.why,
        ready.family.name,
        tuple(_used_lora(lora, outcome) for lora, outcome in zip(ready.loras, ready.outcomes, strict=True)),
        os.path.basename(gate),
        gate,
        asdict(wishes.settings) if mode in METHODS else {},
        wishes.prompt,
        report,
    )


def _used_lora(lora: LoadedLora, outcome: LoraOutcome) -> UsedLora:
    request, path = lora.request, lora.file.path
    return UsedLora(
        told_name(path),
        request.model,
        request.clip,
        request.origin,
        path,
        stamp(path)[1:],
        request.role,
        request.triggers,
        outcome.matched,
        outcome.clip_layers,
        outcome.outside_gate,
        autov3(lora.file.metadata),
    )


def note_used(patcher: Any, used: Used) -> None:
    """Note it on a patcher (a clone of ours), behind what Apply nodes before noted."""
    patcher.set_attachments(KEY, (*(patcher.get_attachment(KEY) or ()), used))


def note_metadata(patcher: Any, loras: Iterable[LoadedLora]) -> None:
    """Note the header's metadata of the last LoRA that has any, as newer ComfyUI's own loader does: its IC-LoRA nodes
    read from a MODEL how the file wants its guides."""
    found = [lora.file.metadata for lora in loras if lora.file.metadata]
    if found:
        patcher.set_attachments(METADATA, dict(found[-1]))


def used_of(patchers: Iterable[Any]) -> list[Used]:
    """The notes on ModelPatchers, first applied first; patchers of other packs may know no attachments."""
    knowing = [patcher for patcher in patchers if callable(getattr(patcher, "get_attachment", None))]
    return unique(note for patcher in knowing for note in patcher.get_attachment(KEY) or ())
