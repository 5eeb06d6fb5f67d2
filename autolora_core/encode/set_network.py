"""A masked set transformer over groups of tokens, with a linear path beside it.

Every token has its own map into the model's width (a module's sketch means nothing in another module's terms), a CLS
token reads them all, and absent tokens are masked for attention and for the pool. The linear path adds one linear
prediction a token: with the transformer's last layer at zero the network *is* a linear model, so what attention adds
must be earned. No causal mask: a set has no order. Pre-norm layers (Xiong et al., arXiv 2002.04745).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Groups = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SetConfig:
    """``groups``: name -> (tokens, numbers a token), in order. ``dim`` is the text tower's width."""

    groups: dict[str, tuple[int, int]]
    dim: int
    width: int = 128
    heads: int = 4
    layers: int = 2


class Layer(nn.Module):
    """Self-attention and MLP on (n, T, width); ``mask`` (n, T) is true where there is a token."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class SetNetwork(nn.Module):
    """``forward(groups) -> (n, dim)`` unit rows. A group that is not given counts as absent."""

    def __init__(self, config: SetConfig):
        super().__init__()
        self.config = config
        width, dim = config.width, config.dim
        self.inward, self.mark, self.linear = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for name, (tokens, numbers) in config.groups.items():
            self.inward[name] = nn.Parameter(torch.randn(tokens, numbers, width) * numbers**-0.5)
            self.mark[name] = nn.Parameter(torch.randn(tokens, width) * 0.02)
            self.linear[name] = nn.Parameter(torch.zeros(tokens, numbers, dim))
        self.cls = nn.Parameter(torch.randn(width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, groups: Groups) -> Tensor:
        first = next(iter(groups.values()))[0]
        rows, masks = [self.cls.expand(len(first), 1, -1)], [torch.ones(len(first), 1, dtype=torch.bool)]
        plain = torch.zeros(len(first), self.config.dim)
        for name in self.config.groups:
            if name in groups:
                x, mask = groups[name]
                x = x * mask[..., None]
                rows.append(torch.einsum("ntw,twd->ntd", x, self.inward[name]) + self.mark[name])
                masks.append(mask)
                share = mask.sum(dim=1, keepdim=True).clamp_min(1) ** -0.5
                plain = plain + torch.einsum("ntw,twd->nd", x, self.linear[name]) * share
        x, mask = torch.cat(rows, dim=1), torch.cat(masks, dim=1)
        for layer in self.layers:
            x = layer(x, mask)
        return F.normalize(plain + self.head(self.norm(x[:, 0])), dim=-1)
