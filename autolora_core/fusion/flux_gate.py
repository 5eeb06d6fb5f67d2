"""Layer names of the public FLUX gate, in the names that ComfyUI and Black Forest Labs use.

The gate was trained on DiffSynth's FLUX, whose layers are BFL's under other names: its converter renames the weights
one to one and permutes nothing. So the channel orders are BFL's, which are ComfyUI's: fused attention q, k, v;
``linear1`` q, k, v, mlp; modulation shift, scale, gate (twice in double blocks).
"""

from __future__ import annotations

import re

PUBLIC_PREFIX = "model_dict."
# Output channels in units of the hidden size, beside each name: the check that a renamed layer is the right one.
_DOUBLE = {
    "attn___{s}_to_qkv": ("{stream}_attn.qkv", 3),
    "attn___{s}_to_out": ("{stream}_attn.proj", 1),
    "ff_{s}___0": ("{stream}_mlp.0", 4),
    "ff_{s}___2": ("{stream}_mlp.2", 1),
    "norm1_{s}___linear": ("{stream}_mod.lin", 6),
}
_STREAMS = {"a": "img", "b": "txt"}
_SINGLE = {"to_qkv_mlp": ("linear1", 7), "proj_out": ("linear2", 1), "norm___linear": ("modulation.lin", 3)}

DOUBLE_LAYERS = {
    public.format(s=letter): ours.format(stream=stream)
    for letter, stream in _STREAMS.items()
    for public, (ours, _) in _DOUBLE.items()
}
SINGLE_LAYERS = {public: ours for public, (ours, _) in _SINGLE.items()}
_UNITS = {ours.format(stream=s): units for s in _STREAMS.values() for ours, units in _DOUBLE.values()} | dict(
    _SINGLE.values()
)
_STEM = re.compile(re.escape(PUBLIC_PREFIX) + r"(blocks|single_blocks)___(\d+)___(.+)")


def public_module(stem: str) -> str | None:
    """``model_dict.blocks___3___ff_a___0`` → ``double_blocks.3.img_mlp.0``; None when it is no such layer."""
    found = _STEM.fullmatch(stem)
    if not found:
        return None
    single = found[1] == "single_blocks"
    layer = (SINGLE_LAYERS if single else DOUBLE_LAYERS).get(found[3])
    return layer and f"{'single' if single else 'double'}_blocks.{int(found[2])}.{layer}"


def hidden_size(module: str, channels: int) -> float:
    """The FLUX hidden size that a layer of ``channels`` outputs speaks for; the same for every layer of one file."""
    return channels / _UNITS[module.split(".", 2)[2]]
