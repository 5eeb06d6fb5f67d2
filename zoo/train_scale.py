"""Train the large zoo: more than 2,000 LoRAs of the demo base, many at once, in two processes of one thread.

    python -m zoo.train_scale --prepare      training pictures, captions, compiled steps (needs no final base)
    python -m zoo.train_scale                trains what is missing; stop it and start it again at will
    python -m zoo.train_scale --minutes 30   starts no new group after half an hour

A finished LoRA is never trained again. Groups come in an order drawn by hash: whatever is finished is a fair sample.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.autoencoder import Autoencoder, precompute_latents
from zoo.cache import read_json, write_atomic, write_json, zoo_dir
from zoo.lora_export import DTYPES
from zoo.mmdit import Mlp, MMDiT
from zoo.multi_lora import StackedAdam, StackedAdapters
from zoo.pictures import Pictures, build
from zoo.scale_plan import ScaleSpec, plan
from zoo.scale_sets import TrainingSet, all_captions, build_look, is_made, load, look_path
from zoo.text_bank import TextBank
from zoo.train_base import draw_times, flow_loss
from zoo.train_loras import base_tag, load_base

log = logging.getLogger("zoo.scale")
SAMPLES, DROP, PROCESSES, REPORT_EVERY = 72, 0.1, 2, 20.0
# Fresh pages for every large tensor cost a sixth of a step: glibc is told to keep what it once had.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_TOP_PAD_": str(2**28),
}


@dataclass(frozen=True)
class Shape:
    """What one compiled step is made for: ranks padded to ``rank``, ``batch`` samples of each of ``count`` LoRAs."""

    rank: int
    batch: int

    @property
    def count(self) -> int:
        return SAMPLES // self.batch

    @classmethod
    def of(cls, spec: ScaleSpec) -> Shape:
        return cls(8 if spec.creator.rank <= 8 else 16, spec.creator.batch)


def folder() -> Path:
    return zoo_dir("scale", base_tag())


def finished(spec: ScaleSpec) -> Path:
    return folder() / f"{spec.id}-{spec.digest}.safetensors"


def groups_of(specs: Sequence[ScaleSpec]) -> list[list[ScaleSpec]]:
    """Groups of one shape and about one number of steps, so that nobody waits; in an order drawn by hash."""
    groups = []
    for shape in sorted({Shape.of(s) for s in specs}, key=lambda s: (s.rank, s.batch)):
        mine = sorted((s for s in specs if Shape.of(s) == shape), key=lambda s: (-s.creator.steps, s.id))
        groups += [mine[i : i + shape.count] for i in range(0, len(mine), shape.count)]
    return sorted(groups, key=lambda g: hashlib.sha256(f"group|{g[0].id}".encode()).digest())


def missing(groups: Sequence[Sequence[ScaleSpec]], done: Callable[[ScaleSpec], bool]) -> list[list[ScaleSpec]]:
    """The groups without what is finished; the order stays."""
    left = [[s for s in group if not done(s)] for group in groups]
    return [group for group in left if group]


def cheaper_gelu(model: MMDiT) -> None:
    """The tanh form of GELU written with the logistic function, x·σ(2·√(2/π)·(x + 0.044715 x³)): the same numbers, a
    tenth of a step less.
    """

    def patch(mlp: Mlp) -> None:
        def forward(x: Tensor) -> Tensor:
            h = mlp.fc1(x)
            return mlp.fc2(h * torch.sigmoid(h * (1.5957691216057308 + 0.07135481282722245 * h * h)))

        mlp.forward = forward  # type: ignore[method-assign]

    for module in model.modules():
        if isinstance(module, Mlp):
            patch(module)


class Engine:
    """A frozen base with adapters of one shape, and its compiled step."""

    def __init__(self, shape: Shape, bank: TextBank, compiled: bool):
        self.shape, self.bank = shape, bank
        self.model = load_base()
        cheaper_gelu(self.model)
        self.adapters = StackedAdapters(self.model, shape.count, shape.rank)
        self.fast: nn.Module | Any = torch.compile(self.model, dynamic=False) if compiled else self.model

    def draw(self, spec: ScaleSpec, data: TrainingSet, step: int) -> tuple[Tensor, np.ndarray, Tensor, Tensor]:
        """Latents, rows of the text bank, times and noise of ``batch`` samples: they depend on the LoRA and the step
        alone, whoever it is trained beside.
        """
        rng = np.random.default_rng((spec.seed, step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        picks = rng.integers(len(data.latents), size=self.shape.batch)
        texts = [data.captions[i][rng.integers(len(data.captions[i]))] for i in picks]
        ids = [0 if rng.random() < DROP else self.bank.index[t] for t in texts]
        latents = torch.from_numpy(data.latents[picks].astype(np.float32))
        times = draw_times(len(picks), generator)
        return latents, np.array(ids), times, torch.randn(latents.shape, generator=generator)

    def run(
        self, specs: Sequence[ScaleSpec], sets: Sequence[TrainingSet], progress: Callable[[int, float], None],
        limit: int | None = None,
    ) -> dict[str, dict[str, Tensor]]:  # fmt: skip
        """Train ``specs``, padded to the shape by repeating the first; id -> what is stored."""
        padded = [*specs, *[specs[0]] * (self.shape.count - len(specs))]
        data = [*sets, *[sets[0]] * (self.shape.count - len(specs))]
        self.adapters.reset([s.creator for s in padded], [s.seed for s in padded])
        optimiser = StackedAdam(self.adapters, [s.creator for s in padded])
        out: dict[str, dict[str, Tensor]] = {}
        for step in range(1, (limit or max(s.creator.steps for s in specs)) + 1):
            drawn = zip(*(self.draw(s, d, step) for s, d in zip(padded, data, strict=True)), strict=True)
            latents, ids, times, noise = drawn
            texts = self.bank.rows(np.concatenate(ids))
            losses = flow_loss(self.fast, torch.cat(latents), torch.cat(times), torch.cat(noise), *texts)
            (losses.sum() / self.shape.batch).backward()  # every LoRA has its own mean
            optimiser.step(step)
            progress(step, float(losses.detach().mean()))
            out |= {s.id: self.stored(k, s) for k, s in enumerate(specs) if s.creator.steps == step}
        return out

    def stored(self, k: int, spec: ScaleSpec) -> dict[str, Tensor]:
        """``<module>|down`` and ``<module>|up``, fp16, the scale folded into ``up``, rounded as in its own file."""
        dtype, flat = DTYPES[spec.creator.dtype], {}
        for name, (down, up) in self.adapters.factors(k, spec.creator).items():
            flat[f"{name}|down"] = down.to(dtype).half().contiguous()
            flat[f"{name}|up"] = (up * spec.creator.alpha).to(dtype).half().contiguous()
        return flat


def quiet_start() -> int:
    """One thread, a log, and the id of the process that started this one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    return os.getppid()


