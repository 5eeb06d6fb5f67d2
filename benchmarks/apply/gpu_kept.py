"""Part ``gpu``: the card's figures, taken over from ``benchmarks/results/apply_gpu.json`` (``benchmarks.apply.gpu``).

Nothing is measured here. What follows from those rows is worked out for the widest layer of FLUX: how fast its product
ran, how fast our kernels moved what they moved, and what reading the base's output and writing the sum once would cost.
"""

from __future__ import annotations

from benchmarks.results_file import read_results

from .shapes import MODELS, WIDEST

CARD, PEAK = "H100 80GB HBM3", 3.35e12  # bytes a second, by NVIDIA's data sheet; not measured
OF_PEAK = 0.8  # what a plain copy reaches of it, about


def measure(quick: bool) -> tuple[dict[str, float], list[dict]]:
    kept = read_results("apply_gpu")
    if kept is None:
        raise SystemExit("benchmarks/results/apply_gpu.json is not there; make it on a machine with a CUDA device")
    card = next(row for row in kept["rows"] if row["what"] == "card")
    about = {"what": "card", "card": card["card"], "driver": card["driver"], "date": kept["date"]}
    rows = [{**about, "measured_at": kept["commit"], "command": kept["command"]}]
    return kept["figures"] | (widest(kept["rows"]) if CARD in card["card"] else {}), rows


def widest(rows: list[dict]) -> dict[str, float]:
    """Of three LoRAs of rank 16 at the widest layer."""
    shape = next(one for one in MODELS["flux"] if one.name == WIDEST)
    layer = next(r for r in rows if r["what"] == "layer" and (r["shape"], r["k"], r["rank"]) == (shape.name, 3, 16))
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
