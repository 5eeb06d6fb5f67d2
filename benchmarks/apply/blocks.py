"""FLUX.1's two kinds of block with random weights, enough of them to time: norms, modulation, attention, activations.

``run(name, x)`` stands for every linear layer, so that a caller decides how LoRAs are applied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, rms_norm, scaled_dot_product_attention

WIDTH, HEADS, IMAGE, TEXT = 3072, 24, 4096, 512
Run = Callable[[str, Tensor], Tensor]


def _heads(x: Tensor) -> Tensor:
    """(tokens, width) → (1, heads, tokens, width / heads)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(0, 1)[None]


def _rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions, as ComfyUI computes them: pairs, in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = angles
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2).to(x.dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    q, k = (_rotated(rms_norm(part, part.shape[-1:]), angles) for part in (q, k))
    return scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)


def _modulated(x: Tensor, knobs: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + knobs[0]) + knobs[1]


def angles(device: str, tokens: int = IMAGE + TEXT) -> tuple[Tensor, Tensor]:
    turn = torch.outer(torch.arange(tokens, device=device), torch.logspace(0, -4, WIDTH // HEADS // 2, device=device))
    return turn.cos(), turn.sin()


def single(x: Tensor, knobs: Tensor, turn: tuple[Tensor, Tensor], run: Run) -> Tensor:
    """``x`` (4608, 3072); ``knobs`` (3, 3072)."""
    qkv, mlp = run("single.linear1", _modulated(x, knobs)).split([3 * WIDTH, 4 * WIDTH], -1)
    mixed = _attention(*(_heads(part) for part in qkv.chunk(3, -1)), turn)
    out = run("single.linear2", torch.cat([mixed, gelu(mlp, approximate="tanh")], -1))
    return x + knobs[2] * out


def double(x: Tensor, knobs: Tensor, turn: tuple[Tensor, Tensor], run: Run) -> Tensor:
    """``x`` (4608, 3072), text first; ``knobs`` (6, 3072), of both streams."""
    streams = dict(zip(("txt", "img"), x.split([TEXT, IMAGE]), strict=True))
    parts = [run(f"{name}.qkv", _modulated(own, knobs[:2])).chunk(3, -1) for name, own in streams.items()]
    mixed = _attention(*(_heads(torch.cat(part)) for part in zip(*parts, strict=True)), turn)
    out = []
    for (name, own), attended in zip(streams.items(), mixed.split([TEXT, IMAGE]), strict=True):
        own = own + knobs[2] * run(f"{name}.proj", attended)
        inner = gelu(run(f"{name}.mlp.0", _modulated(own, knobs[3:5])), approximate="tanh")
        out.append(own + knobs[5] * run(f"{name}.mlp.2", inner))
    return torch.cat(out)
