"""Part ``quality``: whether pictures move when the node's layers do the gate's work in another way.

Cases of the fusion benchmark (:mod:`benchmarks.fusion_cases`): the two LoRAs that a prompt asks for and a stranger,
drawn on the demo network with the same noise twice: by ``eager.fuse``, as that benchmark draws, and by the Apply node's
own ``FusionLayer``. Two gates: the shipped one, and one of the published form, where it was trained here
(``zoo.train_fusion``). The judge names the pictures; the difference of the joint shares has an interval over pairs. The
benchmark has 200 pairs; here are fewer, as every picture is drawn by layers that nothing compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autolora_core.fusion.fast.choose import compiled_gate
from autolora_core.fusion.moment import Moment
from autolora_core.fusion.plan import FusionPlan, ModulePlan
from benchmarks import in_comfy
from benchmarks.fusion import STEPS, all_cases
from benchmarks.fusion_cases import Case
from benchmarks.fusion_entries import entries
from benchmarks.fusion_judge import Critic, Wanted, right
from benchmarks.fusion_methods import Workbench, gate_vectors, gated_plan
from benchmarks.fusion_network import Course, Network, Painter
from benchmarks.fusion_shelf import SAMPLE, TEST, open_shelf
from benchmarks.fusion_table import resampled
from benchmarks.zoo_needed import zoo_needed
from zoo.autoencoder import decode_latents
from zoo.cache import models_dir
from zoo.evaluate import load_autoencoder
from zoo.judge import Judge
from zoo.lora_data import true_picture
from zoo.pictures import Pictures
from zoo.train_loras import load_base

from .layers import DTYPES, name_of
from .turns import threads

PAIRS, SEEDS, LORAS, COMPARED = 40, 2, 3, 3  # COMPARED: pairs whose latents are compared in every dtype
PATHS = ("eager", "node")
PUBLISHED = "paper"
Plan = Callable[[Workbench, Sequence[str]], FusionPlan]


class NodeNetwork(Network):
    """The demo network with the Apply node's layers beside its own, as they are inside ComfyUI."""

    def beside(self, name: str, plan: ModulePlan, moment: Moment) -> Callable[..., Tensor]:
        in_comfy.start()
        from comfy_local import pack_module

        fusion = pack_module("nodes.bridge_bank").FusionLayer(plan, self.layers[name], moment, self.dtype)

        def hook(_: object, args: tuple, y0: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):  # ComfyUI runs models without
                return fusion(args[0].to(self.dtype), y0)

        return hook


@dataclass
class World:
    """Both ways in one dtype, and what is drawn with them."""

    dtype: torch.dtype

    def __post_init__(self) -> None:
        kinds = dict(zip(PATHS, (Network, NodeNetwork), strict=True))
        self.networks = {path: kind(load_base(), self.dtype) for path, kind in kinds.items()}
        self.decoder = load_autoencoder()[0]
        self.bench = Workbench(open_shelf(SAMPLE), self.networks["eager"])

    def latents(self, plan: Plan, case: Case, seeds: int, steps: int) -> dict[str, Tensor]:
        """(seeds, 16, 16, 16) by path."""
        self.bench.clear()
        self.bench.phrases = case.phrases
        course = Course(plan=plan(self.bench, case.loras(LORAS)))
        return {
            path: Painter(network, self.decoder, steps).latents(course, case.prompts[:seeds], case.noise)
            for path, network in self.networks.items()
        }


def gates() -> dict[str, Plan]:
    """The shipped gate, and one of the published form if its file is in the cache."""
    shipped = gate_vectors(models_dir() / "emoji_gate.safetensors")
    found: dict[str, Plan] = {"shipped": lambda bench, ids: gated_plan(bench, ids, shipped)}
    if PUBLISHED in (known := entries()):
        found["published_form"] = lambda bench, ids: known[PUBLISHED].build(bench, ids).plan
    return found


