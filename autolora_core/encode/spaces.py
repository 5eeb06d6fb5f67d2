"""Through which modules of a base family a LoRA can be asked what it does to a prompt, and which share one input.

A LoRA's update can be asked directly: apply it to the input that its module gets for the prompt. Modules that read one
input together form a *space*; their updates are stacked into one matrix. There are two kinds of input. *Text*: the
prompt's own tokens, as the cross-attention of UNets and the text stream of two-stream transformers read them. *Image*:
the picture's tokens, which the prompt has reached through attention and modulation.

On the demo base's LoRAs all of them together find more than any choice of them, text or image, early or late
(docs/retrieval.md); where a base is too wide to keep all, attention of early blocks comes first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    picture behind the text's.
    """

    name: str
    probe: str | None
    tokens: str = "text"
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
    recorded at ``block.probe``; all ``shared`` ones read one and the same text. ``wide`` inputs come last."""

    block: str
    modules: str
    probe: str | None
    tokens: str = "text"
    wide: bool = False
    shared: bool = False

    @property
    def pattern(self) -> str:
        place = r"(?P<b>(?:(?:input|output)_blocks\.\d+|middle_block)\.1)"
        block = re.escape(self.block).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{b\}", place)
        return rf"{block}\.(?:{self.modules})"


Part = str | tuple[str, str]  # the last names of one module, or (pattern of those that share an input, one to record)


def _rules(streams: Mapping[str, str], parts: Sequence[tuple[str, Part]], wide: Sequence[tuple[str, Part]] = ()):
    """``streams``: tokens → block; ``parts``: (tokens, part) in order of preference."""
    found = []
    for late, group in ((False, parts), (True, wide)):
        for tokens, part in group:
            modules, probe = part if isinstance(part, tuple) else (re.escape(part), part)
            found.append(_Rule(streams[tokens], modules, probe, tokens, late))
    return found


def _crossed(block: str, modules: str, probe: str | None, parts: Sequence[Part], wide: str) -> list[_Rule]:
    """Blocks with a cross-attention whose keys and values all read one text; ``parts`` read the picture."""
    image = [("image", part) for part in parts]
    return [_Rule(block, modules, probe, shared=True), *_rules({"image": block}, image, [("image", wide)])]


_DIFFUSERS: tuple[Part, ...] = (
    "attn2.to_out.0",
    (r"attn1\.to_[qkv]", "attn1.to_q"),
    "attn2.to_q",
    "attn1.to_out.0",
    "ff.net.0.proj",
)
_UNET = _crossed("{b}.transformer_blocks.{n}", r"attn2\.to_[kv]", None, _DIFFUSERS, "ff.net.2")
_SD3 = _rules(
    {"text": "joint_blocks.{n}.context_block", "image": "joint_blocks.{n}.x_block"},
    [("text", "attn.qkv"), ("image", "attn.proj"), ("image", "attn.qkv"), ("text", "attn.proj"), ("text", "mlp.fc1"),
     ("image", "mlp.fc1")],
    [("text", "mlp.fc2"), ("image", "mlp.fc2")],
)  # fmt: skip
_FLUX_DOUBLE = _rules(
    {"text": "double_blocks.{n}", "image": "double_blocks.{n}"},
    [("text", "txt_attn.qkv"), ("image", "img_attn.proj"), ("image", "img_attn.qkv"), ("text", "txt_attn.proj"),
     ("text", "txt_mlp.0"), ("image", "img_mlp.0")],
    [("text", "txt_mlp.2"), ("image", "img_mlp.2")],
)  # fmt: skip
_FLUX = _FLUX_DOUBLE + _rules({"text": "single_blocks.{n}"}, [], [("text", "linear1")])
_QWEN = _rules(
    {"text": "transformer_blocks.{n}", "image": "transformer_blocks.{n}"},
    [("text", (r"attn\.add_[qkv]_proj", "attn.add_q_proj")), ("image", "attn.to_out.0"),
     ("image", (r"attn\.to_[qkv]", "attn.to_q")), ("text", "attn.to_add_out"), ("text", "txt_mlp.net.0.proj"),
     ("image", "img_mlp.net.0.proj")],
    [("text", "txt_mlp.net.2"), ("image", "img_mlp.net.2")],
)  # fmt: skip
_LUMINA_MLP = (r"feed_forward\.w[13]", "feed_forward.w1")
_LUMINA = _rules({"text": "context_refiner.{n}"}, [("text", "attention.qkv"), ("text", _LUMINA_MLP)]) + _rules(
    {"text": "layers.{n}", "tail": "layers.{n}"},
    [("text", "attention.qkv"), ("tail", "attention.out"), ("text", _LUMINA_MLP)],
    [("text", "feed_forward.w2")],
)
_WAN = _crossed(
    "blocks.{n}",
    r"cross_attn\.[kv]",
    "blocks.0.cross_attn.k",
    ["cross_attn.o", (r"self_attn\.[qkv]", "self_attn.q"), "cross_attn.q", "self_attn.o", "ffn.0"],
    "ffn.2",
)
_LTXV = _crossed(
    "transformer_blocks.{n}", r"attn2\.to_[kv]", "transformer_blocks.0.attn2.to_k", _DIFFUSERS, "ff.net.2"
)
_PIXART = _crossed(
    "blocks.{n}",
    r"cross_attn\.kv_linear",
    "blocks.0.cross_attn.kv_linear",
    ["cross_attn.proj", "attn.qkv", "cross_attn.q_linear", "attn.proj", "mlp.fc1"],
    "mlp.fc2",
)
_ANIMA = _crossed(
    "blocks.{n}",
    r"cross_attn\.[kv]_proj",
    "blocks.0.cross_attn.k_proj",
    ["cross_attn.output_proj", (r"self_attn\.[qkv]_proj", "self_attn.q_proj"), "cross_attn.q_proj",
     "self_attn.output_proj", "mlp.layer1"],
    "mlp.layer2",
)  # fmt: skip
_AURA = _rules(
    {"text": "double_layers.{n}", "image": "double_layers.{n}"},
    [("text", (r"attn\.w1[qkv]", "attn.w1q")), ("image", "attn.w2o"), ("image", (r"attn\.w2[qkv]", "attn.w2q")),
     ("text", (r"mlpC\.c_fc[12]", "mlpC.c_fc1")), ("image", (r"mlpX\.c_fc[12]", "mlpX.c_fc1"))],
)  # fmt: skip
_KREA_TEXT: list[tuple[str, Part]] = [
    ("text", (r"attn\.(?:w[qkv]|gate)", "attn.wq")),
    ("text", (r"mlp\.(?:gate|up)", "mlp.gate")),
]
_KREA = _rules({"text": "txtfusion.refiner_blocks.{n}"}, _KREA_TEXT) + _rules(
    {"text": "blocks.{n}", "tail": "blocks.{n}"}, [*_KREA_TEXT, ("tail", "attn.wo")]
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
        if rule.shared:
            return _context(rule)
        groups = match.groupdict()
        block = int(groups["n"])
        if block > MAX_BLOCK:
            return None
        name = f"{rule.block}.{rule.probe}".format(**groups)
        # Rules alternate by block: all parts of block 0, then those of block 1; in a UNet from the middle outwards.
        order = (int(rule.wide), block, _place(groups.get("b")), rank)
        return Space(name, name, rule.tokens, order)
    return None


def _context(rule: _Rule) -> Space:
    return Space(CONTEXT, rule.probe, order=(0, 0, 0, 0))


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
