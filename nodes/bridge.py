"""The one door to ComfyUI for applying LoRAs: give a model and a list, get a model and a report back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..autolora_core.fusion.card import fusion_card
from ..autolora_core.fusion.methods.planner import METHODS, Blend
from ..autolora_core.fusion.plan import UNASKED, Standing, build_plan
from ..autolora_core.fusion.report import fusion_report
from ..autolora_core.fusion.requests import Request
from ..autolora_core.wording import counted
from .bridge_gates import GateChoice, choose_gate
from .bridge_loras import layer_name
from .bridge_methods import Wishes, attach_blend, blend_with
from .bridge_plain import plain_layers
from .bridge_prepare import Prepared, prepare
from .bridge_record import keep_on, watchable
from .bridge_used import note_metadata, note_used, used_by

HARDLY_ASKED = 0.9  # below, the report tells


@dataclass
class Applied:
    """``model`` and ``clip`` are the very objects given when nothing was to be changed; ``card``: the report's facts as
    JSON (:func:`fusion_card`)."""

    model: Any
    clip: Any
    report: str
    card: dict[str, Any] = field(default_factory=dict)


def apply_loras(model: Any, clip: Any, requests: Iterable[Request], wishes: Wishes) -> Applied:
    """Fuse LoRAs into clones of ``model`` (MODEL) and ``clip`` (CLIP or None).

    ``wishes.mode``: auto, gate, sum or one of ``METHODS``; ``wishes.gate``: auto or the name of a gate file. Raises
    ``SelectionError`` for a missing file or CLIP, ``NothingMatchesError`` and ``FamilyError`` for a LoRA of another
    base, ``GateError`` for a wrong gate.
    """
    ready = prepare(model, clip, requests, wishes.terms)
    new_clip = _apply_clip(clip, ready)
    chosen, made = fuse_prepared(model, clip, ready, wishes)
    new_model = _apply_model(model, ready, made, wishes)
    plan = made.plan
    told = (plan.gated_modules, len(plan.modules), ready.absent, chosen.warnings, made.notes)
    text = fusion_report(plan.mode, chosen.why, ready.outcomes, *told)
    pairs = [(outcome, lora.request) for outcome, lora in zip(ready.outcomes, ready.loras, strict=True)]
    card = fusion_card(plan.mode, chosen.why, pairs, *told, recorded=wishes.record and watchable(made))
    if card["recorded"]:
        keep_on(new_model, card)
    used = used_by(ready, chosen, made, wishes, text)
    for patcher in [*([] if new_model is model else [new_model]), *([] if new_clip is clip else [new_clip.patcher])]:
        note_used(patcher, used)
        note_metadata(patcher, ready.loras)
    return Applied(new_model, new_clip, text, card)


def fuse_prepared(model: Any, clip: Any, ready: Prepared, wishes: Wishes) -> tuple[GateChoice, Blend]:
    """Which way is taken, and what every layer is to do; nothing is changed but notes of ``ready.outcomes``."""
    inside, outcomes, loras = ready.members(wishes.mode), ready.outcomes, ready.loras
    outside = [index for index in ready.live if outcomes[index].outside_gate]
    for index in sorted({*ready.inside} - {*inside}):
        outcomes[index].notes.append(f"kept beside mode {wishes.mode}, which knows neither time nor place")
    branches, channels = ready.branches, ready.channels
    if wishes.mode in METHODS:
        if len(inside) > 1:
            members = {index: loras[index] for index in inside}
            return GateChoice(None, "asked for"), blend_with(model, clip, wishes, members, branches, channels)
        why = f"{counted(len(inside), 'LoRA')} to fuse: mode {wishes.mode} needs two"
        return GateChoice(None, why), Blend(build_plan(branches, channels))
    chosen = GateChoice(None, "no LoRA for a gate")
    if inside:
        wanted = [index for index in inside if loras[index].request.asked >= UNASKED]
        with plain_layers(model):
            chosen = choose_gate(wishes.gate, wishes.mode, model, ready.family.name, len(wanted))
    gates, known = chosen.gate and chosen.gate.modules, None
    if wishes.mode != "sum" and len(inside) > 1:
        known = {index: Standing(loras[index].request.role, loras[index].request.asked) for index in inside}
        for index in inside:
            if loras[index].request.asked < HARDLY_ASKED:
                outcomes[index].notes.append(f"the prompt hardly asks for it: × {loras[index].request.asked:.2f}")
    return chosen, Blend(build_plan(branches, channels, gates, outside, standings=known))


def _apply_clip(clip: Any, ready: Prepared) -> Any:
    new = clip
    for lora, patches in zip(ready.loras, ready.clip_patches, strict=True):
        if patches and lora.request.clip:
            new = clip.clone() if new is clip else new
            new.add_patches(patches, lora.request.clip)
    return new


def _apply_model(model: Any, ready: Prepared, made: Blend, wishes: Wishes) -> Any:
    """The model itself when there is nothing to do: strength 0 is exactly absent."""
    forwarded = _forwarded(ready)
    if not forwarded and not made.plan.modules and not made.dense:
        return model
    new = model.clone()
    with plain_layers(new):
        for patches, strength in forwarded:
            new.add_patches(patches, strength)
        names = [lora.name for lora in ready.loras] if wishes.record else None
        as_stored = made.plan.mode in ("gate", "sum")
        stamps = {number: lora.stamp for number, lora in enumerate(ready.loras) if as_stored and lora.stamp}
        attach_blend(new, made, ready.terms, names, wishes.node, stamps)
    return new


def _forwarded(ready: Prepared) -> list[tuple[dict[Any, Any], float]]:
    """ComfyUI patches with their strengths."""
    found = []
    for index in ready.live:
        by_factor: dict[float, dict[Any, Any]] = {}
        for target, patch in ready.halves[index].forwarded.items():
            by_factor.setdefault(ready.factor(index, layer_name(target)), {})[target] = patch
        strength = ready.loras[index].request.model
        found += [(patches, strength * factor) for factor, patches in by_factor.items() if factor]
    return found