def must_live(parent: int) -> None:
    if os.getppid() != parent:
        raise SystemExit("the process that started this one is gone")


def worker(rank: int, work: list[list[ScaleSpec]], next_group: Any, counts: Any, until: float, compiled: bool) -> None:
    """Take group after group; ``counts`` holds the LoRAs and the samples done."""
    parent = quiet_start()
    pictures = Pictures.load()
    bank, engines = make_bank(pictures), {}
    while time.time() < until:
        with next_group.get_lock():
            number, next_group.value = next_group.value, next_group.value + 1
        if number >= len(work):
            break
        specs, began, losses = work[number], time.time(), []

        def progress(step: int, loss: float, specs: list[ScaleSpec] = specs, losses: list[float] = losses) -> None:
            must_live(parent)
            losses.append(loss)
            with counts.get_lock():
                counts[1] += sum(s.creator.batch for s in specs if step <= s.creator.steps)

        shape = Shape.of(specs[0])
        if shape not in engines:
            engines[shape] = Engine(shape, bank, compiled)
        stored = engines[shape].run(specs, [load(s, pictures) for s in specs], progress)
        for spec in specs:
            store(stored[spec.id], finished(spec))
        with counts.get_lock():
            counts[0] += len(specs)
        third = max(len(losses) // 3, 1)
        log.info(
            "worker %d: %d LoRAs, %d steps, loss %.4f -> %.4f, %.0f s",
            rank, len(specs), len(losses), np.mean(losses[:third]), np.mean(losses[-third:]), time.time() - began,
        )  # fmt: skip


def store(flat: dict[str, Tensor], path: Path) -> None:
    write_atomic(path, lambda tmp: save_file(flat, str(tmp)))


def look_worker(rank: int, specs: Sequence[ScaleSpec]) -> None:
    parent = quiet_start()
    pictures, autoencoder = Pictures.load(), Autoencoder.load()
    mine = specs[rank::PROCESSES]
    for i, spec in enumerate(mine):
        must_live(parent)
        build_look(spec, pictures, autoencoder)
        if i % 25 == 0 and rank == 0:
            log.info("training pictures: %d of %d", i * PROCESSES, len(specs))


def make_bank(pictures: Pictures, progress: Callable[[int, int], None] | None = None) -> TextBank:
    return TextBank.build(all_captions(plan(), pictures), "scale", progress)


def compile_worker(_: int, shapes: Sequence[Shape]) -> None:
    """Fill the compiler's cache: two steps of every shape."""
    parent = quiet_start()
    pictures = Pictures.load()
    bank = make_bank(pictures)
    for shape in shapes:
        specs = [s for s in plan() if Shape.of(s) == shape and s.kind == "subject"][: shape.count]
        began = time.time()
        Engine(shape, bank, True).run(specs, [load(s, pictures) for s in specs], lambda *_: must_live(parent), limit=2)
        log.info("compiled %s in %.0f s", shape, time.time() - began)


def prepare(compiled: bool) -> None:
    """Everything that does not depend on the base's weights; pictures and latents too, where this is the first run."""
    for name, make in (("pictures.json", build), ("latents.npy", precompute_latents)):
        if not (zoo_dir() / name).exists():
            make(PROCESSES)
    firsts = {look_path(s): s for s in plan() if s.style and is_made(s.style)}
    absent = [spec for path, spec in firsts.items() if not path.exists()]
    if absent:
        mp.spawn(look_worker, (absent,), nprocs=PROCESSES)
    make_bank(Pictures.load(), lambda i, n: log.info("captions: %d of %d", i, n) if i % 4096 == 0 else None)
    if compiled:
        mp.spawn(compile_worker, (sorted({Shape.of(s) for s in plan()}, key=str),), nprocs=1)


def progress_line(done: int, before: int, total: int, share: float, seconds: float) -> str:
    """``share`` is the part of this run's work that is done, 0..1."""
    bar = "#" * round(24 * (before + done) / max(total, 1))
    left = f"{seconds * (1 - share) / share / 60:.0f} min" if share > 0 else "unknown"
    return f"[{bar:-<24}] {before + done}/{total} LoRAs, {done / seconds * 3600:.0f} an hour, done in {left}"


def train(minutes: float | None = None, limit: int | None = None, compiled: bool = True) -> None:
    """Train what is missing until all is done or ``minutes`` are over; only the first ``limit`` groups when given."""
    groups = groups_of(plan())[:limit]
    work, total = missing(groups, lambda s: finished(s).exists()), sum(map(len, groups))
    todo = sum(map(len, work))
    samples = sum(s.creator.samples for g in work for s in g)
    log.info("%d LoRAs in %d groups to train for %s", todo, len(work), base_tag())
    if not work:
        return
    context = mp.get_context("spawn")
    next_group, counts = context.Value("i", 0), context.Array("q", 2)
    began = time.time()
    until = began + minutes * 60 if minutes else float("inf")
    running = mp.spawn(worker, (work, next_group, counts, until, compiled), nprocs=PROCESSES, join=False)
    try:
        while not running.join(timeout=REPORT_EVERY):
            log.info(progress_line(counts[0], total - todo, total, counts[1] / samples, time.time() - began))
    finally:
        for process in running.processes:  # nobody is left behind by an interrupt
            process.terminate()
        note_time(counts[0], counts[1], time.time() - began)


def note_time(loras: int, samples: int, seconds: float) -> None:
    """Add a run to ``time.json``."""
    path = folder() / "time.json"
    runs = read_json(path) if path.exists() else []
    write_json(path, [*runs, {"loras": loras, "samples": samples, "seconds": round(seconds, 1)}])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, help="start no new group after this long")
    parser.add_argument("--groups", type=int, help="only the first groups")
    parser.add_argument("--prepare", action="store_true", help="only what does not depend on the base's weights")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ.update({**ALLOCATOR, **os.environ})
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(zoo_dir("inductor")))
    prepare(args.prepare and not args.no_compile)
    if not args.prepare:
        train(args.minutes, args.groups, not args.no_compile)


if __name__ == "__main__":
    main()
