"""Training of the zoo's autoencoder on a CPU: Muon, bf16 convolutions, a time budget, state saved every minute.

Two processes of one thread each share the gradient once a step. Threads would meet after every layer instead, and on
a machine with other work each meeting waits for the scheduler: one thread was measured eight times as fast as two.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.autoencoder import Autoencoder, default_path, psnr, to_float, to_uint8
from zoo.budget import Budget
from zoo.cache import models_dir, read_json, write_atomic, write_json, write_npy, zoo_dir
from zoo.cpu_training import Optimiser, one_cycle, use_fast_convolutions
from zoo.pictures import Pictures
from zoo.transforms import TRANSFORMS

log = logging.getLogger("zoo.autoencoder")
CROP, BATCH = 64, 4  # the batch is per process
PROCESSES = 2
NOISE = 0.08  # std of what is added to latents, whose own std is 1
EMA = 0.998
PER_TRANSFORM = 320


def held_out(subject: str) -> bool:
    """One subject in fifty is never trained on; PSNR is measured there."""
    return int.from_bytes(hashlib.sha256(f"autoencoder|{subject}".encode()).digest()[:4], "big") % 50 == 0


def per_transform(pictures: Pictures) -> int:
    """How many pictures of each transform the pool has: `PER_TRANSFORM`, fewer in a world of few subjects."""
    return min(PER_TRANSFORM, len(pictures.subjects) // 4)


def transformed_pool(pictures: Pictures) -> np.ndarray:
    """uint8 (n, 128, 128, 3): every transform of random pictures of subjects not held out; kept in the cache."""
    path = zoo_dir() / "autoencoder_transforms.npy"
    shape = (per_transform(pictures) * len(TRANSFORMS), *pictures.images.shape[1:])
    if not path.exists() or np.load(path, mmap_mode="r").shape != shape:
        jobs = [(style, [row for row, s in transformed_draw(pictures) if s == style]) for style in TRANSFORMS]
        with ProcessPoolExecutor(PROCESSES, mp.get_context("spawn")) as pool:
            write_npy(path, np.concatenate(list(pool.map(_transform_rows, jobs))))
        log.info("wrote %d transformed pictures", shape[0])
    return np.load(path, mmap_mode="r")


def transformed_draw(pictures: Pictures) -> list[tuple[int, str]]:
    """Picture row and style of every entry of `transformed_pool`, drawn from one seeded stream."""
    rng, rows = np.random.default_rng(0), np.array([r["row"] for r in pictures.rows if not held_out(r["subject"])])
    return [(int(rng.choice(rows)), style) for style in TRANSFORMS for _ in range(per_transform(pictures))]


def _transform_rows(job: tuple[str, list[int]]) -> np.ndarray:
    style, rows = job
    images = Pictures.load().images
    return np.stack([TRANSFORMS[style](images[row]) for row in rows])


class Crops:
    """Random crops, half of them real pictures; of two random places the busier one is taken."""

    def __init__(self, pictures: Pictures) -> None:
        self.pools = (pictures.images, transformed_pool(pictures))
        self.rows = (
            np.array([r["row"] for r in pictures.rows if not held_out(r["subject"])]),
            np.arange(len(self.pools[1])),
        )

    def draw(self, rng: np.random.Generator, n: int, size: int = CROP) -> Tensor:
        """float32 (n, 3, size, size) in 0..1."""
        out = np.empty((n, size, size, 3), np.uint8)
        for i in range(n):
            which = i % 2
            image = self.pools[which][rng.choice(self.rows[which])]
            corners = rng.integers(0, image.shape[0] - size + 1, (2, 2))
            if i % 4 < 2:  # uniform for half, so that latent statistics are those of whole pictures
                corners = corners[:1]
            crops = [image[r : r + size, c : c + size] for r, c in corners]
            best = crops[0] if len(crops) == 1 else max(crops, key=lambda a: float(a[::4, ::4].std()))
            out[i] = best[:, ::-1] if rng.random() < 0.5 else best
            if rng.random() < 0.3:  # other hues; white stays white
                out[i] = out[i][..., rng.permutation(3)]
        return to_float(out)


def picture_loss(out: Tensor, x: Tensor) -> Tensor:
    """L1 + gradient L1 + 2 MSE + colour; out, x (B, 3, H, W).

    Without the colour terms (L1 of what is left after averaging, and of the differences between channels) a short run
    learns sharp shapes and leaves every hue brown or blue.
    """
    d = out - x
    gradient = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    half = F.avg_pool2d(d, 2)
    colour = 3 * F.avg_pool2d(half, 4).abs().mean() + (half - half.roll(1, 1)).abs().mean()
    return d.abs().mean() + gradient + 2 * d.square().mean() + colour


def latent_penalty(z: Tensor) -> Tensor:
    """How far each channel is from zero mean and unit std over the batch; z (B, 16, h, w)."""
    return z.mean((0, 2, 3)).square().mean() + (z.std((0, 2, 3)) - 1).square().mean()


class Trainer:
    """One run: `train` (both halves) or `finetune` (decoder only, encoder frozen, starting from the saved
    autoencoder).
    """

    def __init__(self, budget: Budget, decoder_only: bool, fresh: bool, peak: float) -> None:
        self.budget, self.decoder_only, self.peak = budget, decoder_only, peak
        self.folder = zoo_dir("autoencoder-finetune" if decoder_only else "autoencoder-train")
        torch.manual_seed(0)
        self.model = Autoencoder.load().train() if decoder_only else Autoencoder().to(memory_format=torch.channels_last)
        use_fast_convolutions(self.model)
        trained = self.model.taesd_decoder if decoder_only else self.model
        trained.requires_grad_(True)
        self.params = dict(trained.named_parameters())
        self.optimiser = Optimiser(self.params)
        self.ema = {k: p.detach().clone() for k, p in self.params.items()}
        self.steps, self.spent, self.history = 0, 0.0, list[dict[str, float]]()
        if not fresh and (self.folder / "state.json").exists():
            self._resume()

    def _resume(self) -> None:
        tensors, meta = load_file(str(self.folder / "state.safetensors")), read_json(self.folder / "state.json")
        for k, p in self.params.items():
            p.data.copy_(tensors[f"param.{k}"])
            self.ema[k].copy_(tensors[f"ema.{k}"])
        for k, t in self.optimiser.state.items():
            t.copy_(tensors[f"optimiser.{k}"])
        self.steps, self.spent, self.history = meta["steps"], meta["spent"], meta["history"]
        log.info("resumed at step %d after %.0f s", self.steps, self.spent)

    def save(self) -> None:
        """Everything needed to go on."""
        groups = {
            "param": {k: p.detach() for k, p in self.params.items()},
            "ema": self.ema,
            "optimiser": self.optimiser.state,
        }
        flat = {f"{g}.{k}": t.contiguous() for g, ts in groups.items() for k, t in ts.items()}
        write_atomic(self.folder / "state.safetensors", lambda tmp: save_file(flat, str(tmp)))
        write_json(self.folder / "state.json", {"steps": self.steps, "spent": self.spent, "history": self.history})

    def loss(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, 3, H, W) -> total, reconstruction part, latent penalty."""
        x16 = x.to(torch.bfloat16)
        with torch.set_grad_enabled(not self.decoder_only):
            z = self.model.taesd_encoder(x16).float()
        noise = torch.randn(z.shape, generator=generator)
        out = self.model.taesd_decoder((z + NOISE * noise).to(torch.bfloat16)).float()
        reconstruction, penalty = picture_loss(out, x), latent_penalty(z)
        return reconstruction + 0.05 * penalty, reconstruction, penalty

    def _share(self, meter: Tensor, elapsed: float) -> None:
        """Average gradients and `meter` over the processes; all take rank 0's clock."""
        clock = torch.tensor([elapsed * dist.get_world_size() if dist.get_rank() == 0 else 0.0])
        grads = [p.grad for p in self.params.values()]
        flat = torch.cat([g.reshape(-1) for g in grads] + [meter, clock])  # type: ignore[union-attr]
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        at = 0
        for p in self.params.values():
            p.grad = flat[at : at + p.numel()].view_as(p)
            at += p.numel()
        meter.copy_(flat[at:-1])
        self.spent += float(flat[-1])

    def step(self, crops: Crops, meter: Tensor, last: float) -> float:
        """One update of parameters and averages; adds losses to `meter`; returns the time it ended."""
        rng = np.random.default_rng((1 + self.decoder_only, self.steps, dist.get_rank()))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))  # of this step alone: it resumes
        total, *parts = self.loss(crops.draw(rng, BATCH), generator)
        total.backward()
        now, losses = time.time(), torch.stack([p.detach() for p in parts])
        self._share(losses, now - last)
        meter += losses
        self.steps += 1
        self.optimiser.step(one_cycle(self.budget.progress(self.spent, self.steps), self.peak), self.steps)
        decay = min(EMA, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.params.values()), 1 - decay)
        return now

    def run(self) -> Autoencoder:
        """Train until the budget is spent; returns the averaged model."""
        crops, saved, last, meter = Crops(Pictures.load()), time.time(), time.time(), torch.zeros(2)
        chief = dist.get_rank() == 0
        while not self.budget.spent(self.spent, self.steps):
            last = self.step(crops, meter, last)
            if self.steps % 50 == 0:
                row = {
                    "step": self.steps,
                    "spent": round(self.spent, 1),
                    "loss": float(meter[0] / 50),
                    "latent": float(meter[1] / 50),
                }
                self.history.append(row)
                meter.zero_()
                if chief:
                    log.info("step %(step)d  %(spent).0f s  loss %(loss).4f  latent %(latent).4f", row)
            if chief and last - saved > 60:
                self.save()
                saved = last
        if chief:
            self.save()
        with torch.no_grad():
            for k, p in self.params.items():
                p.copy_(self.ema[k])
        return self.model


