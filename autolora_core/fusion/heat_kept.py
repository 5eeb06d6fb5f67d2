"""What passed of each LoRA in one sampling, small enough to be kept with a node's result: in ComfyUI's history."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from .record import Heat

MOST = 60_000  # bytes of JSON; a table that takes more is made coarser


def kept_heat(heat: Heat, most: int = MOST) -> dict[str, Any] | None:
    """``{"steps", "every", "blocks", "loras": name → block → column}``: what passes, to two places, None where a LoRA
    has no layer; a column is the mean of ``every`` steps. Of a large table neighbouring steps or blocks are put
    together until it has ``most`` bytes. None where nothing was sampled, or no table is small enough."""
    if not heat.steps:
        return None
    names, values = heat.by_block(heat.passing())
    blocks, every = [(name, name) for name in names], 1
    while True:
        found = _table(heat, blocks, every, values)
        if len(json.dumps(found)) <= most:
            return found
        if max(values.shape[:2]) == 1:
            return None
        if values.shape[0] >= values.shape[1]:
            values, every = _halved(values), 2 * every
        else:
            values = _halved(values.transpose(0, 1)).transpose(0, 1)
            pairs = [blocks[at : at + 2] for at in range(0, len(blocks), 2)]
            blocks = [(pair[0][0], pair[-1][1]) for pair in pairs]


def _table(heat: Heat, blocks: list[tuple[str, str]], every: int, values: Tensor) -> dict[str, Any]:
    rows = torch.round(values.permute(2, 1, 0), decimals=2).tolist()
    plain = [[[None if value != value else value for value in row] for row in lora] for lora in rows]
    return {
        "steps": len(heat.steps),
        "every": every,
        "blocks": [first if first == last else f"{first} – {last}" for first, last in blocks],
        "loras": dict(zip(heat.names, plain, strict=True)),
    }


def _halved(values: Tensor) -> Tensor:
    """Means of two neighbours along the first dimension, nan left out."""
    odd = values.shape[0] % 2
    padded = torch.cat([values, torch.full_like(values[:odd], torch.nan)])
    return padded.unflatten(0, (-1, 2)).nanmean(1)
