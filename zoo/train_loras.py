"""Train every LoRA of the plan, many at once; a finished file is never trained again.

    python -m zoo.train_loras            (two processes, each with its own groups of LoRAs)

What a LoRA sees is drawn from its own seed, whoever it is trained beside: a run that was stopped gives the same LoRAs.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor

from zoo.budget import positive_int
from zoo.cache import MODELS, REPO, models_dir, read_json, shelf_table, write_json, zoo_dir
from zoo.lora_data import LoraData, load, style_latents
from zoo.lora_export import write
from zoo.lora_plan import LoraSpec, plan
from zoo.mmdit import MMDiT
from zoo.multi_lora import StackedAdam, StackedAdapters
from zoo.pictures import Pictures
from zoo.raw_factors import Factors, read_raw, write_raw
from zoo.sampler import Velocity
from zoo.text_bank import TextBank
from zoo.train_base import draw_times, flow_loss

log = logging.getLogger("zoo.loras")
GROUP, PER_LORA, RANK, DROP, PROCESSES = 18, 4, 8, 0.1, 2
Progress = Callable[[int, int, float], None]  # step, steps, loss


def base_path() -> Path:
    return models_dir() / "emoji_mmdit.safetensors"


def load_base(path: Path | None = None) -> MMDiT:
    """The shipped base, float32, frozen."""
    model = MMDiT()
    model.load_state_dict({k: v.float() for k, v in load_file(str(path or base_path())).items()})
    return model.eval().requires_grad_(False)


def base_tag() -> str:
    """LoRAs belong to one base: its number of training steps marks their folder."""
    from safetensors import safe_open

    with safe_open(str(base_path()), "pt") as handle:
        return "base-" + (handle.metadata() or {}).get("autolora.training_steps", "0")


def finished(spec: LoraSpec) -> Path:
    return zoo_dir("loras", base_tag()) / f"{spec.id}-{spec.digest}.safetensors"


@dataclass
class Samples:
    """What one step draws for one LoRA, or for several side by side."""

    latents: Tensor  # (b, 16, 16, 16)
    captions: np.ndarray  # (b,) rows of the text bank
    times: Tensor  # (b,)
    noise: Tensor  # as latents


def draw(data: LoraData, index: Mapping[str, int], seed: int, step: int) -> Samples:
    """``PER_LORA`` samples; they depend on the LoRA's seed and the step alone."""
    rng = np.random.default_rng((seed, step))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    picks = rng.integers(len(data.latents), size=PER_LORA)
    texts = [data.captions[i][rng.integers(len(data.captions[i]))] for i in picks]
    ids = [0 if rng.random() < DROP else index[text] for text in texts]
    latents = torch.from_numpy(data.latents[picks].astype(np.float32))
    times = draw_times(PER_LORA, generator)
    return Samples(latents, np.array(ids), times, torch.randn(latents.shape, generator=generator))


def beside(parts: Sequence[Samples]) -> Samples:
    latents, times, noise = (torch.cat([getattr(p, k) for p in parts]) for k in ("latents", "times", "noise"))
    return Samples(latents, np.concatenate([p.captions for p in parts]), times, noise)


class Group:
    """LoRAs trained together, as many as ``adapters`` has places for."""

    def __init__(self, adapters: StackedAdapters, fast: Velocity, bank: TextBank):
        self.adapters, self.fast, self.bank = adapters, fast, bank

    def run(self, specs: Sequence[LoraSpec], sets: Sequence[LoraData], progress: Progress) -> None:
        """Train ``specs`` (padded to the group's size by repeating the first) and write each finished one."""
        padding = self.adapters.count - len(specs)
        padded, data = [*specs, *[specs[0]] * padding], [*sets, *[sets[0]] * padding]
        creators = [s.creator for s in padded]
        self.adapters.reset(creators, [s.seed for s in padded])
        optimiser = StackedAdam(self.adapters, creators)
        steps = max(c.steps for c in creators)
        for step in range(1, steps + 1):
            drawn = [draw(d, self.bank.index, s.seed, step) for d, s in zip(data, padded, strict=True)]
            batch = beside(drawn)
            texts = self.bank.rows(batch.captions)
            losses = flow_loss(self.fast, batch.latents, batch.times, batch.noise, *texts)
            (losses.sum() / PER_LORA).backward()  # every LoRA has its own mean
            optimiser.step(step)
            progress(step, steps, float(losses.detach().mean()))
            for k, spec in enumerate(specs):
                if spec.creator.steps == step:
                    self.store(k, spec)

    def store(self, k: int, spec: LoraSpec) -> None:
        """Keep the raw factors; ``export`` writes the shipped form."""
        write_raw(self.path(spec), self.adapters.factors(k, spec.creator))

    def path(self, spec: LoraSpec) -> Path:
        return finished(spec)


