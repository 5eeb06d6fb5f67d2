"""One table of module names for each family, and what is known of each base's depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from . import names_dit, names_mmdit, names_unet
from .rules import Rule, RuleTable, Target

_RULES: dict[str, Callable[[], list[Rule]]] = {
    "sd15": names_unet.sd_rules,
    "sd2": names_unet.sd_rules,
    "sdxl": names_unet.sdxl_rules,
    "sd3": names_mmdit.sd3_rules,
    "emoji": names_mmdit.sd3_rules,
    "flux": names_mmdit.flux_rules,
    "flux2": names_mmdit.flux_rules,
    "chroma": names_mmdit.flux_rules,
    "hunyuan_video": names_mmdit.hunyuan_video_rules,
    "qwen_image": names_mmdit.qwen_image_rules,
    "z_image": names_dit.z_image_rules,
    "lumina2": names_dit.z_image_rules,
    "wan": names_dit.wan_rules,
    "ltxv": names_dit.ltxv_rules,
    "pixart": names_dit.pixart_rules,
    "aura_flow": names_dit.aura_flow_rules,
    "anima": names_dit.anima_rules,
    "krea2": names_dit.krea2_rules,
}

# Blocks of each stack in the released models; (family, variant) first, then (family, None).
_DEPTHS: dict[tuple[str, str | None], dict[str, int]] = {
    ("emoji", None): {"joint_blocks": 4},
    ("sd3", "medium"): {"joint_blocks": 24},
    ("sd3", "3.5-medium"): {"joint_blocks": 24},
    ("sd3", "large"): {"joint_blocks": 38},
    ("flux", None): {"double_blocks": 19, "single_blocks": 38},
    ("chroma", None): {"double_blocks": 19, "single_blocks": 38},
    ("flux2", "dev"): {"double_blocks": 8, "single_blocks": 48},
    ("flux2", "klein-9b"): {"double_blocks": 8, "single_blocks": 24},
    ("flux2", "klein-4b"): {"double_blocks": 5, "single_blocks": 20},
    ("qwen_image", None): {"transformer_blocks": 60},
    ("z_image", None): {"layers": 30},
    ("lumina2", None): {"layers": 26},
    ("wan", "1.3b"): {"blocks": 30},
    ("wan", "5b"): {"blocks": 30},
    ("wan", "14b"): {"blocks": 40},
    ("hunyuan_video", None): {"double_blocks": 20, "single_blocks": 40},
    ("ltxv", "2b"): {"transformer_blocks": 28},
    ("ltxv", "13b"): {"transformer_blocks": 48},
    ("pixart", None): {"blocks": 28},
    ("anima", None): {"blocks": 28},
}

# UNet blocks that have attention, which is what a full LoRA of these bases covers at least.
_UNET_ATTENTION: dict[str, dict[str, list[int]]] = {
    "sd15": {"input_blocks": [1, 2, 4, 5, 7, 8], "output_blocks": [3, 4, 5, 6, 7, 8, 9, 10, 11]},
    "sdxl": {"input_blocks": [4, 5, 7, 8], "output_blocks": [0, 1, 2, 3, 4, 5]},
}
_UNET_ATTENTION["sd2"] = _UNET_ATTENTION["sd15"]


@cache
def table(family: str) -> RuleTable | None:
    """The names of a family, or None for one without a table."""
    rules = _RULES.get(family)
    return None if rules is None else RuleTable(rules())


def find_module(family: str, path: str, shape: tuple[int, ...]) -> Target | None:
    """The base's own module for a path of the file, dotted or underscored; None when the family has no such module."""
    names = table(family)
    target = None if names is None else names.find(path)
    if target is None or len(shape) < 2:
        return target
    # SD3's last text block ends in a continuous AdaLN (2 parts, not 6), whose halves diffusers stores exchanged.
    if target.spelled.endswith("norm1_context.linear") and shape[0] == 2 * shape[1]:
        return replace(target, swap_halves=True)
    return target


def expected_blocks(family: str, variant: str | None) -> dict[str, list[int]]:
    """Stack name -> block numbers that a LoRA of the whole model touches; empty when unknown."""
    if family in _UNET_ATTENTION and variant is None:
        return _UNET_ATTENTION[family]
    depths = _DEPTHS.get((family, variant)) or _DEPTHS.get((family, None)) or {}
    return {stack: list(range(depth)) for stack, depth in depths.items()}


def tells_partial(family: str, variant: str | None, modules: list[str]) -> str | None:
    """What of the base a set of model modules leaves untouched, in words, or None when every block has some update."""
    present: dict[str, set[int]] = {}
    for name in modules:
        stack, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        if number.isdigit():
            present.setdefault(stack, set()).add(int(number))
    notes = []
    for stack, blocks in expected_blocks(family, variant).items():
        missing = [n for n in blocks if n not in present.get(stack, ())]
        if missing:
            what = "none" if len(missing) == len(blocks) else f"{len(blocks) - len(missing)}"
            notes.append(f"{what} of {len(blocks)} {stack} (missing {_ranges(missing)})")
    return "; ".join(notes) or None


def _ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
