"""Recorders on models: put there by the Apply node, read by the heat map after sampling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from comfy.patcher_extension import WrappersMP

from ..autolora_core.errors import SelectionError
from ..autolora_core.fusion.heat_kept import kept_heat
from ..autolora_core.fusion.methods.planner import STATIC, Blend
from ..autolora_core.fusion.record import Heat, Recorder
from .bridge_events import keep_with, send

KEY = "autolora_recorder"


def watchable(made: Blend) -> bool:
    """Whether there is anything to record."""
    return made.plan.mode not in STATIC and bool(made.plan.modules)


def record(patcher: Any, made: Blend, names: Sequence[str], node: str = "") -> Recorder | None:
    """Give ``patcher`` (a clone of ours) a recorder for ``made``, beside those of Apply nodes before it; with ``node``
    (an id) what passes is told to that node of the page at every step.

    Where there is nothing to watch, the reason is noted instead.
    """
    before = patcher.get_attachment(KEY) or ()
    reason = None
    if made.plan.mode in STATIC:
        reason = f"mode {made.plan.mode} makes one update of all LoRAs before sampling: nothing is left to pass or not"
    elif not made.plan.modules:
        reason = "all updates went to ComfyUI's weight patches, which are on always"
    recorder = None if reason else Recorder(names, list(made.plan.modules))
    patcher.set_attachments(KEY, (*before, reason or recorder))
    if recorder is not None and node:
        _tell(patcher, recorder, node)
    return recorder


def keep_on(model: Any, card: dict[str, Any]) -> None:
    """What passes goes into ``card``, too, which the Apply node of the last recorder of ``model`` shows: the page and
    ComfyUI's history have it afterwards."""
    found = model.get_attachment(KEY) or ()
    if found and isinstance(found[-1], Recorder):
        found[-1].card = card


def _tell(patcher: Any, recorder: Recorder, node: str) -> None:
    """``autolora.heat``: a message when a sampling begins, one a step, and one at the end."""

    def told(step: int, heat: Heat) -> None:
        send("heat", {"node": node, "step": step, **heat.columns()})

    def sampled(executor: Any, *args: Any, **kwargs: Any) -> Any:
        sigmas = args[3] if len(args) > 3 else kwargs.get("sigmas")
        send("heat", {"node": node, "begin": True, "steps": 0 if sigmas is None else max(len(sigmas) - 1, 0)})
        recorder.told = told
        try:
            return executor(*args, **kwargs)
        finally:
            found = kept_heat(recorder.heat())  # the last step is told, too
            recorder.told = None  # who reads it later tells nobody
            if found is not None and recorder.card is not None:
                keep_with(recorder.card, node, {"heat": found})
            send("heat", {"node": node, "end": True, "heat": found})

    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, f"{KEY}_{node}", sampled)


def last_heat(model: Any) -> Heat:
    """What the recorders of a MODEL noted. Raises ``SelectionError`` where there is none, or nothing was sampled."""
    found = model.get_attachment(KEY) or ()
    recorders = [one for one in found if isinstance(one, Recorder)]
    if not found:
        raise SelectionError(
            "no record was made of this model", key="model",
            fix="switch record on in Gated Multi-LoRA Apply, and connect its model here and to the sampler",
        )  # fmt: skip
    if not recorders:
        raise SelectionError(found[-1], key="mode", fix="choose gate, sum, energy, klora, switch or composite")
    heat = reduce(Heat.beside, [one.heat() for one in recorders])
    if not heat.steps:
        raise SelectionError(
            "this model was not sampled since its LoRAs were applied", key="samples",
            fix="connect the latent of the sampler that this model goes to; if it is, its result came from ComfyUI's "
            "cache: change the seed",
        )  # fmt: skip
    return heat
