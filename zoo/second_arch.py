"""A second architecture on the same pictures: a small Flux-class transformer, for what must hold beyond the demo base.

Names, streams and blocks are those of FLUX.1 (Black Forest Labs 2024): double blocks with two streams, then single
blocks in which one matrix makes query, key, value and the MLP's first layer, and one takes attention and MLP back;
rotary positions (Su et al. 2021, arXiv 2104.09864). Own code, trained by ``zoo.train_second``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mmdit import Embedder, FinalLayer, RMSScale, attend, modulate, timestep_embedding

HEAD = 64
AXES = (32, 32)  # channels of a head that turn with the row, and with the column


@dataclass(frozen=True)
class FluxConfig:
    """Sizes; ``hidden`` is a multiple of 64."""

    double: int = 1
    single: int = 4
    hidden: int = 256
    channels: int = 16
    patch: int = 2
    context_dim: int = 384
    pooled_dim: int = 384


class Modulation(nn.Module):
    """adaLN: ``count`` vectors (B, hidden) from the conditioning."""

    def __init__(self, hidden: int, count: int):
        super().__init__()
        self.count, self.lin = count, nn.Linear(hidden, count * hidden)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(c)).chunk(self.count, dim=1)


class QueryKeyNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.query_norm, self.key_norm = RMSScale(HEAD), RMSScale(HEAD)

    def forward(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, 3·hidden) -> q, k, v of (B, heads, L, 64)."""
        q, k, v = qkv.unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        return self.query_norm(q), self.key_norm(k), v


class StreamAttention(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.qkv, self.norm, self.proj = nn.Linear(hidden, 3 * hidden), QueryKeyNorm(), nn.Linear(hidden, hidden)


def mlp(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU("tanh"), nn.Linear(4 * hidden, hidden))


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def rotations(side: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (tokens + side², 32): text stands at the origin, image tokens at their row and column."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], -1).float()
    places = torch.cat([torch.zeros(tokens, 2), places])
    angles = [places[:, i : i + 1] / 10000 ** (torch.arange(0, axis, 2).float() / axis) for i, axis in enumerate(AXES)]
    turned = torch.cat(angles, -1)
    return turned.cos(), turned.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, heads, L, 64), neighbouring channels turned as a pair."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


class DoubleBlock(nn.Module):
    """Text and image with their own weights, attention over both."""

    def __init__(self, hidden: int):
        super().__init__()
        self.img_mod, self.txt_mod = Modulation(hidden, 6), Modulation(hidden, 6)
        self.img_attn, self.txt_attn = StreamAttention(hidden), StreamAttention(hidden)
        self.img_mlp, self.txt_mlp = mlp(hidden), mlp(hidden)

    def forward(self, img: Tensor, txt: Tensor, c: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        streams = ((txt, self.txt_mod, self.txt_attn), (img, self.img_mod, self.img_attn))
        mods = [mod(c) for _, mod, _ in streams]
        heads = [
            own.norm(own.qkv(modulate(normed(x), m[0], m[1]))) for (x, _, own), m in zip(streams, mods, strict=True)
        ]
        q, k, v = (torch.cat(parts, 2) for parts in zip(*heads, strict=True))
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v).transpose(1, 2).flatten(2)
        length = txt.shape[1]
        new = []
        for (x, _, own), m, part, feed in zip(
            streams, mods, (out[:, :length], out[:, length:]), (self.txt_mlp, self.img_mlp), strict=True
        ):
            x = x + m[2].unsqueeze(1) * own.proj(part)
            new.append(x + m[5].unsqueeze(1) * feed(modulate(normed(x), m[3], m[4])))
        return new[1], new[0]


class SingleBlock(nn.Module):
    """One stream, attention and MLP side by side."""

    def __init__(self, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.modulation, self.norm = Modulation(hidden, 3), QueryKeyNorm()
        self.linear1, self.linear2 = nn.Linear(hidden, 7 * hidden), nn.Linear(5 * hidden, hidden)

    def forward(self, x: Tensor, c: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(c)
        qkv, feed = self.linear1(modulate(normed(x), shift, scale)).split((3 * self.hidden, 4 * self.hidden), -1)
        q, k, v = self.norm(qkv)
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v).transpose(1, 2).flatten(2)
        return x + gate.unsqueeze(1) * self.linear2(torch.cat([out, F.gelu(feed, approximate="tanh")], -1))


class SmallFlux(nn.Module):
    """``forward(x, t, context, pooled) -> velocity``, of the same shapes as :class:`zoo.mmdit.MMDiT`."""

    def __init__(self, cfg: FluxConfig | None = None):
        super().__init__()
        self.cfg = cfg = cfg or FluxConfig()
        h, pixels = cfg.hidden, cfg.channels * cfg.patch**2
        self.img_in, self.txt_in = nn.Linear(pixels, h), nn.Linear(cfg.context_dim, h)
        self.time_in, self.vector_in = Embedder(256, h), Embedder(cfg.pooled_dim, h)
        self.double_blocks = nn.ModuleList(DoubleBlock(h) for _ in range(cfg.double))
        self.single_blocks = nn.ModuleList(SingleBlock(h) for _ in range(cfg.single))
        self.final_layer = FinalLayer(h, pixels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # Every block starts as the identity, the output as zero.
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.lin.weight)
        nn.init.zeros_(self.final_layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        b, channels, height, width = x.shape
        p, length = self.cfg.patch, context.shape[1]
        h, w = height // p, width // p
        img = self.img_in(x.reshape(b, channels, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w, -1))
        txt = self.txt_in(context)
        c = self.time_in(timestep_embedding(t * 1000)) + self.vector_in(pooled)
        cos, sin = rotations(h, length)
        for block in self.double_blocks:
            img, txt = block(img, txt, c, cos, sin)
        both = torch.cat([txt, img], 1)
        for block in self.single_blocks:
            both = block(both, c, cos, sin)
        out = self.final_layer(both[:, length:], c)
        return out.reshape(b, h, w, channels, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, channels, height, width)
