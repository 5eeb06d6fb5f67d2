"""Which modules of a base family read text, and which of them read the very same input.

A LoRA's update there can be asked directly what it does to a prompt: apply it to the module's input. Modules that read
one input together form a *space*; their updates are stacked into one matrix. In UNets and in the plain cross-attention
transformers every block reads one and the same context, so the whole file is one space. In the two-stream transformers
each block has text states of its own: the input of its text q, k, v and the input of its text MLP. The output
projections are left out: their input is what attention mixed, and it hardly tells prompts apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

CONTEXT = "context"
# Text states differ most between prompts in early blocks, and recording can stop after the last block that is needed.
MAX_BLOCK = 7


@dataclass(frozen=True)
class Space:
    """One input. ``name`` is stored; ``probe`` is the base module whose input is recorded, None where that input is
    the conditioning itself. ``leads`` is true where the input is text tokens followed by image tokens.
    """

    name: str
    probe: str | None
    leads: bool = False
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Rule:
    """Modules matching ``pattern``: their space's name and probe, with ``{n}`` for the block's number."""

    pattern: str
    name: str
    probe: str | None
    leads: bool = False


def _streams(block: str, *parts: tuple[str, str], leads: bool = False) -> list[_Rule]:
    """One space a block and part; a part is (pattern of the modules' last names, the one to record)."""
    pattern = re.escape(block).replace(r"\{n\}", r"(?P<n>\d+)")
    return [
        _Rule(rf"{pattern}\.(?:{modules})", f"{block}.{probe}", f"{block}.{probe}", leads) for modules, probe in parts
    ]


def _shared(pattern: str, probe: str | None) -> list[_Rule]:
    return [_Rule(pattern, CONTEXT, probe)]


_UNET = _shared(r".*\.attn2\.to_[kv]", None)
_SD3 = _streams("joint_blocks.{n}.context_block", (r"attn\.qkv", "attn.qkv"), (r"mlp\.fc1", "mlp.fc1"))
_FLUX_DOUBLE = _streams("double_blocks.{n}", (r"txt_attn\.qkv", "txt_attn.qkv"), (r"txt_mlp\.0", "txt_mlp.0"))
_FLUX = _FLUX_DOUBLE + _streams("single_blocks.{n}", ("linear1", "linear1"), leads=True)
_LUMINA_PARTS = ((r"attention\.qkv", "attention.qkv"), (r"feed_forward\.w[13]", "feed_forward.w1"))
_LUMINA = _streams("context_refiner.{n}", *_LUMINA_PARTS) + _streams("layers.{n}", *_LUMINA_PARTS, leads=True)
_KREA_PARTS = ((r"attn\.(?:w[qkv]|gate)", "attn.wq"), (r"mlp\.(?:gate|up)", "mlp.gate"))

# In order of preference: a file keeps its first few spaces.
_RULES: dict[str, list[_Rule]] = {
    "sd15": _UNET,
    "sd2": _UNET,
    "sdxl": _UNET,
    "sd3": _SD3,
    "emoji": _SD3,
    "flux": _FLUX,
    "flux2": _FLUX,
    "chroma": _FLUX,
    "hunyuan_video": _FLUX_DOUBLE,
    "qwen_image": _streams(
        "transformer_blocks.{n}",
        (r"attn\.add_[qkv]_proj", "attn.add_q_proj"),
        (r"txt_mlp\.net\.0\.proj", "txt_mlp.net.0.proj"),
    ),
    "z_image": _LUMINA,
    "lumina2": _LUMINA,
    "wan": _shared(r"blocks\.\d+\.cross_attn\.[kv]", "blocks.0.cross_attn.k"),
    "ltxv": _shared(r"transformer_blocks\.\d+\.attn2\.to_[kv]", "transformer_blocks.0.attn2.to_k"),
    "pixart": _shared(r"blocks\.\d+\.cross_attn\.kv_linear", "blocks.0.cross_attn.kv_linear"),
    "anima": _shared(r"blocks\.\d+\.cross_attn\.[kv]_proj", "blocks.0.cross_attn.k_proj"),
    "aura_flow": _streams("double_layers.{n}", (r"attn\.w1[qkv]", "attn.w1q"), (r"mlpC\.c_fc[12]", "mlpC.c_fc1")),
    "krea2": _streams("txtfusion.refiner_blocks.{n}", *_KREA_PARTS) + _streams("blocks.{n}", *_KREA_PARTS, leads=True),
}
FAMILIES = frozenset(_RULES)


@cache
def space_of(family: str, module: str) -> Space | None:
    """The space of a base module (without rows), or None when it does not read text or lies too deep to pay."""
    for rank, rule in enumerate(_RULES.get(family, ())):
        match = re.fullmatch(rule.pattern, module)
        if match is None:
            continue
        block = int(match.groupdict().get("n") or 0)
        if block > MAX_BLOCK:
            return None
        probe = rule.probe.format(n=block) if rule.probe else None
        # Rules of one stream alternate by block: block 0's attention and MLP, then block 1's.
        return Space(rule.name.format(n=block), probe, rule.leads, (int(rule.leads), block, rank))
    return None


@cache
def named_space(family: str, name: str) -> Space | None:
    """The space called ``name``, as :func:`space_of` gave it."""
    if any(rule.name == name == CONTEXT for rule in _RULES.get(family, ())):
        rule = _RULES[family][0]
        return Space(CONTEXT, rule.probe, rule.leads, (0, 0, 0))
    return space_of(family, name)
