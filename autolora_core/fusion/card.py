"""What a card shows of an application: the report's facts as plain JSON, for the page and for the API's history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .report import LoraOutcome
from .requests import Request

FORMAT = "autolora-cards/1"
SHOWN = 8  # layers named for a reason; all are counted


def fusion_card(
    mode: str,
    why: str,
    loras: Iterable[tuple[LoraOutcome, Request]],
    gated: int,
    fused: int,
    absent: Iterable[Request] = (),
    warnings: Iterable[str] = (),
    done: Iterable[str] = (),
    recorded: bool = False,
) -> dict[str, Any]:
    """``gated`` of the ``fused`` layers have a gate; ``done``: what the mode did, a line each; ``recorded``: whether
    what passes will be told while the model is sampled; ``heat`` is where it is kept afterwards
    (:func:`.heat_kept.kept_heat`)."""
    return {
        "format": FORMAT,
        "kind": "apply",
        "mode": mode,
        "why": why,
        "gated": gated if mode == "gate" else None,
        "fused": fused,
        "loras": [_lora(outcome, request, mode) for outcome, request in loras],
        "absent": [request.name for request in absent],
        "warnings": list(warnings),
        "done": list(done),
        "recorded": recorded,
        "heat": None,
    }


def _lora(outcome: LoraOutcome, request: Request, mode: str) -> dict[str, Any]:
    """Of ``total`` layers of the file ``matched`` were found; ``refused`` says which were not applied and why,
    ``other`` which went another way."""
    missing = {layer: "not in this model" for layer in outcome.missing}
    if outcome.clip_connected:
        missing |= {layer: f"left out of the text encoders: {why}" for layer, why in outcome.text_missing.items()}
        text = [f"{name} {here} of {total}" for name, (here, total) in outcome.encoders.items()]
    else:
        text = outcome.text_lines()
    return {
        "name": outcome.name,
        "hash": request.sha256,
        "role": request.role,
        "origin": outcome.origin,
        "strength": outcome.strength,
        "clip_strength": outcome.clip_strength,
        "matched": outcome.matched,
        "total": outcome.total,
        "text": text,
        "outside": outcome.outside_gate if mode != "sum" else None,
        "refused": _by_reason(missing),
        "other": _by_reason(outcome.forwarded),
        "notes": list(outcome.notes),
    }


def _by_reason(layers: Mapping[str, str]) -> list[dict[str, Any]]:
    """One entry a reason, in the order met: how many layers, and the first ``SHOWN`` of them by name."""
    found: dict[str, list[str]] = {}
    for layer, why in layers.items():
        found.setdefault(why, []).append(layer)
    return [{"why": why, "count": len(names), "layers": _first(names)} for why, names in found.items()]


def _first(names: Sequence[str]) -> list[str]:
    return list(names[:SHOWN])
