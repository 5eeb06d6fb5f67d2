"""The one door to ComfyUI for applying LoRAs: give a model and a list, get a model and a report back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import comfy.lora

from ..autolora_core.fusion.kinds import few_step_reason
from ..autolora_core.fusion.methods.planner import METHODS, Blend
from ..autolora_core.fusion.plan import UNASKED, Standing, build_plan
from ..autolora_core.fusion.report import LoraOutcome, fusion_report
from ..autolora_core.fusion.requests import Request, merge_same_files
from ..autolora_core.lora.families import Family
from ..autolora_core.wording import counted
from . import bridge_loras
from .bridge_gates import GateChoice, choose_gate
from .bridge_loras import LoadedLora, ModelHalf
from .bridge_methods import Wishes, attach_blend, blend_with
from .bridge_paths import model_family, throw_if_interrupted

HARDLY_ASKED = 0.9  # below, the report tells


@dataclass
class Applied:
    """``model`` and ``clip`` are the very objects given when nothing was to be changed."""

    model: Any
    clip: Any
    report: str


def apply_loras(model: Any, clip: Any, requests: Iterable[Request], wishes: Wishes) -> Applied:
    """Fuse LoRAs into clones of ``model`` (MODEL) and ``clip`` (CLIP or None).

    ``wishes.mode``: auto, gate, sum or one of ``METHODS``; ``wishes.gate``: auto or the name of a gate file. Raises
    ``SelectionError`` for a missing file or CLIP, ``NothingMatchesError`` and ``FamilyError`` for a LoRA of another
    base, ``GateError`` for a wrong gate.
    """
    merged = merge_same_files((bridge_loras.resolve(request), request) for request in requests)
    absent = [request for _, request in merged if request.absent]
    loras = [_load(path, request) for path, request in merged if not request.absent]
    family = model_family(model)
    outcomes = [_outcome(lora) for lora in loras]
    new_clip = _apply_clip(clip, loras, outcomes)
    halves = _model_halves(model, loras, outcomes)
    for lora, half, outcome in zip(loras, halves, outcomes, strict=True):
        bridge_loras.require_match(lora, half, outcome.clip_layers, clip, family)
    chosen, made = _blend(model, clip, family, loras, halves, outcomes, wishes)
    new_model = _apply_model(model, loras, halves, made)
    plan = made.plan
    text = fusion_report(
        plan.mode, chosen.why, outcomes, plan.gated_modules, len(plan.modules), absent, chosen.warnings, made.notes
    )
    return Applied(new_model, new_clip, text)


def _load(path: str, request: Request) -> LoadedLora:
    throw_if_interrupted()
    return bridge_loras.load(path, request)


def _outcome(lora: LoadedLora) -> LoraOutcome:
    request, file = lora.request, lora.file
    outcome = LoraOutcome(request.name, request.model, request.clip, request.origin)
    outcome.total = len({entry.base_module for entry in file.modules.values() if entry.half == "model"})
    outcome.outside_gate = few_step_reason(request.name, file.metadata)
    partial = [f"partial file: {file.partial}"] if file.partial else []
    outcome.notes = [*request.notes, *partial, *file.problems]
    if file.kind == "all_zero":
        outcome.notes.append("every update in the file is zero: it changes nothing")
    return outcome


def _model_halves(model: Any, loras: list[LoadedLora], outcomes: list[LoraOutcome]) -> list[ModelHalf]:
    """Also counts, per LoRA, what matched. A fresh dict: ComfyUI's default argument is shared and grows."""
    key_map = comfy.lora.model_lora_keys_unet(model.model, {}) if loras else {}
    halves = []
    for index, (lora, outcome) in enumerate(zip(loras, outcomes, strict=True)):
        throw_if_interrupted()
        half = bridge_loras.model_half(lora, model, key_map, index)
        outcome.matched, outcome.missing = len(half.matched), half.missing
        outcome.total = max(outcome.total, outcome.matched)
        if half.zero:
            outcome.notes.append(f"the update is zero in {counted(len(half.zero), 'layer')}")
        outcome.forwarded = half.reasons if lora.request.model else {}
        halves.append(half)
    return halves


def _apply_clip(clip: Any, loras: list[LoadedLora], outcomes: list[LoraOutcome]) -> Any:
    if clip is None:
        return None
    key_map, new = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}) if loras else {}, clip
    for lora, outcome in zip(loras, outcomes, strict=True):
        patches = bridge_loras.clip_half(lora, key_map)
        outcome.clip_layers = bridge_loras.count_layers(patches)
        if patches and lora.request.clip:
            new = clip.clone() if new is clip else new
            new.add_patches(patches, lora.request.clip)
    return new


def _blend(
    model: Any,
    clip: Any,
    family: Family,
    loras: list[LoadedLora],
    halves: list[ModelHalf],
    outcomes: list[LoraOutcome],
    wishes: Wishes,
) -> tuple[GateChoice, Blend]:
    live = [index for index, lora in enumerate(loras) if lora.request.model]
    outside = [index for index in live if outcomes[index].outside_gate]
    inside = [index for index in live if halves[index].branches and index not in outside]
    branches = [branch for index in live for branch in halves[index].branches]
    channels = {name: width for half in halves for name, width in half.channels.items()}
    if wishes.mode in METHODS:
        if len(inside) > 1:
            members = {index: loras[index] for index in inside}
            return GateChoice(None, "asked for"), blend_with(model, clip, wishes, members, branches, channels)
        why = f"{counted(len(inside), 'LoRA')} to fuse: mode {wishes.mode} needs two"
        return GateChoice(None, why), Blend(build_plan(branches, channels))
    chosen = GateChoice(None, "no LoRA for a gate")
    if inside:
        wanted = [index for index in inside if loras[index].request.asked >= UNASKED]
        chosen = choose_gate(wishes.gate, wishes.mode, model, family.name, len(wanted))
    gates, known = chosen.gate and chosen.gate.modules, None
    if wishes.mode != "sum" and len(inside) > 1:
        known = {index: Standing(loras[index].request.role, loras[index].request.asked) for index in inside}
        for index in inside:
            if loras[index].request.asked < HARDLY_ASKED:
                outcomes[index].notes.append(f"the prompt hardly asks for it: × {loras[index].request.asked:.2f}")
    return chosen, Blend(build_plan(branches, channels, gates, outside, standings=known))


def _apply_model(model: Any, loras: list[LoadedLora], halves: list[ModelHalf], made: Blend) -> Any:
    """The model itself when there is nothing to do: strength 0 is exactly absent."""
    forwarded = [
        (half.forwarded, lora.request.model)
        for lora, half in zip(loras, halves, strict=True)
        if half.forwarded and lora.request.model
    ]
    if not forwarded and not made.plan.modules and not made.dense:
        return model
    new = model.clone()
    for patches, strength in forwarded:
        new.add_patches(patches, strength)
    attach_blend(new, made)
    return new
