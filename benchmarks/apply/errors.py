"""Part ``errors``: how far a layer's output is from float64, by the gate as it is written down and by the Apply
node's own layer, with Numba (``node``) and without (``torch``)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from benchmarks import in_comfy

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
            node = NodeLayer(layer)
            for name, way in (("eager", layer.eager), ("node", node), ("torch", node.in_plain_torch)):
                apart = way().double() - exact
                yield {
                    "what": "error", "dtype": name_of(dtype), "ranks": ranks, "way": name,
                    "max": float(apart.abs().max() / update), "rms": float(apart.square().mean().sqrt() / update),
                }  # fmt: skip


def figures_of(rows: Sequence[dict]) -> dict[str, float]:
    """The node's worst errors in every dtype."""
    figures: dict[str, float] = {}
    for row in rows:
        if row["way"] == "node":
            for what in ("max", "rms"):
                name = f"cpu_{what}_error_{row['dtype']}"
                figures[name] = max(figures.get(name, 0.0), row[what])
    return figures


def measure(quick: bool) -> tuple[dict[str, float], list[dict]]:
    in_comfy.start()
    rows = list(error_rows())
    return figures_of(rows), rows
