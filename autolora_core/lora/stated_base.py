"""What a file's metadata says about the base it was made for. Trainers and merges often leave a stale line in it."""

from __future__ import annotations

import re
from collections.abc import Mapping

# metadata value (lower case) -> family; searched in this order
_METADATA_NAMES: tuple[tuple[str, str], ...] = (
    (r"flux[-_. ]?2|klein", "flux2"),
    (r"chroma", "chroma"),
    (r"flux", "flux"),
    (r"stable-diffusion-xl|sdxl|sd_xl|pony(?!.?v7)|illustrious|noobai|animagine", "sdxl"),
    (r"stable-diffusion-v?3|sd3|sd_3", "sd3"),
    (r"stable-diffusion-v?2|sd_v2|sd2|\bv2", "sd2"),
    (r"stable-diffusion-v?1|sd_v1|sd1|sd_1|v1-5", "sd15"),
    (r"qwen", "qwen_image"),
    (r"z[-_ ]?image", "z_image"),
    (r"lumina", "lumina2"),
    (r"hunyuan[-_ ]?video", "hunyuan_video"),
    (r"\bwan", "wan"),
    (r"ltx", "ltxv"),
    (r"pixart", "pixart"),
    (r"aura_?flow|pony.?v7", "aura_flow"),
    (r"anima", "anima"),
    (r"krea[-_ ]?2", "krea2"),
    (r"autolora-emoji", "emoji"),
)
_METADATA_KEYS = ("modelspec.architecture", "ss_base_model_version", "baseModel", "base_model", "ss_sd_model_name")


def stated_family(metadata: Mapping[str, str]) -> tuple[str, str] | None:
    """(family, the line that says so) of a file's metadata, or None."""
    for key in _METADATA_KEYS:
        value = metadata.get(key, "")
        for pattern, name in _METADATA_NAMES:
            if value and re.search(pattern, value.lower()):
                return name, f"{key} = {value[:60]!r}"
    return None
