"""Training of the demo base on two CPU cores: flow matching in latents, time-boxed, resumable.

Two processes of one thread each work on shared parameters: each computes half a batch, then updates half of the
parameters. Two threads in one process would meet at every operator, and stall there whenever other work runs.

    python -m zoo.train_base --minutes 120      or, to be repeatable:  --steps 17000
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.base_data import BaseData
from zoo.budget import Budget, add_options, chosen
from zoo.cache import models_dir, read_json, write_atomic, write_json, zoo_dir
from zoo.mmdit import MMDiT
from zoo.optimiser import Optimiser, Slot, split_work
from zoo.samples import draw_sheet

log = logging.getLogger("zoo.base")
MINUTES = 120.0
WORLD, BATCH = 2, 32  # batch is per process
PEAK, WARMUP, FALL = 2e-3, 200, 0.45  # learning rate, warm-up steps, share of the time in which it falls to zero
EMA, DROP, SAVE_EVERY, LOG_EVERY = 0.9995, 0.1, 180.0, 100
STATE = ("params", "ema", "first", "second")


@dataclass
class Shared:
    """Flat float32 vectors in shared memory, all (n,) but ``grads`` (WORLD, n)."""

    params: Tensor
    ema: Tensor
    first: Tensor
    second: Tensor
    grads: Tensor
    clock: Tensor  # seconds spent, steps done, stop flag, loss sums


def clock_of(shared: Shared) -> tuple[float, int]:
    """Seconds spent and steps done, over all runs."""
    return float(shared.clock[0]), int(shared.clock[1])


def slots_of(model: nn.Module) -> list[Slot]:
    slots, at = [], 0
    for name, p in model.named_parameters():
        slots.append(Slot(name, at, p.shape))
        at += p.numel()
    return slots


def attach(model: nn.Module, slots: list[Slot], params: Tensor, grads: Tensor) -> None:
    """Make the model's parameters and gradients views of the flat vectors."""
    for (_, p), slot in zip(model.named_parameters(), slots, strict=True):
        p.data = params[slot.start : slot.stop].view(slot.shape)
        p.grad = grads[slot.start : slot.stop].view(slot.shape)


def learning_rate(progress: float, step: int) -> float:
    """Warm-up, flat, then linear to zero over the last ``FALL`` of the time."""
    return PEAK * min(1.0, step / WARMUP) * min(1.0, max(1 - progress, 0) / FALL + 1e-3)


def draw_times(n: int, generator: torch.Generator) -> Tensor:
    """(n,) in 0..1: logit-normal (Esser et al., section 3.1) leaning to noise, one in five uniform."""
    t = torch.sigmoid(0.3 + 1.2 * torch.randn(n, generator=generator))
    uniform = torch.rand(n, generator=generator)
    return torch.where(torch.rand(n, generator=generator) < 0.2, uniform, t)


