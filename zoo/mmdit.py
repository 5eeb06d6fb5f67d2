"""The demo base: an SD3-class MMDiT, in the state-dict layout that ComfyUI's stock ``UNETLoader`` recognises.

Own code for training on a CPU; parity with ComfyUI's forward pass is a test. Architecture: Esser et al. 2024
(arXiv 2403.03206), figure 2: two token streams with their own weights, joint attention, adaLN-zero modulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class MMDiTConfig:
    """Sizes. ComfyUI derives depth = heads = hidden / 64 from the checkpoint, so only ``depth`` is free."""

    depth: int = 4
    channels: int = 16
    patch: int = 2
    context_dim: int = 384
    pooled_dim: int = 384
    context_tokens: int = 24
    max_grid: int = 16

    @property
    def hidden(self) -> int:
        return 64 * self.depth


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: (B, L, C) with (B, C) shift and scale."""
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


def timestep_embedding(t: Tensor, dim: int = 256, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of t (B,) in 0..1000 -> (B, dim): cosines first, then sines."""
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    args = t.float()[:, None] * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


def sincos_grid(hidden: int, size: int) -> Tensor:
    """2-D sine/cosine position table (1, size*size, hidden)."""
    omega = 1.0 / 10000 ** (torch.arange(hidden // 4, dtype=torch.float64) / (hidden / 4))
    line = torch.arange(size, dtype=torch.float64)[:, None] * omega
    line = torch.cat([line.sin(), line.cos()], dim=1)
    rows = line[:, None, :].expand(size, size, -1)
    cols = line[None, :, :].expand(size, size, -1)
    return torch.cat([cols, rows], dim=-1).reshape(1, size * size, hidden).float()


class Embedder(nn.Module):
    """Two-layer MLP from a vector to the modulation width."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class RMSScale(nn.Module):
    """Holds the learned scale of the query/key RMS norm (Esser et al., section 5.3.2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), 1e-6)


class Attention(nn.Module):
    """qkv and output projection of one stream; the attention itself is joint and lives in ``JointBlock``."""

    def __init__(self, hidden: int, pre_only: bool):
        super().__init__()
        self.qkv = nn.Linear(hidden, 3 * hidden)
        if not pre_only:
            self.proj = nn.Linear(hidden, hidden)
        self.ln_q = RMSScale(64)
        self.ln_k = RMSScale(64)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, C) -> q, k, v of (B, heads, L, 64)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 64)).permute(2, 0, 3, 1, 4)
        return self.ln_q(q), self.ln_k(k), v


class Mlp(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden, 4 * hidden)
        self.fc2 = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class StreamBlock(nn.Module):
    """One stream of a joint block. ``pre_only``: the last text block, which only feeds the attention."""

    def __init__(self, hidden: int, pre_only: bool):
        super().__init__()
        self.pre_only = pre_only
        self.attn = Attention(hidden, pre_only)
        if not pre_only:
            self.mlp = Mlp(hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, (2 if pre_only else 6) * hidden))

    def before(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
        shift, scale, *rest = self.adaLN_modulation(c).chunk(2 if self.pre_only else 6, dim=1)
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return self.attn.heads(modulate(normed, shift, scale)), tuple(rest)

    def after(self, x: Tensor, attended: Tensor, mods: tuple[Tensor, ...]) -> Tensor:
        gate_msa, shift, scale, gate_mlp = mods
        x = x + gate_msa.unsqueeze(1) * self.attn.proj(attended)
        normed = modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale)
        return x + gate_mlp.unsqueeze(1) * self.mlp(normed)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, (B, heads, L, 64) each, written out.

    For short sequences on a CPU the backward pass of PyTorch's fused attention took a quarter of a training step.
    """
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.mT
    return torch.softmax(scores.float(), dim=-1).to(v.dtype) @ v


class JointBlock(nn.Module):
    def __init__(self, hidden: int, pre_only: bool):
        super().__init__()
        self.context_block = StreamBlock(hidden, pre_only)
        self.x_block = StreamBlock(hidden, False)

    def forward(self, context: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor]:
        ctx_qkv, ctx_mods = self.context_block.before(context, c)
        x_qkv, x_mods = self.x_block.before(x, c)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(ctx_qkv, x_qkv, strict=True))
        out = attend(q, k, v).transpose(1, 2).flatten(2)
        n = context.shape[1]
        x = self.x_block.after(x, out[:, n:], x_mods)
        if self.context_block.pre_only:
            return None, x
        return self.context_block.after(context, out[:, :n], ctx_mods), x


class FinalLayer(nn.Module):
    def __init__(self, hidden: int, out: int):
        super().__init__()
        self.linear = nn.Linear(hidden, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale))


class PatchEmbed(nn.Module):
    def __init__(self, cfg: MMDiTConfig):
        super().__init__()
        self.proj = nn.Conv2d(cfg.channels, cfg.hidden, cfg.patch, stride=cfg.patch)


class MMDiT(nn.Module):
    """``forward(x, t, context, pooled) -> velocity``.

    x (B, 16, H, W) noisy latents, t (B,) in 0..1 (1 = pure noise), context (B, L, 384), pooled (B, 384);
    returns the flow velocity noise − clean, (B, 16, H, W).
    """

    def __init__(self, cfg: MMDiTConfig | None = None):
        super().__init__()
        self.cfg = cfg = cfg or MMDiTConfig()
        h = cfg.hidden
        self.x_embedder = PatchEmbed(cfg)
        self.t_embedder = Embedder(256, h)
        self.y_embedder = Embedder(cfg.pooled_dim, h)
        self.context_embedder = nn.Linear(cfg.context_dim, h)
        self.register_buffer("pos_embed", sincos_grid(h, cfg.max_grid))
        self.joint_blocks = nn.ModuleList(JointBlock(h, i == cfg.depth - 1) for i in range(cfg.depth))
        self.final_layer = FinalLayer(h, cfg.patch**2 * cfg.channels)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        for embedder in (self.t_embedder, self.y_embedder):
            for layer in (embedder.mlp[0], embedder.mlp[2]):
                nn.init.normal_(layer.weight, std=0.02)
        # adaLN-zero: every block starts as the identity.
        for block in self.joint_blocks:
            for stream in (block.context_block, block.x_block):
                nn.init.zeros_(stream.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def positions(self, h: int, w: int) -> Tensor:
        """Centre crop of the position table, (1, h*w, hidden)."""
        size = self.cfg.max_grid
        top, left = (size - h) // 2, (size - w) // 2
        grid = self.pos_embed.unflatten(1, (size, size))[:, top : top + h, left : left + w]
        return grid.flatten(1, 2)

    def embed_patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, tokens, hidden); a reshape and a linear, faster than a convolution on a CPU."""
        b, c, h, w = x.shape
        p = self.cfg.patch
        tokens = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)
        return F.linear(tokens, self.x_embedder.proj.weight.flatten(1), self.x_embedder.proj.bias)

    def unpatchify(self, tokens: Tensor, h: int, w: int) -> Tensor:
        b, p, c = tokens.shape[0], self.cfg.patch, self.cfg.channels
        return tokens.reshape(b, h, w, p, p, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h * p, w * p)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        h, w = x.shape[-2] // self.cfg.patch, x.shape[-1] // self.cfg.patch
        tokens = self.embed_patches(x) + self.positions(h, w)
        c = self.t_embedder(timestep_embedding(t * 1000)) + self.y_embedder(pooled)
        ctx = self.context_embedder(context)
        for block in self.joint_blocks:
            ctx, tokens = block(ctx, tokens, c)
        return self.unpatchify(self.final_layer(tokens, c), h, w)