def _worker(rank: int, store: str, budget: Budget, decoder_only: bool, fresh: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, PROCESSES), rank=rank, world_size=PROCESSES)
    model = Trainer(budget, decoder_only, fresh, 1e-3 if decoder_only else 2e-3).run()
    if rank == 0:
        model.save(default_path())
    dist.destroy_process_group()


def train(budget: Budget, decoder_only: bool = False, fresh: bool = False) -> None:
    """Train, save `<cache>/zoo/autoencoder.safetensors`, write the reconstruction sheet and PSNR."""
    transformed_pool(Pictures.load())
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (os.path.join(folder, "store"), budget, decoder_only, fresh), PROCESSES)
    evaluate(Autoencoder.load(), zoo_dir() / "autoencoder_sheet.png")


def shipped_path() -> Path:
    return models_dir() / "emoji_vae.safetensors"


def export() -> Path:
    """The trained autoencoder where stock ``VAELoader`` and the demo find it, in float16: half as large, and no picture
    looks different."""
    return halved(default_path(), shipped_path())


def halved(source: Path, target: Path) -> Path:
    """A copy with its weights in float16; the two numbers that place latents stay as they are."""
    with safe_open(str(source), "pt") as file:
        metadata = file.metadata()
    state = {key: value if key.startswith("vae_") else value.half() for key, value in load_file(str(source)).items()}
    return write_atomic(target, lambda tmp: save_file(state, str(tmp), metadata))