def flow_loss(model: Any, clean: Tensor, t: Tensor, noise: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
    """Squared error of the velocity per sample, (b,)."""
    level = t[:, None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        out = model((1 - level) * clean + level * noise, t, context, pooled)
    return (out.float() - (noise - clean)).square().mean((1, 2, 3))


class Worker:
    """One of the processes."""

    def __init__(self, rank: int, shared: Shared, barrier: Any, budget: Budget, compiled: bool):
        torch.set_num_threads(1)
        self.rank, self.shared, self.barrier, self.budget = rank, shared, barrier, budget
        self.data = BaseData.load()
        self.model = MMDiT()
        slots = slots_of(self.model)
        attach(self.model, slots, shared.params, shared.grads[rank])
        self.fast = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.optimiser = Optimiser(shared.params, shared.first, shared.second, split_work(slots, WORLD)[rank])
        half = (len(shared.params) + WORLD - 1) // WORLD
        self.mine = slice(rank * half, (rank + 1) * half)
        self.saved = self.drawn = time.time()

    def compute(self, step: int) -> float:
        """Gradient of half a batch into this process's row of ``grads``."""
        rng = np.random.default_rng((7, step, self.rank))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean, context, pooled = self.data.batch(rng, BATCH, DROP)
        self.shared.grads[self.rank].zero_()
        noise = torch.randn(clean.shape, generator=generator)
        loss = flow_loss(self.fast, clean, draw_times(BATCH, generator), noise, context, pooled).mean()
        loss.backward()
        return float(loss.detach())

    def update(self, step: int) -> None:
        """This process's share of the parameters, then its half of the average."""
        shared, progress = self.shared, self.budget.progress(*clock_of(self.shared))
        grad = shared.grads.mean(0)
        self.optimiser.step(grad, learning_rate(progress, step), step)
        self.barrier.wait()
        decay = min(EMA, (1 + step) / (10 + step))
        shared.ema[self.mine].lerp_(shared.params[self.mine], 1 - decay)

    def run(self) -> None:
        last, parent = time.time(), os.getppid()
        while os.getppid() == parent:  # a killed parent must not leave its processes behind
            step = int(self.shared.clock[1]) + 1
            loss = self.compute(step)
            self.shared.clock[4 + self.rank] += loss
            self.barrier.wait()
            self.update(step)
            if self.rank == 0:
                now = time.time()
                self.shared.clock[0] += min(now - last, 30.0)  # a machine that slept did not train
                self.shared.clock[1] = step
                last = now
                self.housekeeping(step, now)
                self.shared.clock[2] = float(self.budget.spent(*clock_of(self.shared)))
            self.barrier.wait()
            if self.shared.clock[2]:
                break
        if self.rank == 0:
            save_state(self.shared)

    def housekeeping(self, step: int, now: float) -> None:
        if step % LOG_EVERY == 0:
            loss = float(self.shared.clock[4:].sum()) / WORLD / LOG_EVERY
            self.shared.clock[4:] = 0
            write_log(step, float(self.shared.clock[0]), loss)
        if now - self.saved > SAVE_EVERY:
            save_state(self.shared)
            self.saved = now
        if now - self.drawn > 900:
            self.drawn = now
            model = ema_model(self.shared.ema)
            draw_sheet(model, zoo_dir("base", "samples") / f"step_{step:06d}.png")


def loss_path() -> Path:
    return zoo_dir("base") / "loss.csv"


def forget_after(step: int, path: Path | None = None) -> None:
    """Take away what was logged after the saved state: those steps are done again."""
    path = path or loss_path()
    if not path.exists():
        return
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    kept = [row for row in rows if int(row.split(",")[0]) <= step]
    write_atomic(path, lambda tmp: tmp.write_text("\n".join([head, *kept, ""]), encoding="utf-8"))


def write_log(step: int, spent: float, loss: float, path: Path | None = None) -> None:
    path = path or loss_path()
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        if new:
            writer.writerow(["step", "seconds", "loss"])
        writer.writerow([step, f"{spent:.1f}", f"{loss:.5f}"])
    log.info("step %d  %.0f s  loss %.4f", step, spent, loss)


def ema_model(flat: Tensor, model: nn.Module | None = None) -> nn.Module:
    """``flat`` in ``model``, the demo base's network if not given."""
    model = model or MMDiT()
    for (_, p), slot in zip(model.named_parameters(), slots_of(model), strict=True):
        p.data = flat[slot.start : slot.stop].view(slot.shape).clone()
    return model.eval()


def save_state(shared: Shared) -> None:
    """Everything needed to go on. The tensors carry their own step, so a kill between the two files is harmless."""
    folder = zoo_dir("base")
    tensors = {k: getattr(shared, k).clone() for k in STATE}
    tensors["clock"] = shared.clock.clone()
    write_atomic(folder / "state.safetensors", lambda tmp: save_file(tensors, str(tmp)))
    write_json(folder / "state.json", {"step": int(shared.clock[1]), "seconds": float(shared.clock[0])})


def initial_state(warm: bool = False) -> Shared:
    """The saved state, else (``warm``) the shipped weights, else a fresh start from seed 0."""
    torch.manual_seed(0)
    model = MMDiT()
    params = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    zeros = torch.zeros_like(params)
    shared = Shared(
        params,
        params.clone(),
        zeros.clone(),
        zeros.clone(),
        torch.zeros(WORLD, len(params)),
        torch.zeros(4 + WORLD).double(),
    )
    path = zoo_dir("base") / "state.safetensors"
    if path.exists():
        saved = load_file(str(path))
        for key in (*STATE, "clock"):
            getattr(shared, key).copy_(saved[key])
        shared.clock[2] = 0
        forget_after(clock_of(shared)[1])
        log.info("resumed: %s", read_json(zoo_dir("base") / "state.json"))
    elif warm:
        warm_start(shared)
    for value in vars(shared).values():
        value.share_memory_()
    return shared


def warm_start(shared: Shared) -> None:
    """Go on from the shipped weights, when the training state is lost; the clock goes on, the moments start anew."""
    model = MMDiT()
    with safe_open(str(shipped_path()), "pt") as handle:
        model.load_state_dict({k: handle.get_tensor(k).float() for k in handle.keys()})
        info = handle.metadata() or {}
    shared.params.copy_(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    shared.ema.copy_(shared.params)
    shared.clock[0], shared.clock[1] = float(info["autolora.training_seconds"]), int(info["autolora.training_steps"])
    log.info("going on from %s", shipped_path())


def start(rank: int, shared: Shared, barrier: Any, budget: Budget, compiled: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    Worker(rank, shared, barrier, budget, compiled).run()


def shipped_path() -> Path:
    return models_dir() / "emoji_mmdit.safetensors"


def export(path: Path | None = None) -> Path:
    """Write the averaged weights as fp16, in the layout of ComfyUI's SD3-class models."""
    state = load_file(str(zoo_dir("base") / "state.safetensors"))
    model = ema_model(state["ema"])
    tensors = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    info = {
        "format": "pt",
        "modelspec.title": "AutoLoRA demo base (EmojiMatrix)",
        "autolora.training_steps": str(int(state["clock"][1])),
    }
    info["autolora.training_seconds"] = str(int(state["clock"][0]))
    path = path or shipped_path()
    return write_atomic(path, lambda tmp: save_file(tensors, str(tmp), info))


def train(budget: Budget, compiled: bool = True, warm: bool = False) -> None:
    """Train until ``budget`` (over all runs) is spent."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(zoo_dir("inductor")))
    BaseData.load()  # builds what is missing once, before the processes start
    shared = initial_state(warm)
    if budget.spent(*clock_of(shared)):
        log.info("already trained for %.0f s, %d steps", *clock_of(shared))
        return
    barrier = mp.get_context("spawn").Barrier(WORLD)
    mp.spawn(start, (shared, barrier, budget, compiled), nprocs=WORLD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, MINUTES)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--from-shipped", action="store_true", help="without a saved state, go on from shipped weights")
    parser.add_argument("--export", action="store_true", help="only write emoji_mmdit.safetensors from the saved state")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not args.export:
        train(chosen(args.minutes, args.steps, MINUTES), not args.no_compile, args.from_shipped)
    log.info("wrote %s", export())


if __name__ == "__main__":
    main()
