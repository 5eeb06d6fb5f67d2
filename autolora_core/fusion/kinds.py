"""Which LoRAs must stay outside the gate: few-step distillations and edit models carry the sampler, not a motif.

They are told by name and metadata, and where those are silent, by norms: a distillation changes how pictures come about
and leaves what words mean nearly alone, so in a network with two streams it moves the picture's far more than the
text's (``python -m benchmarks.few_step``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from .branches import Branch
from .conflicts import energy
from .plan import by_module

_ALONE = {"lcm", "dmd", "dmd2", "tcd", "pcm", "lightx2v", "causvid", "fastwan", "accvid", "kontext"}
# Ordinary words in titles ("lightning bolt", "Porsche Turbo"): they count only beside a base's name or a step count.
_WITH_BASE = {"turbo", "lightning", "hyper", "flash", "schnell", "distill", "distilled", "distillation"}
_BASE = re.compile(r"sd|sd15|sd3|sd35|sdxl|xl|flux|flux1|flux2|z|zimage|qwen|wan\d*|krea|chroma|ltx\w*|hunyuan|alpha")
_STEPS = re.compile(r"\d{1,2}steps?")
# Halfway, as ratios go, between the highest of 529 LoRAs of subjects and styles and the lowest of 7 few-step ones.
FEW_STEP_RATIO = 1.64
MEASURED = "emoji"  # the demo base's family
LEAST_PAIRS = 4  # layers that both streams have; fewer say nothing
# A layer of the picture's stream → its twin in the text's: SD3, FLUX and HunyuanVideo, Qwen-Image, diffusers' names.
_TWINS = ((".x_block.", ".context_block."), (".img_attn", ".txt_attn"), (".img_mlp", ".txt_mlp"),
          (".attn.to_q", ".attn.add_q_proj"), (".attn.to_k", ".attn.add_k_proj"), (".attn.to_v", ".attn.add_v_proj"),
          (".attn.to_out.0", ".attn.to_add_out"))  # fmt: skip
_METADATA = ("ss_output_name", "modelspec.title", "title", "name")


def few_step_reason(name: str, metadata: Mapping[str, str] | None = None) -> str | None:
    """Why this LoRA is taken for a few-step or edit LoRA, from its file name and title; None when it is not."""
    for where, text in [("file name", name), *((key, (metadata or {}).get(key, "")) for key in _METADATA)]:
        word = _telling_word(text)
        if word:
            return f"the {where} says '{word}'"
    return None


def _stem(text: str) -> str:
    return re.sub(r"\.safetensors$", "", re.split(r"[\\/]", str(text))[-1], flags=re.IGNORECASE).lower()


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", _stem(text)) if word]


def _telling_word(text: str) -> str | None:
    words = _words(text)
    steps = any(_STEPS.fullmatch(word) for word in words) or re.search(r"\b\d{1,2}[ _-]steps?\b", _stem(text))
    base = any(_BASE.fullmatch(word) for word in words)
    for word in words:
        if word in _ALONE or (word in _WITH_BASE and (base or steps)):
            return word
    return None


def norms_reason(
    name: str, family: str, branches: Iterable[Branch], channels: Mapping[str, int]
) -> tuple[str | None, str | None]:
    """(reason, hint) from the norms of one LoRA's ``branches`` where its name and metadata prove nothing.

    A reason why it is taken for a few-step LoRA: the norms of one, on the base they were measured on, or with a word in
    the name that alone means nothing ("turbo"). Elsewhere norms are a hint for the report.
    """
    ratio = stream_ratio(branches, channels)
    if ratio is None or ratio < FEW_STEP_RATIO:
        return None, None
    seen = f"it changes the picture's layers {ratio:.1f} × as much as the text's, as few-step LoRAs do"
    word = next((word for word in _words(name) if word in _WITH_BASE), None)
    if word:
        return f"the file name says '{word}', and {seen}", None
    if family == MEASURED:
        return seen, None
    return None, f"{seen}; if it is one, a name with lcm, lightning or 4steps in it keeps it out of gates and modes"


def stream_ratio(branches: Iterable[Branch], channels: Mapping[str, int]) -> float | None:
    """Geometric mean of ‖ΔW‖ of the picture's layers over ‖ΔW‖ of their twins in the text's stream.

    ``channels``: module → output channels. None for networks with one stream, and where fewer than :data:`LEAST_PAIRS`
    twins were trained. Strength, which both share, falls out.
    """
    own = by_module(branches)
    twins = [
        (name, twin)
        for name in own
        for picture, text in _TWINS
        if picture in name and (twin := name.replace(picture, text)) in own
    ]
    energies = [[energy(own[name], channels[name]) for name in pair] for pair in twins]
    logs = [0.5 * math.log(a / b) for a, b in energies if a > 0 and b > 0]
    return math.exp(sum(logs) / len(logs)) if len(logs) >= LEAST_PAIRS else None
