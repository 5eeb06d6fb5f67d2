"""Recognises the base model family of a LoRA from its module names and widths, and says why.

Names are compared with dots written as underscores, so one clue serves dotted and kohya spellings. Widths settle what
names leave open. Metadata is only secondary evidence: trainers and merges often leave a wrong or stale line in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from .stated_base import stated_family

Shape = tuple[int, ...]
# family -> width of its layers -> variant: bases of one name that no LoRA of another width fits
SIZES: Mapping[str, Mapping[int, str]] = {
    "sd3": {1536: "medium", 2432: "large"},
    "flux2": {6144: "dev", 4096: "klein-9b", 3072: "klein-4b"},
    "ltxv": {2048: "2b", 4096: "13b"},
    "wan": {1536: "1.3b", 3072: "5b", 5120: "14b"},
}


@dataclass(frozen=True)
class Family:
    """``name`` is ``"unknown"`` when nothing decides; ``evidence`` holds one sentence for each reason.

    ``among``: every family that the diffusion model's layers fit, ``name`` too; empty when they say nothing. ``width``:
    input width of the blocks' layers (of UNets: of the text states read), which tells bases of one family apart.
    """

    name: str
    variant: str | None = None
    evidence: list[str] = field(default_factory=list)
    among: frozenset[str] = frozenset()
    width: int | None = None


class Layers:
    """The modules of a file as (underscored path, layer shape) pairs, with questions the clues ask of them."""

    def __init__(self, layers: Iterable[tuple[str, Shape]]):
        self.raw = [(path, shape) for path, shape in layers]
        self._items = [(path.replace(".", "_"), shape) for path, shape in self.raw]

    def __len__(self) -> int:
        return len(self._items)

    def example(self, pattern: str) -> str | None:
        """The first raw path in which the pattern occurs."""
        regex = re.compile(pattern)
        for (path, _), (flat, _) in zip(self.raw, self._items, strict=True):
            if regex.search(flat):
                return path
        return None

    def width(self, pattern: str, axis: int = 1) -> int | None:
        """The input (axis 1) or output (axis 0) width of the first layer in which the pattern occurs."""
        regex = re.compile(pattern)
        for flat, shape in self._items:
            if len(shape) > axis and regex.search(flat):
                return shape[axis]
        return None

    def highest(self, pattern: str) -> int:
        """The highest block number the pattern's group captures, or -1."""
        regex = re.compile(pattern)
        found = (regex.search(flat) for flat, _ in self._items)
        return max((int(match.group(1)) for match in found if match), default=-1)

    def blocks(self) -> int:
        """How many different blocks, by their names up to the first number."""
        found = (re.match(r"[a-z_]*?_\d+(?=_)", flat) for flat, _ in self._items)
        return len({match.group() for match in found if match})


def recognise(layers: Layers, text_layers: Layers, metadata: Mapping[str, str]) -> Family:
    """The family of a file from its diffusion-model layers, its text-encoder layers and its metadata."""
    family = _from_names(layers) if len(layers) else _text_only(text_layers)
    hint = stated_family(metadata)
    if hint is None:
        return family
    name, line = hint
    if family.name == name:
        return replace(family, evidence=[*family.evidence, f"The metadata agrees: {line}."])
    if family.name == "unknown" or (family.name, name) in _METADATA_DECIDES:
        why = f"The layers alone do not decide; the metadata says {line}."
        among = family.among | {name} if family.among else family.among
        return Family(name, None, [*family.evidence, why], among, family.width)
    return replace(family, evidence=[*family.evidence, f"The metadata says otherwise ({line}); layers win."])


def recognise_network(layers: Layers) -> Family:
    """The family of a whole base model, where what is absent tells as well: a file may lack it, a network may not."""
    found = recognise(layers, Layers([]), {})
    if found.name in ("sd15", "sd2") and len(found.among) > 1:  # a UNet that does not read text is none of these
        return Family("unknown", None, ["No layer of this UNet reads text states."])
    return replace(found, among=frozenset({found.name}) if found.among else found.among)


