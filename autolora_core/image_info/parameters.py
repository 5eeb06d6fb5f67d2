"""The ``parameters`` text of AUTOMATIC1111, which Civitai, Lora-Manager and most viewers of pictures read.

Prompt with ``<lora:…>``, a line ``Negative prompt: …``, a last line ``Steps: …, Sampler: …``. LoRAs stand there three
times, because readers differ: as marks (name and strength), ``Lora hashes`` (AutoV3) and ``Hashes`` (JSON, AutoV2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import SelectionError
from ..fusion.file_names import short_names, spelled, without_ending
from ..fusion.lora_text import plain, without_marks
from .graph import Facts

VERSION = "ComfyUI"
# ComfyUI's names of samplers and schedules → those that AUTOMATIC1111 writes; others are written as they are.
SAMPLERS = {
    "euler": "Euler", "euler_ancestral": "Euler a", "heun": "Heun", "lms": "LMS", "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a", "dpm_fast": "DPM fast", "dpm_adaptive": "DPM adaptive", "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2s_ancestral": "DPM++ 2S a", "dpmpp_2m": "DPM++ 2M", "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun", "dpmpp_3m_sde": "DPM++ 3M SDE", "ddim": "DDIM", "uni_pc": "UniPC",
    "lcm": "LCM",
}  # fmt: skip
SCHEDULES = {
    "normal": "Normal", "simple": "Simple", "karras": "Karras", "exponential": "Exponential", "beta": "Beta",
    "sgm_uniform": "SGM Uniform", "ddim_uniform": "DDIM", "kl_optimal": "KL Optimal",
}  # fmt: skip


@dataclass(frozen=True)
class HashedLora:
    """One LoRA of the picture: its name in the loras list, strengths, and hashes, "" where they are not known."""

    name: str
    strength: float
    clip_strength: float
    autov2: str = ""
    autov3: str = ""


def added_up(loras: Iterable[HashedLora]) -> list[HashedLora]:
    """One entry a file: strengths of loaders in a row add up. A reader takes one weight for a name."""
    total: dict[str, HashedLora] = {}
    for one in loras:
        key, before = spelled(one.name), total.get(spelled(one.name))
        model, clip = (0.0, 0.0) if before is None else (before.strength, before.clip_strength)
        total[key] = HashedLora(
            one.name, model + one.strength, clip + one.clip_strength, one.autov2 or (before.autov2 if before else ""),
            one.autov3 or (before.autov3 if before else ""),
        )  # fmt: skip
    return list(total.values())


def parameters_text(
    facts: Facts,
    loras: Iterable[HashedLora],
    size: tuple[int, int],
    model_hash: str = "",
    replaced: Mapping[str, str] | None = None,
) -> str:
    """The whole text. ``size``: width and height in pixels; ``model_hash``: AutoV2 of the base model's file;
    ``replaced``: settings by name, instead of or beside those that ``facts`` has. What is not known is left out."""
    loras = added_up(loras)
    short = short_names(one.name for one in loras)
    marks = [f"<lora:{_for_mark(short[one.name])}:{plain(one.strength)}>" for one in loras]
    prompt = " ".join(filter(None, [_prompt(facts.positive), *marks]))
    negative = [f"Negative prompt: {_prompt(facts.negative)}"] if facts.negative else []
    settings = _replaced(_settings(facts, size, model_hash), replaced or {})
    hashes = [f"{_for_hash(short[one.name])}: {one.autov3}" for one in loras if one.autov3]
    if hashes:
        settings["Lora hashes"] = ", ".join(hashes)
    settings["Version"] = VERSION
    line = ", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items())
    table = {"model": model_hash} if model_hash else {}
    table |= {f"lora:{_for_hash(short[one.name])}": one.autov2 for one in loras if one.autov2}
    line += f", Hashes: {json.dumps(table, ensure_ascii=False)}" if table else ""
    return "\n".join([prompt, *negative, line])


def read_settings(text: str) -> dict[str, str]:
    """Lines ``Key: value`` as typed. Raises ``SelectionError`` for a line without a colon."""
    found = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not re.fullmatch(r"[\w \-/]+", key):
            raise SelectionError(f"{line!r} is not a setting", key="settings", fix="write Key: value, one on a line")
        found[key] = value
    return found


def _settings(facts: Facts, size: tuple[int, int], model_hash: str) -> dict[str, str]:
    """In AUTOMATIC1111's order; "" is not known."""
    told = {
        "Steps": facts.steps,
        "Sampler": facts.sampler and SAMPLERS.get(facts.sampler.removesuffix("_gpu"), facts.sampler),
        "Schedule type": facts.scheduler and SCHEDULES.get(facts.scheduler, facts.scheduler),
        "CFG scale": None if facts.cfg is None else f"{facts.cfg:g}",
        "Seed": facts.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model_hash or None,
        "Model": facts.model and without_ending(spelled(facts.model)).rpartition("/")[2],
        "Denoising strength": f"{facts.denoise:g}" if facts.denoise is not None and facts.denoise < 1 else None,
    }
    return {key: "" if value is None else str(value) for key, value in told.items()}


def _replaced(settings: dict[str, str], typed: Mapping[str, str]) -> dict[str, str]:
    """The settings with those typed, in place of ones of the same name in any case; an empty one is left out.

    Their order stays: readers know the line by its beginning, ``Steps:``."""
    names = {key.casefold(): key for key in settings}
    whole = settings | {names.get(key.casefold(), key): value for key, value in typed.items()}
    return {key: value for key, value in whole.items() if value}


def _prompt(text: str | None) -> str:
    """Readers look for these words anywhere: those of a prompt must not look like a part of the format."""
    return re.sub(r"(Negative prompt|Steps):", r"\1 :", without_marks(text or "").strip())


def _for_mark(name: str) -> str:
    return re.sub(r"[<>\n]", "_", name)


def _for_hash(name: str) -> str:
    """Names between colons and commas, in quotes and braces: readers cut at these, so they are left out."""
    return re.sub(r'[:,"{}\n]', "", name)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value