def evaluate(model: Autoencoder, sheet: Path) -> dict[str, float]:
    """PSNR per style on held-out subjects (also written as JSON), and a sheet: originals over reconstructions."""
    pictures = Pictures.load()
    result: dict[str, float] = {}
    strips: list[np.ndarray] = []
    cases: dict[str, np.ndarray] = {}
    subjects = [s for s in pictures.subjects if held_out(s)]
    for name in sorted({r["style"] for r in pictures.rows}):
        cases[name] = pictures.images[[pictures.index[s, name] for s in subjects if (s, name) in pictures.index]]
    noto = cases["noto"][:8]
    cases |= {k: np.stack([t(x) for x in noto]) for k, t in TRANSFORMS.items()}
    for name, images in cases.items():
        with torch.inference_mode():
            out = np.concatenate(
                [
                    to_uint8(model.decode(model.encode(to_float(b))))
                    for b in np.array_split(images, 1 + len(images) // 16)
                ]
            )
        result[name] = round(psnr(images, out), 2)
        strips.append(np.concatenate([np.concatenate([a, b]) for a, b in zip(images[1:4], out[1:4], strict=True)], 1))
    for group, members in (("real", [k for k in cases if k not in TRANSFORMS]), ("transforms", list(TRANSFORMS))):
        result[f"mean_{group}"] = round(float(np.mean([result[k] for k in members])), 2)
    strips += [np.full_like(strips[0], 255)] * (-len(strips) % 4)
    columns = [np.concatenate(strips[i::4]) for i in range(4)]
    write_atomic(sheet, lambda tmp: Image.fromarray(np.concatenate(columns, 1)).save(tmp, format="PNG"))
    write_json(sheet.with_suffix(".json"), result, indent=1)
    log.info("PSNR on held-out subjects: %s", result)
    return result