def _from_names(layers: Layers) -> Family:
    for pattern, decide in _CLUES:
        path = layers.example(pattern)
        if path is not None:
            name, variant, why, *more = decide(layers)
            fits = more[0] if more else _Fits()
            among = frozenset() if fits.others is None else frozenset((name, *fits.others))
            return Family(name, variant, [f"It has layers such as {path!r}.", *why], among, fits.width)
    return Family("unknown", None, [f"No known base has layers such as {layers.raw[0][0]!r}."])


@dataclass(frozen=True)
class _Fits:
    """``others``: families that the layers fit as well; None when they decide nothing at all."""

    width: int | None = None
    others: tuple[str, ...] | None = ()


Verdict = tuple[str, str | None, list[str]] | tuple[str, str | None, list[str], _Fits]


def _plain(name: str, variant: str | None = None) -> Callable[[Layers], Verdict]:
    return lambda layers: (name, variant, [f"Only {name} names its layers so."])


def _by_width(name: str, pattern: str, variants: Mapping[int, str | None]) -> Callable[[Layers], Verdict]:
    def decide(layers: Layers) -> Verdict:
        width = layers.width(pattern)
        why = [f"Its width is {width}."] if width else []
        return name, variants.get(width) if width else None, why, _Fits(width)

    return decide


def _unet(layers: Layers) -> Verdict:
    text = layers.width(r"attn2_to_[kv]$")
    by_text = {768: ("sd15", None), 1024: ("sd2", None), 2048: ("sdxl", None), 1280: ("sdxl", "refiner")}
    if text in by_text:
        name, variant = by_text[text]
        return name, variant, [f"Its cross-attention reads text states of width {text}, as {name} does."], _Fits(text)
    deep = layers.example(r"_transformer_blocks_[1-9]") or layers.example(r"^(label_emb|add_embedding|class_embedding)")
    if deep:
        return "sdxl", None, [f"{deep!r} exists in SDXL only."]
    high = layers.example(
        r"^(input_blocks_(1|2|9|10|11)_1_|output_blocks_(9|10|11)_|down_blocks_(0_attentions|3)|up_blocks_3)"
    )
    if high is None:
        return "sd15", None, ["No layer tells SD1.5 from SDXL; SD1.5 is assumed."], _Fits(others=("sd2", "sdxl"))
    conv = [shape for path, shape in layers.raw if path.endswith("proj_in") and len(shape) >= 2]
    if conv and len(conv[0]) == 2 and "." in high:
        why = f"{high!r} exists in SD1/SD2 only, and its proj_in is a linear layer as in SD2."
        return "sd2", None, [why], _Fits(others=("sd15",))
    why = f"{high!r} exists in SD1.x and SD2.x; SD1.5 is assumed, as no layer reads text."
    return "sd15", None, [why], _Fits(others=("sd2",))


def _sd3_or_emoji(layers: Layers) -> Verdict:
    width = layers.width(_SD3_SELF_INPUT)
    if width is None:
        return "sd3", None, ["No layer shows the width."], _Fits(others=("emoji",))
    if width == 256:
        return "emoji", None, ["Its width is 256, that of the demo base model."], _Fits(width)
    variant = SIZES["sd3"].get(width)
    if variant == "medium" and layers.example(r"attn2_"):
        variant = "3.5-medium"
    return "sd3", variant, [f"Its width is {width}."], _Fits(width)


