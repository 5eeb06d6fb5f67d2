"""Which LoRAs must stay outside the gate: few-step distillations and edit models carry the sampler, not a motif."""

from __future__ import annotations

import re
from collections.abc import Mapping

_ALONE = {"lcm", "dmd", "dmd2", "tcd", "pcm", "lightx2v", "causvid", "fastwan", "accvid", "kontext"}
# Ordinary words in titles ("lightning bolt", "Porsche Turbo"): they count only beside a base's name or a step count.
_WITH_BASE = {"turbo", "lightning", "hyper", "flash", "schnell", "distill", "distilled", "distillation"}
_BASE = re.compile(r"sd|sd15|sd3|sd35|sdxl|xl|flux|flux1|flux2|z|zimage|qwen|wan\d*|krea|chroma|ltx\w*|hunyuan|alpha")
_STEPS = re.compile(r"\d{1,2}steps?")
_METADATA = ("ss_output_name", "modelspec.title", "title", "name")


def few_step_reason(name: str, metadata: Mapping[str, str] | None = None) -> str | None:
    """Why this LoRA is taken for a few-step or edit LoRA, from its file name and title; None when it is not."""
    for where, text in [("file name", name), *((key, (metadata or {}).get(key, "")) for key in _METADATA)]:
        word = _telling_word(text)
        if word:
            return f"the {where} says '{word}'"
    return None


def _telling_word(text: str) -> str | None:
    stem = re.sub(r"\.safetensors$", "", re.split(r"[\\/]", str(text))[-1], flags=re.IGNORECASE)
    words = [word for word in re.split(r"[^a-z0-9]+", stem.lower()) if word]
    steps = any(_STEPS.fullmatch(word) for word in words) or re.search(r"\b\d{1,2}[ _-]steps?\b", stem.lower())
    base = any(_BASE.fullmatch(word) for word in words)
    for word in words:
        if word in _ALONE or (word in _WITH_BASE and (base or steps)):
            return word
    return None
