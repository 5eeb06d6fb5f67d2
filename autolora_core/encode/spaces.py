"""Through which modules of a base family a LoRA can be asked what it does to a prompt, and which share one input.

A LoRA's update can be asked directly: apply it to the input that its module gets for the prompt. Modules that read one
input together form a *space*; their updates are stacked into one matrix. There are two kinds of input. *Text*: the
prompt's own tokens, as the cross-attention of UNets and the text stream of two-stream transformers read them. *Image*:
the picture's tokens, which the prompt has reached through attention and modulation. Modules further in that read what
other modules made (attention outputs, the second layer of an MLP) are spaces of their own.

On the demo base image-side spaces find as much as text-side ones, and LoRAs that change image layers only are found by
nothing else (docs/retrieval.md); for other families the same parts are taken in the same order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

CONTEXT = "context"
IMAGE = "@image"
# The prompt decides most in early blocks, and recording can stop after the last block that is needed.
MAX_BLOCK = 7


@dataclass(frozen=True)
class Space:
    """One input. ``name`` is stored; ``probe`` is the base module whose input is recorded, None where that input is
    the conditioning itself. ``tokens``: ``text``, ``image``, or ``joined`` (text tokens followed by image tokens).
    """

    name: str
    probe: str | None
    tokens: str = "text"
    order: tuple[int, ...] = ()

    @property
    def readings(self) -> tuple[str, ...]:
        """Under which names its inputs are recorded: text tokens by the space's own name, image tokens apart."""
        return {"text": (self.name,), "image": (self.name + IMAGE,), "joined": (self.name, self.name + IMAGE)}[
            self.tokens
        ]


def space_name(reading: str) -> str:
    """The space that a reading is of."""
    return reading.removesuffix(IMAGE)


@dataclass(frozen=True)
class _Rule:
    """Modules ``block.modules``: ``{n}`` in ``block`` is the block's number, ``{b}`` a UNet's place. Spaces of a later
    ``tier`` come after all of earlier ones: their inputs are several times as wide."""

    block: str
    modules: str
    probe: str | None
    tokens: str = "text"
    tier: int = 0

    @property
    def pattern(self) -> str:
        place = r"(?P<b>(?:(?:input|output)_blocks\.\d+|middle_block)\.1)"
        block = re.escape(self.block).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{b\}", place)
        return rf"{block}\.(?:{self.modules})"

    def named(self, groups: dict[str, str]) -> tuple[str, str | None]:
        """``(name, probe)`` of the space."""
        if self.probe is None or "{" not in self.block or self.tokens == CONTEXT:
            return CONTEXT, self.probe
        name = f"{self.block}.{self.probe}".format(**groups)
        return name, name


Parts = tuple[tuple[str, str], ...]  # (pattern of the modules' last names, the one whose input is recorded)


def _rules(block: str, tokens: str, parts: Parts, wide: Parts = ()) -> list[_Rule]:
    first = [_Rule(block, modules, probe, tokens) for modules, probe in parts]
    return first + [_Rule(block, modules, probe, tokens, 1) for modules, probe in wide]


def _shared(block: str, modules: str, probe: str | None) -> list[_Rule]:
    """Cross-attention: every block reads one and the same text, so the whole file is one space."""
    return [_Rule(block, modules, probe, CONTEXT)]


def _one(*names: str) -> Parts:
    """Modules that share their input with no other."""
    return tuple((re.escape(name), name) for name in names)


