"""What do the heat map's record, a schedule and a mask cost while sampling?

    python -m benchmarks.seeing [--rounds 9]        writes benchmarks/results/seeing.json

The demo base in real ComfyUI on a CPU, 8 steps at 128 × 128 with guidance, three LoRAs: processor seconds of a sampling
with each over those without any of them, by turns in one run, medians of the rounds' ratios. Also seconds of reading
the record and drawing the map over seconds of one sampling. Needs the ComfyUI of ``scripts/test.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import in_comfy
from benchmarks.conflict_report import LORAS
from benchmarks.results_file import write_results

STEPS, SEED = 8, 0
MODES = ("sum", "gate", "energy")


def sampler(model: Any) -> Callable[[], Any]:
    """One picture's sampling, ready to be called."""
    import comfy.sample

    generator = torch.Generator().manual_seed(SEED)
    network = model.model.diffusion_model
    noise = torch.randn(1, 16, 16, 16, generator=generator)
    words = torch.randn(1, 24, network.context_embedder.in_features, generator=generator)
    cond = [[words, {"pooled_output": torch.randn(1, network.y_embedder.mlp[0].in_features, generator=generator)}]]
    empty = torch.zeros_like(noise)
    return lambda: comfy.sample.sample(
        model, noise, STEPS, 4.0, "euler", "simple", cond, cond, empty, seed=SEED, disable_pbar=True
    )


def spent(task: Callable[[], Any]) -> float:
    start = time.process_time()
    task()
    return time.process_time() - start


def measure(mode: str, rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    model, apply = in_comfy.demo_model(), in_comfy.node("gated_apply.AutoLoRAGatedApply")
    say = in_comfy.node("time_and_place.AutoLoRATimeAndPlace").say
    half = torch.zeros(1, 128, 128)
    half[..., :64] = 1
    stack = [(f"{name}.safetensors", 1.0, 1.0) for name in LORAS]
    extras = {
        "plain": {},
        "record": {"record": True},
        "schedule": {"terms": say("*", "0: 1, 0.5: 1, 0.8: 0.5")[0]},
        "mask": {"terms": say("*", mask=half)[0]},
    }
    models = {name: apply.apply(model, mode, lora_stack=stack, **more)[0] for name, more in extras.items()}
    runs = {name: sampler(one) for name, one in models.items()}
    for run in runs.values():
        run()
    times = [{name: spent(run) for name, run in runs.items()} for _ in range(rounds)]
    figures = {
        f"{name}_over_plain_{mode}": round(statistics.median(one[name] / one["plain"] for one in times), 3)
        for name in extras
        if name != "plain"
    }
    drawing = spent(lambda: in_comfy.node("heat_map.AutoLoRAGateHeatMap").show(models["record"], None))
    medians = {name: round(statistics.median(one[name] for one in times), 4) for name in extras}
    figures[f"map_over_sampling_{mode}"] = round(drawing / medians["plain"], 3)
    return figures, {"mode": mode, "rounds": rounds, "seconds": medians, "map": round(drawing, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--mode", choices=MODES, action="append", help="only this mode: nothing is written")
    options = parser.parse_args()
    rounds = options.rounds
    torch.set_num_threads(1)
    figures, rows = {}, []
    for mode in options.mode or MODES:
        found, row = measure(mode, rounds)
        figures |= found
        rows.append(row)
    if options.mode:
        print(json.dumps(figures, indent=1))
        return
    write_results("seeing", f"python -m benchmarks.seeing --rounds {rounds}", SEED, figures, rows)


if __name__ == "__main__":
    main()
