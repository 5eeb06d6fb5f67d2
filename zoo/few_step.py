"""Few-step LoRAs of the demo base: distilled from its guided sampling, as Lightning, Hyper and LCM LoRAs are.

    python -m zoo.few_step [--steps 250]

A student without guidance takes one step where the base, guided, takes two (progressive distillation, Salimans and Ho
2022, arXiv 2202.00512, with guidance folded in, Meng et al. 2023, arXiv 2210.03142). They are there to find out how the
norms of such LoRAs differ from those of subjects and styles (``python -m benchmarks.few_step``); none is shipped.
"""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.base_data import BaseData
from zoo.budget import positive_int
from zoo.cache import zoo_dir
from zoo.lora_plan import ATTENTION, CONTEXT, MLP, Creator
from zoo.multi_lora import StackedAdam, StackedAdapters
from zoo.raw_factors import write_raw
from zoo.sampler import Velocity, schedule
from zoo.train_loras import base_tag, load_base

log = logging.getLogger("zoo.few_step")
GUIDANCE, PER_LORA, SUBSTEPS, DROP = 4.0, 4, 2, 0.05


@dataclass(frozen=True)
class Student:
    """A LoRA that samples in ``count`` steps."""

    name: str
    count: int
    creator: Creator


def students(steps: int) -> list[Student]:
    """Ranks, rates, scales and layers as such LoRAs have them: mostly all layers, some attention alone."""
    every, attention, image = (ATTENTION, MLP, CONTEXT), (ATTENTION, CONTEXT), (ATTENTION, MLP)
    recipes = (
        (4, 8, 1.0, 2e-3, every), (4, 16, 1.0, 1e-3, every), (4, 4, 2.0, 2e-3, every), (8, 8, 1.0, 2e-3, every),
        (8, 16, 0.5, 2e-3, attention), (2, 8, 1.0, 3e-3, every), (4, 8, 1.0, 2e-3, attention), (4, 8, 1.0, 2e-3, image),
    )  # fmt: skip
    return [
        Student(
            f"few{i}-{count}steps", count, Creator(f"few{i}", rank, alpha, rate, steps, layers, "native", "float32")
        )
        for i, (count, rank, alpha, rate, layers) in enumerate(recipes)
    ]


def folder() -> Path:
    return zoo_dir("few_step", base_tag())


def guided(
    teacher: Velocity, x: Tensor, t: Tensor, texts: tuple[Tensor, Tensor], empty: tuple[Tensor, Tensor]
) -> Tensor:
    """The base's velocity under guidance."""
    both = [torch.cat([a, b.expand(len(x), *b.shape[1:])]) for a, b in zip(texts, empty, strict=True)]
    told, untold = teacher(torch.cat([x, x]), torch.cat([t, t]), *both).float().chunk(2)
    return untold + GUIDANCE * (told - untold)


def target(teacher: Velocity, x: Tensor, start: Tensor, stop: Tensor, texts, empty) -> Tensor:
    """The mean velocity of the guided base from ``start`` to ``stop``, (b,) each, in :data:`SUBSTEPS` steps."""
    at = x
    for part in range(SUBSTEPS):
        t = start + (stop - start) * part / SUBSTEPS
        length = ((stop - start) / SUBSTEPS)[:, None, None, None]
        at = at + length * guided(teacher, at, t, texts, empty)
    return (at - x) / (stop - start)[:, None, None, None]


def train(steps: int, compiled: bool = True) -> None:
    """All students side by side; those that are there are not trained again."""
    group = students(steps)
    if all(path_of(one).exists() for one in group):
        return
    data, model, teacher = BaseData.load(), load_base(), load_base()
    creators = [one.creator for one in group]
    adapters = StackedAdapters(model, len(group), max(c.rank for c in creators))
    adapters.reset(creators, list(range(len(group))))
    optimiser = StackedAdam(adapters, creators)
    fast = torch.compile(model, dynamic=False) if compiled else model
    quick = torch.compile(teacher, dynamic=False) if compiled else teacher
    levels = [schedule(one.count) for one in group]
    empty = data.bank.rows(np.zeros(1, int))
    for step in range(1, steps + 1):
        rng = np.random.default_rng((23, step))
        clean, *texts = data.batch(rng, PER_LORA * len(group), DROP)
        places = [rng.integers(len(own) - 1, size=PER_LORA) for own in levels]
        start, stop = (
            torch.cat([own[place + after] for own, place in zip(levels, places, strict=True)]) for after in (0, 1)
        )
        level = start[:, None, None, None]
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        x = (1 - level) * clean + level * noise
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                wanted = target(quick, x, start, stop, tuple(texts), empty)
            out = fast(x, start, *texts)
        losses = (out.float() - wanted).square().mean((1, 2, 3))
        (losses.sum() / PER_LORA).backward()
        optimiser.step(step)
        if step % 10 == 0:
            log.info("step %d/%d loss %.4f", step, steps, float(losses.detach().mean()))
    for k, one in enumerate(group):
        scale, found = float(adapters.scale[k]), adapters.factors(k, one.creator)
        write_raw(path_of(one), {name: (down, scale * up) for name, (down, up) in found.items()})


def path_of(one: Student) -> Path:
    return folder() / f"{one.name}.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=positive_int, default=250)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(zoo_dir("inductor")))
    torch.set_num_threads(1)
    train(args.steps, not args.no_compile)


if __name__ == "__main__":
    main()