def compared(name: str, plan: Plan, cases: Sequence[Case], seeds: int, steps: int) -> Iterator[dict]:
    """Largest differences of latents and pictures between the paths, in every dtype; and between the dtypes."""
    drawn: dict[str, list[dict[str, Tensor]]] = {}
    for dtype in DTYPES:
        world = World(dtype)
        drawn[name_of(dtype)] = [world.latents(plan, case, seeds, steps) for case in cases]
        pairs = [(one["node"], one["eager"]) for one in drawn[name_of(dtype)]]
        yield {"what": "apart", "gate": name, "dtype": name_of(dtype), **apart(pairs, world)}
    first, second = drawn.values()
    pairs = [(a["eager"], b["eager"]) for a, b in zip(second, first, strict=True)]
    yield {"what": "apart", "gate": name, "dtype": "bfloat16 less float32, both eager", **apart(pairs, world)}


def apart(pairs: Sequence[tuple[Tensor, Tensor]], world: World) -> dict[str, float]:
    """Latents in units of their own root mean square; pictures in levels of 255."""
    latents = [((a - b).abs().max() / b.square().mean().sqrt()).item() for a, b in pairs]
    pictures = [[decode_latents(x, world.decoder, batch=8).astype(int) for x in pair] for pair in pairs]
    levels = [np.abs(a - b) for a, b in pictures]
    return {
        "pairs": len(pairs), "max_latent": max(latents), "max_pixel": int(max(level.max() for level in levels)),
        "mean_pixel": float(np.mean([level.mean() for level in levels])),
    }  # fmt: skip


def judged(name: str, plan: Plan, cases: Sequence[Case], seeds: int, steps: int) -> Iterator[dict]:
    """Joint shares of both paths over pairs, in the benchmark's bfloat16, and their difference."""
    world, critic, pictures = World(torch.bfloat16), Critic(Judge.load()), Pictures.load()
    hits: dict[str, list[float]] = {path: [] for path in PATHS}
    for case in cases:
        wanted = Wanted(case.subject, case.style, true_picture(pictures, case.subject, case.style))
        for path, latents in world.latents(plan, case, seeds, steps).items():
            notes = critic.notes(decode_latents(latents, world.decoder, batch=8), wanted)
            hits[path].append(float(np.mean(right(notes)["joint"])))
    table = np.array([hits[path] for path in PATHS]).T
    values = {path: table[:, i : i + 1] for i, path in enumerate(PATHS)}
    values["node less eager"] = values["node"] - values["eager"]
    for path, column in values.items():
        low, high = np.percentile(resampled(column), [2.5, 97.5])
        yield {
            "what": "joint", "gate": name, "path": path, "pairs": len(cases), "seeds": seeds, "k": LORAS,
            "value": float(column.mean()), "low": float(low), "high": float(high),
        }  # fmt: skip


def measure(quick: bool) -> tuple[dict[str, float], list[dict]]:
    count, rows = threads(), []
    pairs, seeds, steps, few = (2, 1, 2, 1) if quick else (PAIRS, SEEDS, STEPS, COMPARED)
    with zoo_needed():
        shelf = open_shelf(SAMPLE)
        cases = all_cases(shelf, TEST, 8 * pairs)
    ready = [case for case in cases if all(map(shelf.ready, case.loras(LORAS)))][:pairs]
    in_comfy.start()
    about = {"threads": count, "compiled": compiled_gate(torch.float32) is not None}
    for name, plan in gates().items():
        rows += judged(name, plan, ready, seeds, steps)
        rows += compared(name, plan, ready[:few], seeds, steps)
    return figures_of(rows), [{**about, **row} for row in rows]


def figures_of(rows: Sequence[dict]) -> dict[str, float]:
    """Joint shares with their ends, the largest differences in every dtype."""
    figures: dict[str, float] = {}
    for row in rows:
        if row["what"] == "joint":
            name = f"quality_{row['gate']}_joint_{row['path'].replace(' ', '_')}"
            figures |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
        elif row["what"] == "apart" and row["dtype"] in map(name_of, DTYPES):
            for what in ("max_latent", "max_pixel"):
                figures[f"quality_{row['gate']}_{what}_{row['dtype']}"] = row[what]
    return figures
