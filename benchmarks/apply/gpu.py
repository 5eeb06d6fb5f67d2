"""The GPU's numbers: ``python -m benchmarks.apply.gpu --out FOLDER`` on a machine with a CUDA device.

Neither ComfyUI nor the demo model is needed. Layers are timed as CUDA graphs (the time on the card, whatever the host
takes), whole blocks of FLUX.1 as they are called. Bytes are counted by ``ncu`` where it is there.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import triton
from torch import Tensor
from torch.nn.functional import linear
from triton.testing import do_bench, do_bench_cudagraph

from autolora_core.fusion.fast import triton_gate
from benchmarks.results_file import write_results

from . import blocks
from .shapes import MODELS, WIDEST, Shape
from .ways import Layer

COMMAND = "python -m benchmarks.apply.gpu --out benchmarks/results"
WAYS = ("base", "bypass", "ours", "eager")
PICTURE = {"double": 19, "single": 38}  # blocks of a forward


def on_card(function: Callable[[], object]) -> float:
    """Milliseconds on the card, median."""
    return do_bench_cudagraph(function, rep=8, return_mode="median")


def ours(layer: Layer, x: Tensor | None = None) -> Tensor:
    x = layer.x if x is None else x
    y0, hidden = linear(x, layer.weight, layer.bias), linear(x, layer.stacked)
    return triton_gate.gated(y0, hidden, layer.packed, layer.table_halved, layer.knobs, 1e-5)


def way(layer: Layer, name: str) -> Callable[[], Tensor]:
    return partial(ours, layer) if name == "ours" else getattr(layer, name)


def error_rows() -> Iterator[dict]:
    """Largest and root mean square error against float64, in units of the update's root mean square."""
    for dtype, ranks in itertools.product((torch.float32, torch.float16, torch.bfloat16), ([4, 16, 40], [256, 7])):
        layer = Layer.make(Shape("check", 333, 512, 1000, 1), ranks, dtype, "cuda", seed=len(ranks))
        exact = layer.exact()
        update = (exact - layer.base().double()).square().mean().sqrt()
        for name in ("eager", "ours", "chunked"):
            apart = way(layer, name)().double() - exact
            yield {
                "what": "error", "dtype": str(dtype).removeprefix("torch."), "ranks": ranks, "way": name,
                "max": float(apart.abs().max() / update), "rms": float(apart.square().mean().sqrt() / update),
            }  # fmt: skip


def layer_rows(model: str, count: int, rank: int, ways: tuple[str, ...]) -> Iterator[dict]:
    for shape in MODELS[model]:
        layer = Layer.make(shape, [rank] * count, torch.bfloat16, "cuda")
        taken = {name: on_card(way(layer, name)) for name in ways}
        yield {
            "what": "layer",
            "model": model,
            "shape": shape.name,
            "count": shape.count,
            "k": count,
            "rank": rank,
            **taken,
        }


def block_rows(count: int, rank: int) -> Iterator[dict]:
    """Whole blocks of FLUX.1, bfloat16, as the host calls them."""
    turn = blocks.angles("cuda")
    x = torch.randn(blocks.IMAGE + blocks.TEXT, blocks.WIDTH, device="cuda", dtype=torch.bfloat16)
    knobs = torch.randn(6, blocks.WIDTH, device="cuda", dtype=torch.bfloat16) / 4
    layers = {shape.name: Layer.make(shape, [rank] * count, torch.bfloat16, "cuda") for shape in MODELS["flux"]}
    for name in PICTURE:
        taken = {}
        for one in WAYS:
            run = partial(_run, layers, one)
            taken[one] = do_bench(
                lambda run=run, name=name: getattr(blocks, name)(x, knobs, turn, run), rep=60, return_mode="median"
            )
        yield {
            "what": "block",
            "model": "flux",
            "shape": name,
            "count": PICTURE[name],
            "k": count,
            "rank": rank,
            **taken,
        }


def _run(layers: dict[str, Layer], name: str, layer: str, x: Tensor) -> Tensor:
    found = layers[layer]
    if name == "ours":
        return ours(found, x)
    found.x = x
    return getattr(found, name)()


def host_row() -> dict:
    """What one call costs the host, and whether other strengths or a LoRA more compile anything."""
    layer = Layer.make(Shape("host", 64, 64, 64, 1), [16] * 5, torch.bfloat16, "cuda")
    y0, hidden = layer.base(), linear(layer.x, layer.stacked)
    call = partial(triton_gate.gated, y0, hidden, layer.packed, layer.table_halved)
    call(layer.knobs, 1e-5)
    began = time.perf_counter()
    for _ in range(100):
        call(layer.knobs, 1e-5)
    taken = (time.perf_counter() - began) * 1e4
    torch.cuda.synchronize()
    kernels = len(_compiled())
    call(layer.knobs * 1.5, 1e-5, 0.25)
    other = Layer.make(Shape("host", 80, 64, 128, 1), [16, 3, 16, 16, 9, 1], torch.bfloat16, "cuda")
    ours(other)
    return {"what": "host", "call_us": taken, "compiled_again": len(_compiled()) - kernels}


