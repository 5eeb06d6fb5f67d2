"""The forward pass of a BERT encoder (Devlin et al., arXiv 1810.04805), as MiniLM uses it.

Written out here because it is forty lines, loads in a fraction of a second and does not change with the version of
another package. Post-norm layers, absolute positions, erf GELU, no pooler.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def bert_each(weights: dict[str, Tensor], tokens: Sequence[Sequence[int]], size: BertSize) -> list[Tensor]:
    """Of each text of some its hidden states (length, width), bit for bit those of :func:`bert_forward` of it alone.

    Every product has one text's rows, so that no text's numbers change with its company; but a layer's weights are
    fetched once for all texts, which is what takes the time with short ones, and what goes row by row is done together.
    """
    lengths = [len(ids) for ids in tokens]
    x = torch.cat([_embed(weights, torch.tensor([ids]), size)[0] for ids in tokens])
    for layer in range(size.layers):
        x = _layer_each(weights, f"encoder.layer.{layer}.", x, lengths, size)
    return list(x.split(lengths))


def _layer_each(weights: dict[str, Tensor], at: str, x: Tensor, lengths: list[int], size: BertSize) -> Tensor:
    """As :func:`_layer`, of the rows of several texts one after the other."""

    def linear(name: str, rows: Tensor) -> Tensor:
        weight, bias = weights[f"{at}{name}.weight"].T, weights[f"{at}{name}.bias"]
        out = rows.new_empty(len(rows), weight.shape[1])
        for own, found in zip(rows.split(lengths), out.split(lengths), strict=True):
            torch.addmm(bias, own, weight, out=found)
        return out

    def heads(rows: Tensor) -> Tensor:
        return rows.view(1, len(rows), size.heads, size.width // size.heads).transpose(1, 2)

    asked = [linear(f"attention.self.{name}", x).split(lengths) for name in ("query", "key", "value")]
    mixed = torch.empty_like(x)
    for query, key, value, found in zip(*asked, mixed.split(lengths), strict=True):
        nothing = query.new_zeros(1, 1, 1, len(query))  # as a mask: without one another kernel runs
        own = F.scaled_dot_product_attention(heads(query), heads(key), heads(value), attn_mask=nothing)
        found.copy_(own.transpose(1, 2).reshape(found.shape))
    x = _norm(weights, f"{at}attention.output.LayerNorm", x + linear("attention.output.dense", mixed), size)
    inner = F.gelu(linear("intermediate.dense", x))
    return _norm(weights, f"{at}output.LayerNorm", x + linear("output.dense", inner), size)


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
