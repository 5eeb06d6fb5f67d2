"""Part ``gpu``: the card's figures, taken over from ``benchmarks/results/apply_gpu.json`` (``benchmarks.apply.gpu``).

Nothing is measured here. What follows from those rows is worked out for the widest layer of FLUX: how fast its product
ran, how fast our kernels moved what they moved, and what reading the base's output and writing the sum once would cost.
"""

from __future__ import annotations

import torch

from benchmarks.results_file import read_results

from .shapes import MODELS, WIDEST, Shape
from .work import work_rows

CARD, PEAK = "H100 80GB HBM3", 3.35e12  # bytes a second, by NVIDIA's data sheet; not measured
OF_PEAK = 0.8  # what a plain copy reaches of it, about


def measure(quick: bool) -> tuple[dict[str, float], list[dict]]:
    kept = read_results("apply_gpu")
    if kept is None:
        raise SystemExit("benchmarks/results/apply_gpu.json is not there; make it on a machine with a CUDA device")
    card = next(row for row in kept["rows"] if row["what"] == "card")
    about = {"what": "card", "card": card["card"], "driver": card["driver"], "date": kept["date"]}
    rows = [{**about, "measured_at": kept["commit"], "command": kept["command"]}]
    if CARD not in card["card"]:
        return kept["figures"], rows
    return kept["figures"] | widest(kept["rows"]), rows + ([] if quick else widest_rows(kept["rows"]))


def _widest(rows: list[dict]) -> tuple[Shape, dict]:
    """Three LoRAs of rank 16 at the widest layer: its shape and its row."""
    shape = next(one for one in MODELS["flux"] if one.name == WIDEST)
    return shape, next(r for r in rows if r["what"] == "layer" and (r["shape"], r["k"], r["rank"]) == (WIDEST, 3, 16))


def widest_rows(rows: list[dict]) -> list[dict]:
    """Operations, bytes and milliseconds of each way there. Ours moved what ``ncu`` counted, and what the down factors'
    product reads and writes."""
    shape, layer = _widest(rows)
    found = [{"on": "gpu", **row, "ms": layer[row["way"]]} for row in work_rows(shape, 3, 16, torch.bfloat16)]
    bare, ours = (next(row for row in found if row["way"] == way) for way in ("base", "ours"))
    for row in rows:
        if row["what"] == "bytes":
            ours["bytes"] = bare["bytes"] + row["moved"] + 2 * shape.tokens * (shape.n_in + 3 * 16)
    return found


def widest(rows: list[dict]) -> dict[str, float]:
    """What follows for the widest layer."""
    shape, layer = _widest(rows)
    base, added = layer["base"] / 1e3, (layer["ours"] - layer["base"]) / 1e3
    found = {
        "gpu_widest_ours_over_base": layer["ours"] / layer["base"],
        "gpu_widest_base_tflops": 2 * shape.tokens * shape.n_in * shape.out / base / 1e12,
    }
    for row in rows:
        if row["what"] == "bytes":
            found |= {
                "gpu_widest_tb_per_s": row["moved"] / added / 1e12,
                "gpu_widest_least_over_base": 1 + row["least"] / PEAK / base,
                "gpu_widest_least_over_base_as_copied": 1 + row["least"] / (OF_PEAK * PEAK) / base,
            }
    return found