def _flux_like(layers: Layers) -> Verdict:
    width = layers.width(_FLUX_INPUT)
    ratios = [
        (layers.width(r"single_blocks_\d+_linear1$|to_qkv_mlp_proj$", 0), 9),
        (layers.width(r"double_blocks_\d+_(img|txt)_mlp_0$|ff(_context)?_linear_in$", 0), 6),
        (layers.width(r"single_blocks_\d+_linear2$|single_transformer_blocks_\d+_attn_to_out$"), 4),
    ]
    gated = width is not None and any(size == ratio * width for size, ratio in ratios)
    if gated or layers.example(r"to_qkv_mlp_proj$|ff_linear_in$|stream_modulation") or width in (4096, 6144):
        variant = SIZES["flux2"].get(width or 0)
        return "flux2", variant, [f"Its width is {width} and its feed-forward is gated, as in FLUX.2."], _Fits(width)
    doubles = layers.highest(r"^(?:double|transformer)_blocks_(\d+)_")
    singles = layers.highest(r"^single_(?:transformer_)?blocks_(\d+)_")
    if doubles > 18 or singles > 37:
        reach = max(doubles, singles)
        why = f"It reaches block {reach}, which HunyuanVideo has and FLUX has not."
        return "hunyuan_video", None, [why], _Fits(width)
    others = ("chroma", "flux2", "hunyuan_video")
    why = f"Its width is {width}, as in FLUX.1." if width else "FLUX-like blocks; no layer shows the width."
    if (doubles, singles) in ((18, 37), (18, -1), (-1, 37)) and layers.blocks() > FEW_BLOCKS:
        others = ("chroma",)  # it ends where FLUX ends: nobody leaves out just the last blocks of a longer model
    return "flux", None, [why], _Fits(width, others)


def _joint_transformer(layers: Layers) -> Verdict:
    """diffusers' ``transformer_blocks.N.attn.*`` without single blocks: SD3, the demo base, Qwen-Image or FLUX."""
    width = layers.width(_SD3_SELF_INPUT)
    if width is None:
        name, variant, why, _ = _sd3_or_emoji(layers)
        return name, variant, why, _Fits(others=("emoji", "flux", "chroma", "qwen_image", "hunyuan_video", "flux2"))
    if width != 3072:
        return _sd3_or_emoji(layers)
    others = ("chroma", "hunyuan_video", "flux2")
    if layers.example(r"transformer_blocks_\d+_(norm1_context|ff_context|ff_net)"):
        why = "Its width is 3072 and it has FLUX's feed-forward or modulation names."
        return "flux", None, [why], _Fits(width, others)
    last = layers.highest(r"(?:^|_)transformer_blocks_(\d+)_")
    reach = f"reaches block {last} (FLUX ends at 18)" if last > 18 else "has no single blocks"
    alike = ("flux", *others) if last <= 18 else ("hunyuan_video",) if last <= 19 else ()
    return "qwen_image", None, [f"Its width is 3072 and it {reach}."], _Fits(width, alike)


def _two_attentions(layers: Layers) -> Verdict:
    width = layers.width(r"transformer_blocks_\d+_attn1_to_[qkv]$|transformer_blocks_\d+_attn2_to_q$")
    if width == 1152:
        return "pixart", None, ["Its width is 1152, as in PixArt."], _Fits(width)
    if width == 2240:
        return "sana", None, ["Its width is 2240, as in Sana."], _Fits(width)
    variant = SIZES["ltxv"].get(width or 0)
    # models with such names are many; of another width it may be any
    return "ltxv", variant, [f"Its width is {width}, as in LTX-Video."], _Fits(width, () if variant else None)


def _lumina_like(layers: Layers) -> Verdict:
    width = layers.width(r"attention_(qkv|to_[qkv]|out|to_out_0)$|feed_forward_w[13]$|adaLN")
    why = f"Its width is {width} (Z-Image 3840, Lumina 2 2304)."
    return ("lumina2" if width == 2304 else "z_image"), None, [why], _Fits(width, () if width in (2304, 3840) else None)


