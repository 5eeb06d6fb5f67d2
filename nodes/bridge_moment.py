"""The step of sampling, told to fused layers; and LoRA Composite, which runs the model once for every LoRA.

Both are APPLY_MODEL wrappers: plain functions under a key of their own, so they stack with those of other packs (and
with the compile node's), and ComfyUI's deep copies of options leave them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from comfy.patcher_extension import WrappersMP

from ..autolora_core.fusion.area import Layout
from ..autolora_core.fusion.moment import Moment, step_of
from ..autolora_core.fusion.rules import Switch


def follow_steps(
    patcher: Any, key: str, moment: Moment, turns: Switch | None = None, layout: Layout | None = None
) -> None:
    """While ``patcher`` (a clone of ours) is sampled, ``moment`` says which step it is; with ``turns``, who is on.

    Not both: whatever a layer reads is part of its compiled graph, and there are fewer LoRAs than steps. ``layout``: of
    the network's tokens, for LoRAs that are on in a place.
    """
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, _stepper(moment, turns, layout or Layout()))
    if moment.presences:
        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, key, _sizer(moment))


def compose(patcher: Any, key: str, moment: Moment, order: Sequence[int]) -> None:
    """Every evaluation of ``patcher`` becomes the mean over ``order`` of evaluations with that LoRA alone.

    (arXiv 2402.16843, section 3.2.) What a model returns is affine in its network's prediction, with weights that only
    depend on sigma, so the mean may be taken here; cond and uncond are averaged alike, which is what the mean of
    guided predictions comes to.
    """
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, _composer(moment, tuple(order)))


def _sizer(moment: Moment) -> Callable:
    """Tells how large the whole latent is: a conditioning with an area runs the model on a part of it."""

    def with_size(executor, model, conds, x_in, timestep, model_options):
        moment.size = tuple(x_in.shape[2:])
        try:
            return executor(model, conds, x_in, timestep, model_options)
        finally:
            moment.size = None

    return with_size


def _stepper(moment: Moment, turns: Switch | None, layout: Layout) -> Callable:
    def with_step(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **others):
        options = transformer_options or {}
        schedule, sigmas = options.get("sample_sigmas"), options.get("sigmas", t)
        step, steps = step_of(float(sigmas.max()), [] if schedule is None else schedule.tolist())
        size = tuple(x.shape[2:])
        size = size if len(size) > 1 and moment.size in (None, size) else None
        place = replace(layout, text=0 if c_crossattn is None else c_crossattn.shape[1])
        try:
            if turns is not None:
                moment.only = turns.live(Moment(step, steps))
            else:
                moment.go(step, steps)
            if moment.recorder is not None:
                moment.recorder.begin(schedule, step, x.device)
            for presence in moment.presences.values():
                presence.go(step / steps, size, place, x.device)
            return executor(x, t, c_concat, c_crossattn, control, options, **others)
        finally:
            moment.go(0, 1)
            moment.only = None

    return with_step


def _composer(moment: Moment, order: tuple[int, ...]) -> Callable:
    def one_by_one(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **others):
        total = None
        try:
            for moment.only in order:
                options = dict(transformer_options or {})
                out = executor(x, t, c_concat, c_crossattn, _own_lists(control), options, **others)
                total = out if total is None else total + out
        finally:
            moment.only = None
        return total / len(order)

    return one_by_one


def _own_lists(control: Any) -> Any:
    """A UNet takes its ControlNet residuals off the lists it is given; every evaluation needs them all."""
    if not isinstance(control, dict):
        return control
    return {name: list(values) if isinstance(values, list) else values for name, values in control.items()}
