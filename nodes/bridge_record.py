"""Recorders on models: put there by the Apply node, read by the heat map after sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..autolora_core.errors import SelectionError
from ..autolora_core.fusion.methods.planner import STATIC, Blend
from ..autolora_core.fusion.record import Heat, Recorder

KEY = "autolora_recorder"


def record(patcher: Any, made: Blend, names: Sequence[str]) -> Recorder | None:
    """Give ``patcher`` (a clone of ours) a recorder for ``made``, or the reason why there can be none."""
    if made.plan.mode in STATIC:
        why = f"mode {made.plan.mode} makes one update of all LoRAs before sampling: nothing passes or not on the way"
        patcher.set_attachments(KEY, why)
        return None
    recorder = Recorder(names, list(made.plan.modules))
    patcher.set_attachments(KEY, recorder)
    return recorder


def last_heat(model: Any) -> Heat:
    """What the recorder of a MODEL noted. Raises ``SelectionError`` where there is none, or nothing was sampled."""
    found = model.get_attachment(KEY)
    if found is None:
        raise SelectionError(
            "no record was made of this model", key="model",
            fix="switch record on in Gated Multi-LoRA Apply, and connect its model here and to the sampler",
        )  # fmt: skip
    if isinstance(found, str):
        raise SelectionError(found, key="mode", fix="choose gate, sum, energy, klora, switch or composite")
    heat = found.heat()
    if not heat.steps:
        raise SelectionError(
            "this model was not sampled since its LoRAs were applied", key="samples",
            fix="connect the latent of the sampler that this model goes to",
        )  # fmt: skip
    return heat
