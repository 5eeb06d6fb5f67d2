"""Train every LoRA of the plan, many at once; a finished file is never trained again.

python -m zoo.train_loras            (two processes, each with its own groups of LoRAs)
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.cache import REPO, write_atomic, write_json, zoo_dir
from zoo.lora_data import LoraData, load, style_latents
from zoo.lora_export import write
from zoo.lora_plan import LoraSpec, plan
from zoo.mmdit import MMDiT
from zoo.multi_lora import StackedAdam, StackedAdapters
from zoo.pictures import Pictures
from zoo.text_bank import TextBank
from zoo.train_base import draw_times, flow_loss

log = logging.getLogger("zoo.loras")
GROUP, PER_LORA, RANK, DROP, PROCESSES = 18, 4, 8, 0.1, 2


def base_path() -> Path:
    return REPO / "models" / "emoji_mmdit.safetensors"


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


class Group:
    """Up to ``GROUP`` LoRAs trained together."""

    def __init__(self, adapters: StackedAdapters, model: MMDiT, fast, bank: TextBank):
        self.adapters, self.model, self.fast, self.bank = adapters, model, fast, bank

    def batch(self, sets: Sequence[LoraData], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        latents, ids = [], []
        for data in sets:
            for i in rng.integers(len(data.latents), size=PER_LORA):
                latents.append(data.latents[i])
                text = data.captions[i][rng.integers(len(data.captions[i]))]
                ids.append(0 if rng.random() < DROP else self.bank.index[text])
        return torch.from_numpy(np.stack(latents).astype(np.float32)), *self.bank.rows(np.array(ids))

    def run(self, specs: Sequence[LoraSpec], sets: Sequence[LoraData], progress) -> None:
        """Train ``specs`` (padded to the group's size by repeating the first) and write each finished one."""
        padded = [*specs, *[specs[0]] * (GROUP - len(specs))]
        data = [*sets, *[sets[0]] * (GROUP - len(specs))]
        creators = [s.creator for s in padded]
        self.adapters.reset(creators, [s.seed for s in padded])
        optimiser = StackedAdam(self.adapters, creators)
        steps = max(c.steps for c in creators)
        for step in range(1, steps + 1):
            rng = np.random.default_rng((specs[0].seed, step))
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            clean, context, pooled = self.batch(data, rng)
            noise = torch.randn(clean.shape, generator=generator)
            losses = flow_loss(self.fast, clean, draw_times(len(clean), generator), noise, context, pooled)
            (losses.sum() / PER_LORA).backward()  # every LoRA has its own mean
            optimiser.step(step)
            progress(step, steps, float(losses.detach().mean()))
            for k, spec in enumerate(specs):
                if spec.creator.steps == step:
                    self.store(k, spec)

    def store(self, k: int, spec: LoraSpec) -> None:
        """Keep the raw factors; ``export`` writes the shipped form."""
        factors = self.adapters.factors(k, spec.creator)
        flat = {
            f"{n}|{side}": t.contiguous()
            for n, pair in factors.items()
            for side, t in zip(("down", "up"), pair, strict=True)
        }
        write_atomic(finished(spec), lambda tmp: save_file(flat, str(tmp)))


def groups_of(specs: Sequence[LoraSpec]) -> list[list[LoraSpec]]:
    """Similar numbers of steps together, so that nobody waits for long."""
    todo = sorted((s for s in specs if not finished(s).exists()), key=lambda s: (-s.creator.steps, s.id))
    return [todo[i : i + GROUP] for i in range(0, len(todo), GROUP)]


def worker(rank: int, work: list[list[list[LoraSpec]]], compiled: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    pictures = Pictures.load()
    model = load_base()
    adapters = StackedAdapters(model, GROUP, RANK)
    fast = torch.compile(model, dynamic=False) if compiled else model
    bank = make_bank(plan(), pictures)
    parent = os.getppid()
    for number, specs in enumerate(work[rank]):
        began = time.time()

        def progress(step: int, steps: int, loss: float, number: int = number, began: float = began) -> None:
            if os.getppid() != parent:
                raise SystemExit("the process that started this one is gone")
            if step % 50 == 0:
                log.info(
                    "worker %d group %d/%d step %d/%d loss %.4f  %.0f s",
                    rank,
                    number + 1,
                    len(work[rank]),
                    step,
                    steps,
                    loss,
                    time.time() - began,
                )

        Group(adapters, model, fast, bank).run(specs, [load(s, pictures) for s in specs], progress)


def make_bank(specs: Sequence[LoraSpec], pictures: Pictures) -> TextBank:
    return TextBank.build([t for s in specs for texts in load(s, pictures).captions for t in texts], "loras")


def train(limit: int | None = None, compiled: bool = True) -> None:
    """Train what is missing, in ``PROCESSES`` processes."""
    specs, pictures = plan()[:limit], Pictures.load()
    began = time.time()
    for style in sorted({s.style for s in plan() if s.style}):
        style_latents(pictures, style)
    make_bank(plan(), pictures)
    log.info("training sets ready after %.0f s", time.time() - began)
    groups = groups_of(specs)
    if groups:
        mp.spawn(worker, ([groups[r::PROCESSES] for r in range(PROCESSES)], compiled), nprocs=PROCESSES)
    write_json(
        zoo_dir("loras", base_tag()) / "seconds.json", {"seconds": time.time() - began, "loras": sum(map(len, groups))}
    )


def raw_factors(spec: LoraSpec) -> dict[str, tuple[Tensor, Tensor]]:
    flat = load_file(str(finished(spec)))
    return {k.split("|")[0]: (v, flat[k.replace("|down", "|up")]) for k, v in flat.items() if k.endswith("|down")}


def export(folder: Path | None = None) -> list[Path]:
    """Write every finished LoRA to ``models/loras`` as its creator would, with a table of what is what."""
    from zoo.lora_variants import variants

    folder = folder or REPO / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    specs = [s for s in plan() if finished(s).exists()]
    jobs = [(s, raw_factors(s)) for s in specs]
    jobs += [(v.spec, v.change(raw_factors(v.source))) for v in variants(specs)]
    paths = [write(factors, spec, folder / spec.file_name) for spec, factors in jobs]
    for stale in set(folder.glob("*.safetensors")) - set(paths):
        stale.unlink()
    write_json(REPO / "zoo" / "loras.json", [spec.to_json() for spec, _ in jobs], indent=1)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--export", action="store_true", help="only write models/loras from what is trained")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not args.export:
        train(args.limit, not args.no_compile)
    paths = export()
    log.info("wrote %d LoRAs, %.1f MB", len(paths), sum(p.stat().st_size for p in paths) / 2**20)


if __name__ == "__main__":
    main()