def _compiled() -> list:
    """All kernels compiled so far in this process."""
    caches = triton_gate._sum.device_caches.values()
    return [kernel for cache in caches for kernel in cache[0].values()]


def moved_row() -> dict | None:
    """DRAM bytes of our two kernels at FLUX's widest layer, by ncu, against reading ``y0`` and writing the sum once."""
    command = ["ncu", "--clock-control", "none", "-k", "regex:_sum|_statistics", "--metrics", "dram__bytes.sum"]
    command += [sys.executable, "-m", "benchmarks.apply.gpu", "--once"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    units = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
    found = re.findall(r"dram__bytes\.sum\s+(\w+)\s+([\d.,]+)", done.stdout)
    if len(found) < 2:
        return None
    moved = sum(float(number.replace(",", "")) * units[unit] for unit, number in found[-2:])
    shape = next(shape for shape in MODELS["flux"] if shape.name == WIDEST)
    return {"what": "bytes", "shape": shape.name, "moved": moved, "least": 2 * 2 * shape.tokens * shape.out}


def once() -> None:
    """What ncu looks at."""
    shape = next(shape for shape in MODELS["flux"] if shape.name == WIDEST)
    ours(Layer.make(shape, [16] * 3, torch.bfloat16, "cuda"))
    torch.cuda.synchronize()


def total(rows: list[dict], name: str, **wanted: object) -> float:
    chosen = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    return sum(row["count"] * row[name] for row in chosen)


def figures(rows: list[dict]) -> dict[str, float]:
    """Sums over all layers of a forward, and over its blocks."""
    found = {}
    for model, count, rank in sorted({(r["model"], r["k"], r["rank"]) for r in rows if r["what"] == "layer"}):
        these = {"what": "layer", "model": model, "k": count, "rank": rank}
        mine = total(rows, "ours", **these)
        found[f"gpu_{model}_k{count}_r{rank}_over_base"] = mine / total(rows, "base", **these)
        found[f"gpu_{model}_k{count}_r{rank}_over_bypass"] = mine / total(rows, "bypass", **these)
        if all(
            "eager" in r
            for r in rows
            if r["what"] == "layer" and (r["model"], r["k"], r["rank"]) == (model, count, rank)
        ):
            eager, base = total(rows, "eager", **these), total(rows, "base", **these)
            found[f"gpu_{model}_k{count}_r{rank}_eager_over_ours"] = eager / mine
            found[f"gpu_{model}_k{count}_r{rank}_eager_gate_over_ours"] = (eager - base) / (mine - base)
    whole = {"what": "block", "model": "flux"}
    for name in ("bypass", "ours", "eager"):
        found[f"gpu_flux_blocks_k3_r16_{name}_over_base"] = total(rows, name, **whole) / total(rows, "base", **whole)
    for row in rows:
        if row["what"] == "bytes":
            found["gpu_bytes_over_limit"] = row["moved"] / row["least"]
        if row["what"] == "host":
            found |= {"gpu_call_us": row["call_us"], "gpu_compiled_again": float(row["compiled_again"])}
        if row["what"] == "error" and row["way"] == "ours":
            key = f"gpu_rms_error_{row['dtype']}"
            found[key] = max(found.get(key, 0.0), row["rms"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        once()
        return
    card = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}"
    rows: list[dict] = [{"what": "card", "card": card, "driver": _driver()}]
    parts: list[Iterator[dict]] = [
        error_rows(), iter([host_row()]), block_rows(3, 16),
        *(layer_rows(model, 3, 16, WAYS) for model in MODELS),
        *(layer_rows("flux", count, 16, WAYS) for count in (1, 8)),
        *(layer_rows("flux", count, rank, WAYS[:3]) for count in (1, 3, 8) for rank in (4, 64)),
    ]  # fmt: skip
    for part in parts:
        for row in part:
            rows.append(row)
            print(row, flush=True)
    rows += filter(None, [moved_row()])
    print(write_results("apply_gpu", COMMAND, 0, figures(rows), rows, options.out).read_text(encoding="utf-8")[:6000])


def _driver() -> str:
    try:
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(ask, capture_output=True, encoding="utf-8", timeout=20).stdout.strip()
    except OSError:
        return "unknown"


if __name__ == "__main__":
    main()
