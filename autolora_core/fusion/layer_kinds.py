"""What part of a block a layer is, the same word for UNets and transformers: what a universal gate goes by."""

from __future__ import annotations

import re

OTHER = "other"
# The first that matches the end of a module's name. Names of diffusers, BFL, SD3, Wan, Qwen-Image and PixArt.
_KINDS = (
    ("modulation", r"(adaLN_modulation\.\d|(\w+_)?mod(ulation)?(\.lin|\.\d)?|norm\d?(_context)?\.linear)"),
    ("attention_in", r"(to_(q|k|v|qkv)|(q|k|v|qkv)(_proj)?|add_(q|k|v)_proj|qkv_linear|q_linear|kv_linear)"),
    ("attention_out", r"(to_out(\.0)?|attn\d?\.proj|(img|txt)_attn\.proj|(self|cross)_attn\.o|to_add_out|out_proj)"),
    (
        "feedforward_in",
        r"(mlp\.fc1|(img|txt)_mlp\.0|mlp\.0|ff(_context)?\.net\.0\.proj|ffn\.0|\w*mlp\.net\.0\.proj|w1|w3)",
    ),
    ("feedforward_out", r"(mlp\.fc2|(img|txt)_mlp\.2|mlp\.2|ff(_context)?\.net\.2|ffn\.2|\w*mlp\.net\.2|w2)"),
)
_PATTERNS = tuple((kind, re.compile(rf"(?:.*\.)?{pattern}")) for kind, pattern in _KINDS)


def kind_of(module: str) -> str:
    """The kind of a module by its name in the base model."""
    return next((kind for kind, pattern in _PATTERNS if pattern.fullmatch(module)), OTHER)