_SD3_SELF_INPUT = (
    r"(x_block|context_block)_(attn2?_qkv|mlp_fc1)$|attn_(to_[qkv]|add_[qkv]_proj)$|ff(_context)?_net_0_proj$"
    r"|attn_proj$|to_out_0$|to_add_out$|adaLN_modulation_1$|norm1(_context)?_linear$"
)
_FLUX_INPUT = (
    r"attn_qkv$|qkv_lora[12]?$|linear1$|attn_(to_[qkv]|add_[qkv]_proj)$|attn_proj$|proj_mlp$|mod_lin$|modulation_lin$"
    r"|(img|txt)_mlp_0$|to_qkv_mlp_proj$|ff_linear_in$|single_blocks_\d+_(qkv|norm_linear)$"
)
_HUNYUAN_INPUT = _FLUX_INPUT + r"|(img|txt)_(mlp_fc1|attn_proj)$"
_WAN_INPUT = r"self_attn_[qkvo]$|attn1_to_[qkv]$|cross_attn_[qo]$|attn2_to_q$|ffn_0$|ffn_net_0_proj$"

FEW_BLOCKS = 8  # a file of no more blocks does not show where its base ends
# pairs whose layers are alike, so that the metadata may choose the second
_METADATA_DECIDES = {("flux", "chroma"), ("sd15", "sd2"), ("qwen_image", "flux"), ("flux", "qwen_image")}

# (pattern found in an underscored path, who decides then). The first found wins, so the surest signs come first.
_CLUES: tuple[tuple[str, Callable[[Layers], Verdict]], ...] = (
    (r"^(noise_refiner|context_refiner|layers)_\d+_(attention|attn|feed_forward|adaLN)", _lumina_like),
    (r"^unet:\d+$", lambda layers: (
        "sd15", None, ["cloneofsimo's numbered layers; their shapes are those of SD1.x."], _Fits(others=("sd2",)))),
    (r"^(input_blocks|output_blocks|middle_block|down_blocks|up_blocks|mid_block|conv_in)_", _unet),
    (r"^(time|add|class)_embedding_linear_", _unet),
    (r"^joint_blocks_\d+_(x|context)_block", _sd3_or_emoji),
    (r"txtfusion|text_fusion|blocks_\d+_attn_(w[qkvo]|gate)$|attn_to_gate$", _by_width("krea2", r"attn_w[qkvo]$", {})),
    (r"^(double_layers|single_layers|joint_transformer_blocks)_", _plain("aura_flow")),
    (r"^(double_stream_blocks|single_stream_blocks)_", _plain("hidream")),
    (r"individual_token_refiner|(img|txt)_mlp_fc[12]|(img|txt)_mod_linear|single_blocks_\d+_modulation_linear",
     _by_width("hunyuan_video", _HUNYUAN_INPUT, {})),
    (r"transformer_blocks_\d+_(img|txt)_(mlp_net|mod_1)", _plain("qwen_image")),
    (r"distilled_guidance_layer", _by_width("chroma", _FLUX_INPUT, {})),
    (r"^(double_blocks|single_blocks|single_transformer_blocks)_", _flux_like),
    (r"^transformer_blocks_\d+_attn_", _joint_transformer),
    (r"^transformer_blocks_\d+_attn[12]_", _two_attentions),
    (r"^transformer_blocks_\d+_(ff|norm1)", _joint_transformer),
    (r"^blocks_\d+_cross_attn_(q|kv)_linear", _plain("pixart")),
    (r"^llm_adapter|blocks_\d+_(self|cross)_attn_([qkv]|output)_proj|blocks_\d+_mlp_layer[12]|adaln_modulation_(self|cross)",
     _by_width("anima", r"self_attn_([qkv]|output)_proj$", {})),
    (r"^blocks_\d+_(attn1_Wqkv|attn2_kv_proj|attn2_q_proj)", _plain("hunyuan_dit")),
    (r"^blocks_\d+_attn_(qkv_x|qkv_y)", _plain("mochi")),
    (r"^blocks_\d+_((self_attn|cross_attn)_[qkvo](_img)?$|ffn_|attn[12]_(to|add))",
     _by_width("wan", _WAN_INPUT, SIZES["wan"])),
)  # fmt: skip


def _text_only(text_layers: Layers) -> Family:
    if not len(text_layers):
        return Family("unknown", None, ["It has no layer of any model."])
    path = text_layers.raw[0][0]
    why = f"It has text encoder layers only, such as {path!r}; several bases share that text encoder."
    return Family("unknown", None, [why])