_UNET_BLOCK = "{b}.transformer_blocks.{n}"
_UNET = _shared(_UNET_BLOCK, r"attn2\.to_[kv]", None) + _rules(
    _UNET_BLOCK,
    "image",
    (
        *_one("attn2.to_out.0"),
        (r"attn1\.to_[qkv]", "attn1.to_q"),
        *_one("attn2.to_q", "attn1.to_out.0", "ff.net.0.proj"),
    ),
    _one("ff.net.2"),
)
_SD3 = _rules(
    "joint_blocks.{n}.context_block", "text", _one("attn.qkv", "mlp.fc1"), _one("attn.proj", "mlp.fc2")
) + _rules("joint_blocks.{n}.x_block", "image", _one("attn.proj", "attn.qkv", "mlp.fc1"), _one("mlp.fc2"))
_FLUX_DOUBLE = _rules(
    "double_blocks.{n}", "text", _one("txt_attn.qkv", "txt_mlp.0"), _one("txt_attn.proj", "txt_mlp.2")
) + _rules("double_blocks.{n}", "image", _one("img_attn.proj", "img_attn.qkv", "img_mlp.0"), _one("img_mlp.2"))
_FLUX = _FLUX_DOUBLE + _rules("single_blocks.{n}", "joined", (), _one("linear1", "linear2"))
_QWEN = _rules(
    "transformer_blocks.{n}",
    "text",
    ((r"attn\.add_[qkv]_proj", "attn.add_q_proj"), *_one("txt_mlp.net.0.proj")),
    _one("attn.to_add_out", "txt_mlp.net.2"),
) + _rules(
    "transformer_blocks.{n}",
    "image",
    (*_one("attn.to_out.0"), (r"attn\.to_[qkv]", "attn.to_q"), *_one("img_mlp.net.0.proj")),
    _one("img_mlp.net.2"),
)
_LUMINA_PARTS = (*_one("attention.qkv"), (r"feed_forward\.w[13]", "feed_forward.w1"))
_LUMINA = _rules("context_refiner.{n}", "text", _LUMINA_PARTS) + _rules(
    "layers.{n}", "joined", (*_LUMINA_PARTS, *_one("attention.out")), _one("feed_forward.w2")
)
_WAN = _shared("blocks.{n}", r"cross_attn\.[kv]", "blocks.0.cross_attn.k") + _rules(
    "blocks.{n}",
    "image",
    (*_one("cross_attn.o"), (r"self_attn\.[qkv]", "self_attn.q"), *_one("self_attn.o", "cross_attn.q", "ffn.0")),
    _one("ffn.2"),
)
_LTXV = _shared("transformer_blocks.{n}", r"attn2\.to_[kv]", "transformer_blocks.0.attn2.to_k") + _rules(
    "transformer_blocks.{n}",
    "image",
    (
        *_one("attn2.to_out.0"),
        (r"attn1\.to_[qkv]", "attn1.to_q"),
        *_one("attn1.to_out.0", "attn2.to_q", "ff.net.0.proj"),
    ),
    _one("ff.net.2"),
)
_PIXART = _shared("blocks.{n}", r"cross_attn\.kv_linear", "blocks.0.cross_attn.kv_linear") + _rules(
    "blocks.{n}", "image", _one("cross_attn.proj", "attn.qkv", "attn.proj", "cross_attn.q_linear", "mlp.fc1"),
    _one("mlp.fc2"),
)  # fmt: skip
_ANIMA = _shared("blocks.{n}", r"cross_attn\.[kv]_proj", "blocks.0.cross_attn.k_proj") + _rules(
    "blocks.{n}",
    "image",
    (
        *_one("cross_attn.output_proj"),
        (r"self_attn\.[qkv]_proj", "self_attn.q_proj"),
        *_one("self_attn.output_proj", "cross_attn.q_proj", "mlp.layer1"),
    ),
    _one("mlp.layer2"),
)
_AURA = _rules(
    "double_layers.{n}", "text", ((r"attn\.w1[qkv]", "attn.w1q"), (r"mlpC\.c_fc[12]", "mlpC.c_fc1"))
) + _rules(
    "double_layers.{n}",
    "image",
    (*_one("attn.w2o"), (r"attn\.w2[qkv]", "attn.w2q"), (r"mlpX\.c_fc[12]", "mlpX.c_fc1")),
)
_KREA_PARTS = ((r"attn\.(?:w[qkv]|gate)", "attn.wq"), (r"mlp\.(?:gate|up)", "mlp.gate"))
_KREA = _rules("txtfusion.refiner_blocks.{n}", "text", _KREA_PARTS) + _rules(
    "blocks.{n}", "joined", (*_KREA_PARTS, *_one("attn.wo")), _one("mlp.down")
)

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
    "qwen_image": _QWEN,
    "z_image": _LUMINA,
    "lumina2": _LUMINA,
    "wan": _WAN,
    "ltxv": _LTXV,
    "pixart": _PIXART,
    "anima": _ANIMA,
    "aura_flow": _AURA,
    "krea2": _KREA,
}
FAMILIES = frozenset(_RULES)


@cache
def space_of(family: str, module: str) -> Space | None:
    """The space of a base module (without rows), or None when no prompt reaches it or it lies too deep to pay."""
    for rank, rule in enumerate(_RULES.get(family, ())):
        match = re.fullmatch(rule.pattern, module)
        if match is None:
            continue
        if rule.tokens == CONTEXT:
            return Space(CONTEXT, rule.probe, order=(0, 0, 0, 0))
        groups = match.groupdict()
        block = int(groups["n"])
        if block > MAX_BLOCK:
            return None
        name, probe = rule.named(groups)
        # Rules alternate by block: all parts of block 0, then those of block 1; in a UNet from the middle outwards.
        return Space(name, probe, rule.tokens, (rule.tier, block, _place(groups.get("b")), rank))
    return None


def _place(block: str | None) -> int:
    """Where in a UNet a block lies, counted from the middle through the decoder, the encoder last (B-LoRA, arXiv
    2403.14572: content and style of SDXL sit in its first decoder blocks)."""
    if block is None or block.startswith("middle"):
        return 0
    side, number = block.split(".")[:2]
    return 1 + int(number) if side == "output_blocks" else 60 - int(number)


@cache
def named_space(family: str, name: str) -> Space | None:
    """The space called ``name``, as :func:`space_of` gave it."""
    if name == CONTEXT:
        rule = next((rule for rule in _RULES.get(family, ()) if rule.tokens == CONTEXT), None)
        return Space(CONTEXT, rule.probe, order=(0, 0, 0, 0)) if rule else None
    return space_of(family, name)
