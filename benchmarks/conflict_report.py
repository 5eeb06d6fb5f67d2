"""How long does the conflict report take, beside what it is about?

    python -m benchmarks.conflict_report [--rounds 5]     writes benchmarks/results/conflict_report.json

On the demo base, in real ComfyUI on the CPU: seconds of the node for three LoRAs over seconds of one evaluation of the
fused model and over seconds of Gated Multi-LoRA Apply with the same LoRAs, in the same run, medians. For the shapes of
an SDXL UNet (722 layers, three random LoRAs of rank 32 in half precision): seconds of the measures, and what the same
measures from dense matrices would cost, on every 60th layer. One thread. Needs the ComfyUI of ``scripts/test.py``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.conflicts import measure
from benchmarks import in_comfy
from benchmarks.results_file import write_results

LORAS = ("bug-lumen", "lora_995438", "stained-glass-mosaic-juniper")
MODES = ("auto", "sum", "energy", "ties", "klora", "np")
RANK, EVERY, SEED = 32, 60, 0


def seconds(task: Callable[[], Any], rounds: int) -> float:
    """The median, after a round that does not count."""
    task()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        task()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def evaluation(model: Any) -> Callable[[], Any]:
    """One evaluation of ``model`` on a latent of the demo's size, batch 1."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    generator = torch.Generator().manual_seed(SEED)
    network = model.model.diffusion_model
    latent = torch.randn(1, 16, 8, 8, generator=generator)
    words = torch.randn(1, 77, network.context_embedder.in_features, generator=generator)
    pooled = torch.randn(1, model.model.adm_channels or network.y_embedder.mlp[0].in_features, generator=generator)
    options = {"wrappers": model.wrappers, "sigmas": torch.tensor([0.5])}
    options["sample_sigmas"] = torch.tensor([1.0, 0.5, 0.0])

    def run() -> Any:
        with torch.inference_mode():
            return model.model.apply_model(
                latent, torch.tensor([0.5]), c_crossattn=words, y=pooled, transformer_options=options
            )

    return run


def on_the_demo(rounds: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    model, node = in_comfy.demo_model(), in_comfy.node
    report, apply = node("conflict_report.AutoLoRAConflictReport"), node("gated_apply.AutoLoRAGatedApply")
    stack = [(f"{name}.safetensors", 1.0, 1.0) for name in LORAS]
    figures, rows = {}, []
    for mode in MODES:
        fused = apply.apply(model, mode, lora_stack=stack)[0]
        told = seconds(lambda mode=mode: report.report(model, mode, lora_stack=stack), rounds)
        applied = seconds(lambda mode=mode: apply.apply(model, mode, lora_stack=stack), rounds)
        once = seconds(evaluation(fused), rounds)
        row = {"case": "demo", "mode": mode, "report": told, "apply": applied, "evaluation": once}
        rows.append({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
        figures[f"demo_{mode}_over_evaluation"] = round(told / once, 2)
        figures[f"demo_{mode}_over_apply"] = round(told / applied, 2)
    return figures, rows


def sdxl_layers() -> dict[str, tuple[int, int]]:
    """Module → (out, in) of every linear layer in the transformers of an SDXL UNet, 722."""
    places = {f"input_blocks.{n}": (640, 2) for n in (4, 5)} | {f"input_blocks.{n}": (1280, 10) for n in (7, 8)}
    places |= {"middle_block": (1280, 10)} | {f"output_blocks.{n}": (1280, 10) for n in (0, 1, 2)}
    places |= {f"output_blocks.{n}": (640, 2) for n in (3, 4, 5)}
    shapes = {}
    for place, (d, depth) in places.items():
        stem = f"{place}.1"
        shapes |= {f"{stem}.proj_in": (d, d), f"{stem}.proj_out": (d, d)}
        for block in range(depth):
            one = f"{stem}.transformer_blocks.{block}"
            for attention, width in (("attn1", d), ("attn2", 2048)):
                shapes |= {f"{one}.{attention}.to_{part}": (d, width) for part in "kv"}
                shapes |= {f"{one}.{attention}.to_{part}": (d, d) for part in ("q", "out.0")}
            shapes |= {f"{one}.ff.net.0.proj": (8 * d, d), f"{one}.ff.net.2": (d, 4 * d)}
    return shapes


def random_branches(shapes: dict[str, tuple[int, int]]) -> list[Branch]:
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).half()

    return [
        Branch(name, lora, down=draw(RANK, n_in), up=draw(out, RANK))
        for lora in range(len(LORAS))
        for name, (out, n_in) in shapes.items()
    ]


def densely(branches: list[Branch]) -> list[float]:
    """Inner products and bases from the updates themselves: two thin QRs a LoRA, of its first rows and columns."""
    found, modules = [], dict.fromkeys(branch.module for branch in branches)
    for name in modules:
        parts = [branch.up.float() @ branch.down.float() for branch in branches if branch.module == name]
        found += [float((a * b).sum()) for a in parts for b in parts]
        for part in parts:
            torch.linalg.qr(part[:, :RANK]), torch.linalg.qr(part[:RANK].T)
    return found


def on_sdxl() -> tuple[dict[str, float], list[dict[str, Any]]]:
    shapes = sdxl_layers()
    channels = {name: out for name, (out, _) in shapes.items()}
    branches = random_branches(shapes)
    start = time.perf_counter()
    layers = measure(branches, channels)
    whole = time.perf_counter() - start
    some = set(list(shapes)[::EVERY])
    few = [branch for branch in branches if branch.module in some]
    factored, dense = seconds(lambda: measure(few, channels), 3), seconds(lambda: densely(few), 3)
    row = {"case": "sdxl", "layers": len(layers), "loras": len(LORAS), "rank": RANK, "seconds": round(whole, 2),
           "factored_some": round(factored, 4), "dense_some": round(dense, 4), "some": len(some)}  # fmt: skip
    return {"sdxl_layers": len(layers), "sdxl_dense_over_factored": round(dense / factored, 2)}, [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    sdxl, demo = on_sdxl(), on_the_demo(rounds)
    command = f"python -m benchmarks.conflict_report --rounds {rounds}"
    write_results("conflict_report", command, SEED, {**demo[0], **sdxl[0]}, [*demo[1], *sdxl[1]])


if __name__ == "__main__":
    main()
