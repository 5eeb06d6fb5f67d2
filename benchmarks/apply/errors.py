"""How far a layer's output is from float64, by the gate as it is written down and by the Apply node's own layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from .layers import name_of
from .node_layer import NodeLayer, running
from .shapes import Shape
from .ways import Layer

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RANKS = ([4, 16, 40], [256, 7])
SHAPE = Shape("check", 333, 512, 1000, 1)


def error_rows() -> Iterator[dict]:
    """Largest and root mean square error, in units of the root mean square of what the LoRAs add."""
    for dtype, ranks in itertools.product(DTYPES, RANKS):
        layer = Layer.make(SHAPE, ranks, dtype, "cpu", seed=len(ranks))
        with running():
            exact = layer.exact()
            update = (exact - layer.base().double()).square().mean().sqrt()
            for name, way in (("eager", layer.eager), ("node", NodeLayer(layer))):
                apart = way().double() - exact
                yield {
                    "what": "error", "dtype": name_of(dtype), "ranks": ranks, "way": name,
                    "max": float(apart.abs().max() / update), "rms": float(apart.square().mean().sqrt() / update),
                }  # fmt: skip
