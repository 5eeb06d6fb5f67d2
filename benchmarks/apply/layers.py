"""Part ``layers``: the linear layers of base models on the CPU, with LoRAs applied in different ways.

A layer set is one layer of every kind of a model's blocks; its time is theirs, each as often as a forward runs it.
``base``: no LoRA. ``merged``: LoRAs merged into the weight. ``bypass``: y0 + Σ s·up(down(x)). ``eager``: the gate as it
is written down. ``node``: the layer that the Apply node puts beside the base's, inside ComfyUI, with Numba;
``torch``: the same where Numba is not installed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from benchmarks import in_comfy

from .node_layer import NodeLayer, running
from .shapes import MODELS, Shape
from .turns import in_turns, threads
from .ways import Layer

WAYS = ("base", "merged", "bypass", "eager", "node", "torch")
COUNTS, RANKS = (1, 3, 8), (4, 16, 64)
DTYPES = (torch.float32, torch.bfloat16)
# Share of the image tokens of a picture of the model's own size: SD1.5 and FLUX at 512², SDXL at 1024².
OWN_SIZE = {"sd15": 1.0, "sdxl": 1.0, "flux": 0.25}
SMALLER = {"sd15": (0.25,), "sdxl": (0.25, 1 / 16), "flux": ()}
SWEEP, QUICK = 1 / 16, 1 / 256


@dataclass(frozen=True)
class Set:
    """``count`` LoRAs of ``rank`` on the layers of ``model``; ``share`` of the tokens."""

    model: str
    count: int
    rank: int
    dtype: torch.dtype
    share: float
    turns: int

    def rows(self) -> Iterator[dict]:
        for shape in (shape.at(self.share) for shape in MODELS[self.model]):
            taken = measured(shape, [self.rank] * self.count, self.dtype, self.turns)
            yield {
                "model": self.model, "shape": shape.name, "count": shape.count, "tokens": shape.tokens,
                "n_in": shape.n_in, "out": shape.out, "k": self.count, "rank": self.rank, "dtype": name_of(self.dtype),
                "share": self.share, "turns": self.turns, **{f"{way}_ms": 1e3 * s for way, s in taken.items()},
            }  # fmt: skip


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measured(shape: Shape, ranks: Sequence[int], dtype: torch.dtype, turns: int) -> dict[str, float]:
    """Seconds of each way."""
    layer = Layer.make(shape, ranks, dtype, "cpu")
    merged = merged_weight(layer)
    with running():
        node = NodeLayer(layer)
        ways = {
            "base": layer.base,
            "merged": lambda: linear(layer.x, merged, layer.bias),
            "bypass": layer.bypass,
            "eager": layer.eager,
            "node": node,
            "torch": node.in_plain_torch,
        }
        return in_turns(ways, turns)


def merged_weight(layer: Layer) -> torch.Tensor:
    total = layer.weight.to(torch.float32, copy=True)
    for down, up, scale in zip(layer.downs, layer.ups, layer.scales, strict=True):
        total += scale * (up.float() @ down.float())
    return total.to(layer.weight.dtype)


def sweep(model: str) -> list[tuple[int, int]]:
    """Counts and ranks; of FLUX's large layers a cross of them."""
    grid = list(itertools.product(COUNTS, RANKS))
    return [(k, r) for k, r in grid if model != "flux" or k == 3 or (r == 16)]


def sets(quick: bool) -> list[Set]:
    """Three LoRAs of rank 16 at several picture sizes; counts and ranks at a sixteenth of the image tokens."""
    if quick:
        return [Set(model, 3, 16, dtype, QUICK, 1) for model in ("sd15", "sdxl") for dtype in DTYPES]
    out = []
    for model, dtype in itertools.product(MODELS, DTYPES):
        out.append(Set(model, 3, 16, dtype, OWN_SIZE[model], 2 if model == "flux" else 5))
        out += [Set(model, 3, 16, dtype, share, 5) for share in SMALLER[model]]
        out += [
            Set(model, count, rank, dtype, SWEEP, 1 if model == "flux" else 3)
            for count, rank in sweep(model)
            if not (SWEEP in SMALLER[model] and (count, rank) == (3, 16))
        ]
    return out


def figures(rows: Sequence[dict], share: dict[str, float] | None = None) -> dict[str, float]:
    """Ratios over a layer set at the model's own size (float32), and for bfloat16 under names that say so."""
    found: dict[str, float] = {}
    for model, dtype in itertools.product(MODELS, map(name_of, DTYPES)):
        mine = [
            row for row in rows
            if (row["model"], row["dtype"], row["k"], row["rank"]) == (model, dtype, 3, 16)
            and row["share"] == (share or OWN_SIZE)[model]
        ]  # fmt: skip
        if not mine:
            continue
        total = {way: sum(row["count"] * row[f"{way}_ms"] for row in mine) for way in WAYS}
        name = f"cpu_{model}_k3_r16" + ("" if dtype == "float32" else f"_{dtype}")
        found |= {f"{name}_over_{way}": total["node"] / total[way] for way in ("base", "merged", "bypass", "torch")}
        found[f"{name}_in_torch_over_base"] = total["torch"] / total["base"]
        found[f"{name}_bypass_over_base"] = total["bypass"] / total["base"]
        found[f"{name}_eager_over_ours"] = total["eager"] / total["node"]
    if "cpu_sdxl_k3_r16_eager_over_ours" in found:
        found["eager_over_ours_cpu"] = found["cpu_sdxl_k3_r16_eager_over_ours"]
    return found


def measure(quick: bool) -> tuple[dict[str, float], list[dict]]:
    in_comfy.start()
    count, rows = threads(), []
    for one in sets(quick):
        rows += [{"threads": count, **row} for row in one.rows()]
        print(f"apply: layers, {one}", flush=True)
    return figures(rows, dict.fromkeys(MODELS, QUICK) if quick else None), rows
