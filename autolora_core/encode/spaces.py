"""Through which modules of a base family a LoRA can be asked what it does to a prompt, and which share one input.

A LoRA's update can be asked directly: apply it to the input that its module gets for the prompt. Modules that read one
input together form a *space*; their updates are stacked into one matrix. Two kinds of input tell prompts apart best:
*text* tokens, as the cross-attention of UNets and the text stream of two-stream transformers read them, and, on the
image side, what attention has gathered for the picture's tokens, which is mostly text: the input of the attention's
output projection. Other inputs (queries, keys and values of the picture, its MLP) are told apart much less and blur
the rest, so a file is asked through them only when it changes none of the former. On the demo base's LoRAs the two
kinds together find more than either, and more than all layers (docs/retrieval.md); for other families the same parts
are taken in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

CONTEXT = "context"
IMAGE = "@image"
# The prompt decides most in early blocks, and recording can stop after the last block that is needed.
MAX_BLOCK = 7


@dataclass(frozen=True)
class Space:
    """One input. ``name`` is stored; ``probe`` is the base module whose input is recorded, None where that input is
    the conditioning itself. ``tokens``: ``text`` (alone or before the picture's), ``image``, or ``tail``: those of the
    picture behind the text's. Spaces of ``tier`` 0 tell prompts apart best.
    """

    name: str
    probe: str | None
    tokens: str = "text"
    tier: int = 0
    order: tuple[int, ...] = ()

    @property
    def reading(self) -> str:
        """Under which name its inputs are recorded: image tokens are marked, they are read place by place."""
        return self.name if self.tokens == "text" else self.name + IMAGE


def space_name(reading: str) -> str:
    """The space that a reading is of."""
    return reading.removesuffix(IMAGE)


@dataclass(frozen=True)
class _Rule:
    """Modules ``block.modules``: ``{n}`` in ``block`` is the block's number, ``{b}`` a UNet's place. Their input is
    recorded at ``block.probe``; all ``shared`` ones read one and the same text."""

    block: str
    modules: str
    probe: str | None
    tokens: str
    tier: int
    shared: bool = False

    @property
    def pattern(self) -> str:
        place = r"(?P<b>(?:(?:input|output)_blocks\.\d+|middle_block)\.1)"
        block = re.escape(self.block).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{b\}", place)
        return rf"{block}\.(?:{self.modules})"


def _rules(block: str, tokens: str, *tiers: Sequence[str | tuple[str, str]]) -> list[_Rule]:
    """A part is the last names of one module, or (pattern of the modules that share an input, the one to record)."""
    found = []
    for tier, parts in enumerate(tiers):
        for part in parts:
            modules, probe = part if isinstance(part, tuple) else (re.escape(part), part)
            found.append(_Rule(block, modules, probe, tokens, tier))
    return found


def _shared(block: str, modules: str, probe: str | None) -> list[_Rule]:
    """Cross-attention: every block reads one and the same text, so the whole file is one space."""
    return [_Rule(block, modules, probe, "text", 0, shared=True)]


def _crossed(block: str, text: list[_Rule], gathered: str, *others: str | tuple[str, str]) -> list[_Rule]:
    """Blocks with a cross-attention of their own: its output projection reads what was ``gathered`` of the text."""
    return text + _rules(block, "image", [gathered], others)


_UNET_BLOCK = "{b}.transformer_blocks.{n}"
_UNET = _crossed(
    _UNET_BLOCK,
    _shared(_UNET_BLOCK, r"attn2\.to_[kv]", None),
    "attn2.to_out.0",
    "attn2.to_q",
    (r"attn1\.to_[qkv]", "attn1.to_q"),
    "attn1.to_out.0",
    "ff.net.0.proj",
)
_SD3 = _rules("joint_blocks.{n}.context_block", "text", ["attn.qkv", "mlp.fc1"], ["attn.proj"])
_SD3 += _rules("joint_blocks.{n}.x_block", "image", ["attn.proj"], ["attn.qkv", "mlp.fc1"], ["mlp.fc2"])
_FLUX_DOUBLE = _rules("double_blocks.{n}", "text", ["txt_attn.qkv", "txt_mlp.0"], ["txt_attn.proj"])
_FLUX_DOUBLE += _rules("double_blocks.{n}", "image", ["img_attn.proj"], ["img_attn.qkv", "img_mlp.0"])
_FLUX = _FLUX_DOUBLE + _rules("single_blocks.{n}", "text", [], ["linear1"])
_QWEN = _rules(
    "transformer_blocks.{n}", "text", [(r"attn\.add_[qkv]_proj", "attn.add_q_proj"), "txt_mlp.net.0.proj"],
    ["attn.to_add_out"],
)  # fmt: skip
_QWEN += _rules(
    "transformer_blocks.{n}", "image", ["attn.to_out.0"], [(r"attn\.to_[qkv]", "attn.to_q"), "img_mlp.net.0.proj"]
)
_LUMINA_TEXT = ["attention.qkv", (r"feed_forward\.w[13]", "feed_forward.w1")]
_LUMINA = _rules("context_refiner.{n}", "text", _LUMINA_TEXT) + _rules("layers.{n}", "text", _LUMINA_TEXT)
_LUMINA += _rules("layers.{n}", "tail", ["attention.out"])
_WAN = _crossed(
    "blocks.{n}",
    _shared("blocks.{n}", r"cross_attn\.[kv]", "blocks.0.cross_attn.k"),
    "cross_attn.o",
    "cross_attn.q",
    (r"self_attn\.[qkv]", "self_attn.q"),
    "self_attn.o",
    "ffn.0",
)
_LTXV = _crossed(
    "transformer_blocks.{n}",
    _shared("transformer_blocks.{n}", r"attn2\.to_[kv]", "transformer_blocks.0.attn2.to_k"),
    "attn2.to_out.0",
    "attn2.to_q",
    (r"attn1\.to_[qkv]", "attn1.to_q"),
    "attn1.to_out.0",
    "ff.net.0.proj",
)
_PIXART = _crossed(
    "blocks.{n}",
    _shared("blocks.{n}", r"cross_attn\.kv_linear", "blocks.0.cross_attn.kv_linear"),
    "cross_attn.proj",
    "cross_attn.q_linear",
    "attn.qkv",
    "attn.proj",
    "mlp.fc1",
)
_ANIMA = _crossed(
    "blocks.{n}",
    _shared("blocks.{n}", r"cross_attn\.[kv]_proj", "blocks.0.cross_attn.k_proj"),
    "cross_attn.output_proj",
    "cross_attn.q_proj",
    (r"self_attn\.[qkv]_proj", "self_attn.q_proj"),
    "self_attn.output_proj",
    "mlp.layer1",
)
_AURA = _rules("double_layers.{n}", "text", [(r"attn\.w1[qkv]", "attn.w1q"), (r"mlpC\.c_fc[12]", "mlpC.c_fc1")])
_AURA += _rules(
    "double_layers.{n}", "image", ["attn.w2o"], [(r"attn\.w2[qkv]", "attn.w2q"), (r"mlpX\.c_fc[12]", "mlpX.c_fc1")]
)
_KREA_TEXT = [(r"attn\.(?:w[qkv]|gate)", "attn.wq"), (r"mlp\.(?:gate|up)", "mlp.gate")]
_KREA = _rules("txtfusion.refiner_blocks.{n}", "text", _KREA_TEXT) + _rules("blocks.{n}", "text", _KREA_TEXT)
_KREA += _rules("blocks.{n}", "tail", ["attn.wo"])

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
        if rule.shared:
            return _context(rule)
        groups = match.groupdict()
        block = int(groups["n"])
        if block > MAX_BLOCK:
            return None
        name = f"{rule.block}.{rule.probe}".format(**groups)
        # Rules alternate by block: all parts of block 0, then those of block 1; in a UNet from the middle outwards.
        order = (rule.tier, block, _place(groups.get("b")), rank)
        return Space(name, name, rule.tokens, rule.tier, order)
    return None


def _context(rule: _Rule) -> Space:
    return Space(CONTEXT, rule.probe, "text", 0, (0, 0, 0, 0))


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
        rule = next((rule for rule in _RULES.get(family, ()) if rule.shared), None)
        return _context(rule) if rule else None
    return space_of(family, name)
