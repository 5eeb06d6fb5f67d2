"""Part ``machine``: what this processor can do at best, for the roofs of the plot."""

from __future__ import annotations

import torch

from .layers import DTYPES, name_of
from .node_layer import running
from .turns import in_turns, threads

COPIED = 1 << 29  # bytes: more than caches hold
SIDE = 3072  # of the square product


def measure(quick: bool) -> tuple[dict[str, float], list[dict]]:
    """Bytes read and written a second by a copy, and operations a second of a large product in each dtype."""
    count, size, side = threads(), COPIED >> (5 if quick else 0), SIDE // (6 if quick else 1)
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    with running():
        taken = in_turns({"copy": lambda: target.copy_(source)}, 5)["copy"]
        figures = {"cpu_gb_per_s": 2 * size / taken / 1e9}
        for dtype in DTYPES:
            left, right = (torch.ones(side, side, dtype=dtype) for _ in range(2))
            taken = in_turns({"product": lambda left=left, right=right: left @ right}, 5)["product"]
            figures[f"cpu_gflops_{name_of(dtype)}"] = 2 * side**3 / taken / 1e9
    return figures, [{"what": "roofs", "threads": count, **figures}]
