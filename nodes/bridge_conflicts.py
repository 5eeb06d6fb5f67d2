"""LoRAs and a MODEL of ComfyUI → the conflict report; nothing is applied, the model is not run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ..autolora_core.errors import SelectionError
from ..autolora_core.fusion import conflict_modes as modes
from ..autolora_core.fusion.conflict_picture import draw
from ..autolora_core.fusion.conflict_words import Facts, Lora, report_data, report_text
from ..autolora_core.fusion.conflicts import measure
from ..autolora_core.fusion.methods.planner import METHODS, Blend
from ..autolora_core.fusion.methods.roles import STYLE, assign_roles
from ..autolora_core.fusion.plan import UNASKED
from ..autolora_core.fusion.requests import Request
from .bridge import fuse_prepared
from .bridge_features import unpatched
from .bridge_loras import PREFIX
from .bridge_methods import Wishes
from .bridge_paths import throw_if_interrupted
from .bridge_prepare import Prepared, prepare

# Methods that look at every number of every layer: their report looks at some layers of a large model.
COUNTING = ("ties", "dare", "magnitude", "klora", "np")
READABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Report:
    """``text``; ``picture`` (1, H, W, 3) float32 in [0, 1]; ``data``: JSON."""

    text: str
    picture: Tensor
    data: str


def conflict_report(model: Any, clip: Any, requests: Iterable[Request], wishes: Wishes) -> Report:
    """Who overlaps whom, where, and what ``wishes`` would do. Raises what ``apply_loras`` would raise for these LoRAs
    and this gate, and ``SelectionError`` when there is no LoRA at all."""
    ready = prepare(model, clip, requests, wishes.terms)
    if not ready.loras:
        what = "every LoRA has strength 0" if ready.absent else "there is no LoRA to report on"
        raise SelectionError(what, key="lora_stack", fix="connect a selection or a LORA_STACK that names LoRAs")
    layers = measure(ready.branches, ready.channels, lambda name: base_energy(model, name), _tick)
    facts = Facts([], layers, wishes.mode)
    _tell_mode(facts, model, clip, ready, wishes)
    facts.loras = [_lora(ready, number) for number in range(len(ready.loras))]
    picture = torch.from_numpy(draw(facts)).unsqueeze(0)
    return Report(report_text(facts), picture, json.dumps(report_data(facts), ensure_ascii=False))


def _tick(module: str) -> None:
    throw_if_interrupted()


def base_energy(model: Any, module: str) -> float | None:
    """Squared norm of a layer's weight as the checkpoint has it; None where it is packed, quantised or not there."""
    key = f"{PREFIX}{module}.weight"
    weight = unpatched(model, key, comfy.utils.get_attr(model.model, key))
    # Packed formats (GGUF, ComfyUI's own) come as subclasses of Tensor that may claim a dtype they do not store.
    if not isinstance(weight, Tensor) or type(weight.data) is not Tensor or weight.is_meta:
        return None
    if weight.dtype not in READABLE:
        return None
    return float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32)) ** 2


def _tell_mode(facts: Facts, model: Any, clip: Any, ready: Prepared, wishes: Wishes) -> None:
    """Fill in what the mode will do. Mode ssr is told in words: to know more, the model would have to run."""
    inside = ready.members(wishes.mode)
    if wishes.mode == "ssr" and len(inside) > 1:
        facts.became, facts.why = "ssr", "asked for"
        facts.numbers = {"loras": len(inside), "clip": clip is not None}
        return
    looked = _looked_at(ready, inside, wishes.mode)
    chosen, made = fuse_prepared(model, clip, looked, wishes)
    facts.became, facts.why, facts.warnings, facts.notes = made.plan.mode, chosen.why, chosen.warnings, made.notes
    if looked is not ready and facts.became == wishes.mode:
        facts.sampled = (len({one.module for one in looked.branches}), len(facts.layers))
    facts.numbers = _numbers(facts, ready, looked, made, wishes)


def _looked_at(ready: Prepared, inside: Sequence[int], mode: str) -> Prepared:
    """``ready`` itself, or with fewer layers where the mode would count for long."""
    if mode not in COUNTING or len(inside) < 2:
        return ready
    own = [branch for number in inside for branch in ready.halves[number].branches]
    kept = modes.sample(own, ready.channels)
    if len(kept) == len({branch.module for branch in own}):
        return ready
    halves = [replace(half, branches=[one for one in half.branches if one.module in kept]) for half in ready.halves]
    return replace(ready, halves=halves)


def _numbers(facts: Facts, ready: Prepared, looked: Prepared, made: Blend, wishes: Wishes) -> dict[str, Any]:
    mode, inside = facts.became, ready.members(wishes.mode)
    if mode == "gate":
        roles = {number: ready.loras[number].request.role for number in inside}
        asked = _asked(ready, wishes)
        return {**modes.gate_numbers(made.plan, _tick), "roles": roles, "asked": asked}
    if mode in ("ties", "dare", "magnitude"):
        return modes.dense_numbers(made.dense, _tick)
    if mode == "klora":
        return modes.klora_numbers(made.plan, inside)
    if mode == "np":
        own = [branch for number in inside for branch in looked.halves[number].branches]
        return modes.np_numbers(made.plan, own, ready.channels, _subjects(ready, inside, wishes), _tick)
    if mode == "energy":
        return modes.energy_numbers(facts.layers, inside)
    if mode == "switch":
        return {"order": list(made.turns.order), "interval": made.turns.interval}
    if mode == "composite":
        return {"order": list(made.order), "passes": len(made.order)}
    asked = _asked(ready, wishes)
    return {**modes.sum_numbers(facts.layers, ready.live, asked), "loras": ready.live, "asked": asked}


def _asked(ready: Prepared, wishes: Wishes) -> dict[int, float]:
    """Those that a gate or mode auto makes quieter, because the prompt hardly asks for them: LoRA → its share."""
    if wishes.mode == "sum" or wishes.mode in METHODS or len(ready.inside) < 2:
        return {}
    shares = {number: ready.loras[number].request.asked for number in ready.inside}
    return {number: share if share >= UNASKED else 0.0 for number, share in shares.items() if share < 1}


def _subjects(ready: Prepared, inside: Sequence[int], wishes: Wishes) -> list[int]:
    roles = assign_roles([ready.loras[number].request.role for number in inside], wishes.settings.swap_roles)
    return [number for number, role in zip(inside, roles, strict=True) if role != STYLE]


def _lora(ready: Prepared, number: int) -> Lora:
    request, outcome, half = ready.loras[number].request, ready.outcomes[number], ready.halves[number]
    notes = [*outcome.text_lines(), *outcome.notes]
    if not request.model or not half.matched:
        notes.append("it does not change the diffusion model")
    return Lora(
        number, request.name, request.model, request.role, request.asked, outcome.outside_gate,
        len(half.reasons) if request.model else 0, tuple(notes),
    )  # fmt: skip
