"""AutoLoRA's published encoder, written anew from its description, with its faults mended.

As published (arXiv 2508.02107): one learned probe a layer, ``token_i = ΔW_i q_i``; a linear map to the model's width;
a zero-initialised position embedding; two transformer layers; LayerNorm; mean over tokens; trained against the pooled
text vector by symmetric softmax cross-entropy over 32 pairs with AdamW at 1e-4. Mended: alpha folded in for every
module, a learned token where a layer is absent, no causal mask, a learned temperature, unit vectors one by one, the
same LoRA never twice in a batch as a negative of itself. It reads the pack: q_i lies in the span of twelve typical
inputs of its layer in the base; its 24 sketched outputs are mapped by a matrix of the layer, not of the layer type.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora_core.encode.set_network import Layer
from autolora_core.train.trainer import TextSide
from zoo.encoder_data import EncoderData
from zoo.features_pack import Pack
from zoo.features_raw import INPUTS, OUTPUTS

PAIRS, RATE, HEADS, SEED = 32, 1e-4, 6, 5


def answers(pack: Pack) -> np.ndarray:
    """(n, M, OUTPUTS, INPUTS): sketched outputs of each update for its layer's typical inputs; zero where absent."""
    kept = pack.arrays["functional"]
    raw = np.einsum("nmk,mkw->nmw", kept, pack.bases["functional"]) + pack.means["functional"]
    raw *= pack.arrays["present"][..., None]
    return raw.reshape(*kept.shape[:2], OUTPUTS, INPUTS).astype(np.float32)


class PublishedEncoder(nn.Module):
    """(n, M, OUTPUTS, INPUTS) and (n, M) presence → (n, dim) unit rows."""

    def __init__(self, modules: int, dim: int):
        super().__init__()
        self.probe = nn.Parameter(torch.randn(modules, INPUTS) * INPUTS**-0.5)
        self.inward = nn.Parameter(torch.randn(modules, OUTPUTS, dim) * OUTPUTS**-0.5)
        self.absent, self.place = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(modules, dim))
        self.layers = nn.ModuleList(Layer(dim, HEADS) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.temperature = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))

    def forward(self, seen: Tensor, present: Tensor) -> Tensor:
        tokens = torch.einsum("nmoi,mi->nmo", seen, self.probe)
        x = torch.einsum("nmo,mod->nmd", tokens, self.inward)
        x = torch.where(present[..., None], x, self.absent) + self.place
        everywhere = torch.ones(x.shape[:2], dtype=torch.bool)
        for layer in self.layers:
            x = layer(x, everywhere)
        return F.normalize(self.norm(x).mean(dim=1), dim=-1)


def train_published(pack: Pack, data: EncoderData, side: TextSide, epochs: int, score: Callable) -> np.ndarray:
    """(n, dim): vectors of all LoRAs by the epoch that is best on validation. ``score(vectors)`` judges."""
    torch.manual_seed(SEED)
    seen, present = torch.from_numpy(answers(pack)), torch.from_numpy(pack.arrays["present"])
    seen = seen / seen[torch.from_numpy(data.train)].square().mean().sqrt()
    model = PublishedEncoder(seen.shape[1], side.bank.shape[1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    best = (-1.0, np.zeros((len(seen), side.bank.shape[1]), np.float32))
    for epoch in range(1, epochs + 1):
        rng = np.random.default_rng((SEED, epoch))
        rows = rng.permutation(np.flatnonzero(data.train))
        for start in range(0, len(rows), PAIRS):
            part = rows[start : start + PAIRS]
            own = torch.from_numpy(np.stack([side.vectors[i][int(rng.integers(len(side.vectors[i])))] for i in part]))
            thing = torch.from_numpy(data.thing[part])
            same = (thing[:, None] == thing[None]) & ~torch.eye(len(part), dtype=torch.bool)
            logits = model(seen[part], present[part]) @ own.T * model.temperature.exp().clamp(max=100)
            logits = logits.masked_fill(same, -1e4)
            target = torch.arange(len(part))
            loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if epoch % 4 == 0 or epoch == epochs:
            with torch.no_grad():
                vectors = torch.cat([model(a, b) for a, b in zip(seen.split(256), present.split(256), strict=True)])
            value = score(vectors.numpy())
            if value > best[0]:
                best = (value, vectors.numpy())
    return best[1]
