"""Train the second architecture and a dozen and more LoRAs on it: what the demo base's universal gate has never seen.

    python -m zoo.train_second [--minutes 60]       the base, then the LoRAs; goes on where it was stopped

One process and one thread, the base's pictures, captions, loss and rates. Nothing of it is shipped: it is there to ask
whether what is learnt on one architecture holds on another (``python -m benchmarks.fusion_second``).
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from zoo.base_data import BaseData
from zoo.budget import Budget, add_options, chosen
from zoo.cache import read_json, write_atomic, write_json, zoo_dir
from zoo.captions import STYLE_NAMES
from zoo.lora_data import load
from zoo.lora_plan import ATTENTION, CONTEXT, MLP, Creator, LoraSpec
from zoo.multi_lora import StackedAdapters
from zoo.optimiser import Optimiser
from zoo.pictures import Pictures
from zoo.samples import draw_sheet
from zoo.scale_plan import subject_part
from zoo.second_arch import SmallFlux
from zoo.splits import Splits, unit
from zoo.train_base import (
    EMA,
    attach,
    draw_times,
    ema_model,
    flow_loss,
    forget_after,
    learning_rate,
    slots_of,
    write_log,
)
from zoo.train_loras import Group, make_bank

log = logging.getLogger("zoo.second")
MINUTES, BATCH, DROP, SAVE_EVERY, LOG_EVERY = 60.0, 48, 0.1, 120.0, 100
STATE = ("params", "ema", "first", "second")


def folder() -> Path:
    return zoo_dir("second")


class Training:
    """The base's training; ``clock``: seconds spent and steps done, over all runs."""

    def __init__(self, budget: Budget, compiled: bool = True):
        torch.manual_seed(0)
        self.budget, self.data, self.model = budget, BaseData.load(), SmallFlux()
        self.slots = slots_of(self.model)
        start = torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])
        self.state = {"params": start, "ema": start.clone()} | {k: torch.zeros_like(start) for k in STATE[2:]}
        self.state["clock"] = torch.zeros(2, dtype=torch.float64)
        if (folder() / "state.safetensors").exists():
            for key, value in load_file(str(folder() / "state.safetensors")).items():
                self.state[key].copy_(value)
            log.info("going on after %d steps", int(self.state["clock"][1]))
        forget_after(int(self.state["clock"][1]), folder() / "loss.csv")
        self.grads = torch.zeros_like(start)
        attach(self.model, self.slots, self.state["params"], self.grads)
        self.fast = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.optimiser = Optimiser(self.state["params"], self.state["first"], self.state["second"], self.slots)

    def one_step(self, step: int) -> float:
        rng = np.random.default_rng((17, step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean, context, pooled = self.data.batch(rng, BATCH, DROP)
        self.grads.zero_()
        noise = torch.randn(clean.shape, generator=generator)
        loss = flow_loss(self.fast, clean, draw_times(BATCH, generator), noise, context, pooled).mean()
        loss.backward()
        self.optimiser.step(self.grads, learning_rate(self.budget.progress(*self.clock), step), step)
        self.state["ema"].lerp_(self.state["params"], 1 - min(EMA, (1 + step) / (10 + step)))
        return float(loss.detach())

    @property
    def clock(self) -> tuple[float, int]:
        return float(self.state["clock"][0]), int(self.state["clock"][1])

    def run(self) -> None:
        last = saved = time.time()
        meter: list[float] = []
        while not self.budget.spent(*self.clock):
            meter.append(self.one_step(self.clock[1] + 1))
            now = time.time()
            self.state["clock"] += torch.tensor([min(now - last, 30.0), 1.0])
            last = now
            if self.clock[1] % LOG_EVERY == 0:
                self.log(float(np.mean(meter)))
                meter = []
            if now - saved > SAVE_EVERY:
                self.save()
                saved = now
        self.save()

    def log(self, loss: float) -> None:
        seconds, step = self.clock
        write_log(step, seconds, loss, folder() / "loss.csv")

    def save(self) -> None:
        write_atomic(folder() / "state.safetensors", lambda tmp: save_file(self.state, str(tmp)))
        write_json(folder() / "state.json", {"seconds": round(self.clock[0], 1), "step": self.clock[1]})


def load_second() -> SmallFlux:
    """The averaged weights of the training so far, float32, frozen."""
    flat = load_file(str(folder() / "state.safetensors"))["ema"]
    return ema_model(flat, SmallFlux()).requires_grad_(False)


# One recipe, a usual one: the question is the gate, not the LoRAs.
CREATOR = Creator("second", 8, 1.0, 4e-3, 200, (ATTENTION, MLP, CONTEXT), "native", "float32")
SUBJECTS, STYLES = 12, 8


def specs() -> list[LoraSpec]:
    """Subjects and styles that the base has not seen, of the test part, by hash; they make the test's pairs."""
    splits = Splits.load()
    subjects = [s for s in splits.lora_subjects if subject_part(s) == "test"]
    subjects = sorted(subjects, key=lambda s: unit("second-subject", s))[:SUBJECTS]
    styles = [s for s in splits.lora_styles if s in STYLE_NAMES]
    styles = sorted(styles, key=lambda s: unit("second-style", s))[:STYLES]
    things = [(s, None) for s in subjects] + [(None, s) for s in styles]
    return [LoraSpec(str(a or b), a, b, CREATOR, "none", f"{a or b}.safetensors", i) for i, (a, b) in enumerate(things)]


def lora_path(spec: LoraSpec) -> Path:
    """LoRAs belong to one base, marked by its steps."""
    step = read_json(folder() / "state.json")["step"]
    return zoo_dir("second", f"loras-{step}") / spec.file_name


class SecondGroup(Group):
    def path(self, spec: LoraSpec) -> Path:
        return lora_path(spec)


def train_loras(compiled: bool = True) -> None:
    """All at once; none if all are there."""
    every = specs()
    if all(lora_path(spec).exists() for spec in every):
        return
    pictures, model = Pictures.load(), load_second()
    adapters = StackedAdapters(model, len(every), CREATOR.rank)
    fast = torch.compile(model, dynamic=False) if compiled else model

    def progress(step: int, steps: int, loss: float) -> None:
        if step % 20 == 0:
            log.info("LoRAs: step %d/%d loss %.4f", step, steps, loss)

    group = SecondGroup(adapters, fast, make_bank(every, pictures))
    group.run(every, [load(spec, pictures) for spec in every], progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, MINUTES)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(zoo_dir("inductor")))
    torch.set_num_threads(1)
    Training(chosen(args.minutes, args.steps, MINUTES), not args.no_compile).run()
    draw_sheet(load_second(), folder() / "sheet.png")
    train_loras(not args.no_compile)


if __name__ == "__main__":
    main()