def shelf(limit: int | None = None) -> list[LoraSpec]:
    """The plan, or of its subjects and its styles in turn the ``limit`` that take the fewest steps."""
    if limit is None:
        return plan()
    quick = sorted(plan(), key=lambda s: s.creator.steps)
    subjects, styles = [s for s in quick if s.subject], [s for s in quick if s.style]
    chosen = [s for pair in zip(subjects, styles, strict=False) for s in pair][:limit]
    return sorted(chosen, key=lambda s: s.id)


def groups_of(specs: Sequence[LoraSpec]) -> list[list[LoraSpec]]:
    """What is not finished, similar numbers of steps together, so that nobody waits for long."""
    todo = sorted((s for s in specs if not finished(s).exists()), key=lambda s: (-s.creator.steps, s.id))
    size = max(1, min(GROUP, math.ceil(len(todo) / PROCESSES)))
    return [todo[i : i + size] for i in range(0, len(todo), size)]


def worker(rank: int, groups: list[list[LoraSpec]], specs: Sequence[LoraSpec], compiled: bool) -> None:
    """Every ``PROCESSES``-th group; ``specs`` is the whole shelf, whose texts are in one bank."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    mine = groups[rank::PROCESSES]
    if not mine:
        return
    pictures, model = Pictures.load(), load_base()
    adapters = StackedAdapters(model, len(groups[0]), RANK)
    fast = torch.compile(model, dynamic=False) if compiled else model
    trainer = Group(adapters, fast, make_bank(specs, pictures))
    parent = os.getppid()
    for number, group in enumerate(mine, 1):
        began, where = time.time(), f"worker {rank} group {number}/{len(mine)}"

        def progress(step: int, steps: int, loss: float, began: float = began, where: str = where) -> None:
            if os.getppid() != parent:
                raise SystemExit("the process that started this one is gone")
            if step % 50 == 0:
                log.info("%s step %d/%d loss %.4f  %.0f s", where, step, steps, loss, time.time() - began)

        trainer.run(group, [load(s, pictures) for s in group], progress)


def make_bank(specs: Sequence[LoraSpec], pictures: Pictures) -> TextBank:
    return TextBank.build([t for s in specs for texts in load(s, pictures).captions for t in texts], "loras")


def train(limit: int | None = None, compiled: bool = True) -> None:
    """Train what is missing of the shelf, in ``PROCESSES`` processes."""
    specs, pictures, began = shelf(limit), Pictures.load(), time.time()
    for style in sorted({s.style for s in specs if s.style}):
        style_latents(pictures, style)
    make_bank(specs, pictures)  # once, before the processes start
    log.info("training sets ready after %.0f s", time.time() - began)
    groups = groups_of(specs)
    if not groups:
        log.info("all %d LoRAs are trained", len(specs))
        return
    mp.spawn(worker, (groups, specs, compiled), nprocs=PROCESSES)
    done = {"seconds": time.time() - began, "loras": sum(map(len, groups))}
    write_json(zoo_dir("loras", base_tag()) / "seconds.json", done)


def raw_factors(spec: LoraSpec) -> Factors:
    return read_raw(finished(spec))


def lora_folder() -> Path:
    return models_dir() / "loras"


def export() -> list[Path]:
    """Write every finished LoRA as its creator would, with a table of what is what.

    Files that an earlier table names and this one does not are taken away; nothing else in the folder is touched.
    """
    from zoo.lora_variants import variants

    folder, table = lora_folder(), shelf_table()
    folder.mkdir(parents=True, exist_ok=True)
    specs = [s for s in plan() if finished(s).exists()]
    jobs = [(s, raw_factors(s)) for s in specs]
    jobs += [(v.spec, v.change(raw_factors(v.source))) for v in variants(specs)]
    paths = [write(factors, spec, folder / spec.file_name) for spec, factors in jobs]
    before = read_json(table) if table.exists() else []
    for stale in {folder / row["file"] for row in before} - set(paths):
        stale.unlink(missing_ok=True)
    write_json(table, [spec.to_json() for spec, _ in jobs], indent=1)  # last, so that a kill before it leaves no orphan
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=positive_int, help="only so many, the quickest; not into models/ here")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--export", action="store_true", help="only write the files of what is trained")
    args = parser.parse_args()
    if args.limit and models_dir() == REPO / "models":
        parser.error(f"a part of the shelf must not replace the shipped one: set {MODELS} to another folder")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not args.export:
        train(args.limit, not args.no_compile)
    paths = export()
    log.info("wrote %d LoRAs, %.1f MB", len(paths), sum(p.stat().st_size for p in paths) / 2**20)


if __name__ == "__main__":
    main()
