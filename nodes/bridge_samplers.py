"""ComfyUI's menus of samplers and schedulers."""

from __future__ import annotations

import comfy.samplers


def sampler_names() -> list[str]:
    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    return list(comfy.samplers.KSampler.SCHEDULERS)
