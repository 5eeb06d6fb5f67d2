"""The forward pass of a BERT encoder (Devlin et al., arXiv 1810.04805), as MiniLM uses it.

Written out here because it is forty lines, loads in a fraction of a second and does not change with the version of
another package. Post-norm layers, absolute positions, erf GELU, no pooler.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class BertSize:
    """Sizes of all-MiniLM-L6-v2; ``width`` must be divisible by ``heads``."""

    width: int = 384
    layers: int = 6
    heads: int = 12
    eps: float = 1e-12


def bert_forward(weights: dict[str, Tensor], ids: Tensor, mask: Tensor, size: BertSize) -> Tensor:
    """Hidden states of the last layer.

    ``weights``: float32 tensors under the names of the original release; ``ids`` (n, length) int64; ``mask``
    (n, length) bool, true on tokens. Returns (n, length, width) float32; rows where ``mask`` is false are meaningless.
    """
    x = _embed(weights, ids, size)
    bias = torch.zeros(mask.shape, dtype=x.dtype).masked_fill_(~mask, torch.finfo(x.dtype).min)[:, None, None, :]
    for layer in range(size.layers):
        x = _layer(weights, f"encoder.layer.{layer}.", x, bias, size)
    return x


def _embed(weights: dict[str, Tensor], ids: Tensor, size: BertSize) -> Tensor:
    words = F.embedding(ids, weights["embeddings.word_embeddings.weight"])
    places = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    kinds = weights["embeddings.token_type_embeddings.weight"][0]
    return _norm(weights, "embeddings.LayerNorm", words + places + kinds, size)


def _layer(weights: dict[str, Tensor], at: str, x: Tensor, bias: Tensor, size: BertSize) -> Tensor:
    n, length, width = x.shape

    def heads(name: str) -> Tensor:
        projected = _linear(weights, f"{at}attention.self.{name}", x)
        return projected.view(n, length, size.heads, width // size.heads).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(heads("query"), heads("key"), heads("value"), attn_mask=bias)
    mixed = mixed.transpose(1, 2).reshape(n, length, width)
    mixed = _linear(weights, f"{at}attention.output.dense", mixed)
    x = _norm(weights, f"{at}attention.output.LayerNorm", x + mixed, size)
    inner = F.gelu(_linear(weights, f"{at}intermediate.dense", x))
    return _norm(weights, f"{at}output.LayerNorm", x + _linear(weights, f"{at}output.dense", inner), size)


def _linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: dict[str, Tensor], name: str, x: Tensor, size: BertSize) -> Tensor:
    return F.layer_norm(x, (size.width,), weights[f"{name}.weight"], weights[f"{name}.bias"], size.eps)
