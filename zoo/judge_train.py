"""Training of the judge on one CPU core: contrastive, picture against names, time-boxed, resumable.

    python -m zoo.judge_train --minutes 25 [--wall-minutes 30]      or, to be repeatable:  --steps 6700

The time is CPU time of the process over all runs, so that other work on the machine does not shorten the training;
with `--wall-minutes` this run also ends by then, its learning rate falling to zero in time.
Pictures held out for the judge (`Splits.judge_test`), their byte-identical twins under other names, and everything
made from them are never trained on; nor is any generated picture. Part of the pool is passed through the autoencoder,
so that decoded pictures do not look foreign.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import time
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.budget import Budget, add_options, chosen, positive
from zoo.cache import read_json, write_atomic, write_json, zoo_dir
from zoo.captions import subject_name
from zoo.judge import Judge, JudgeConfig, known_names, style_text, subject_text, words_of
from zoo.judge_data import Pool, Pools, augment
from zoo.optimiser import orthogonal

log = logging.getLogger("zoo.judge")
MINUTES = 25.0
BATCH, NAMES = 96, 544  # names per step: those of the batch and random others
MUON_LR, ADAM_LR, WARMUP, EMA = 4e-3, 2e-3, 0.03, 0.998
SMOOTHING, STYLE_WEIGHT = 0.1, 0.6
SHARES = (0.67, 0.20, 0.13)  # real pictures, transforms, decoded pictures
SAVE_EVERY, LOG_EVERY = 60.0, 50
_SIDED = re.compile("left|right|clock|waxing|waning|quarter|chart|button|arrow|moon|facing|backhand|number")


class Optimiser:
    """Muon for the convolutions, Adam for all else; no weight decay."""

    def __init__(self, model: nn.Module) -> None:
        named = dict(model.named_parameters())
        self.muon = {k: p for k, p in named.items() if p.ndim == 4 and p.shape[1] > 3}
        self.momentum = {k: torch.zeros_like(p) for k, p in self.muon.items()}
        rest = [p for k, p in named.items() if k not in self.muon]
        self.adam = torch.optim.Adam(rest, lr=ADAM_LR, betas=(0.9, 0.98), fused=True)
        self.rest = [k for k in named if k not in self.muon]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update with both learning rates times `factor`; gradients are cleared."""
        self.adam.param_groups[0]["lr"] = ADAM_LR * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for key, p in self.muon.items():
            momentum = self.momentum[key].lerp_(p.grad, 0.1)  # type: ignore[arg-type]
            flat = p.grad.lerp(momentum, 0.9).flatten(1)[None]  # type: ignore[union-attr]
            update = orthogonal(flat, 4)[0].float() * (0.2 * math.sqrt(max(flat.shape[1:])))
            p.sub_(update.view_as(p), alpha=MUON_LR * factor)
            p.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything to save."""
        out = {f"momentum.{k}": t for k, t in self.momentum.items()}
        for k, p in zip(self.rest, self.adam.param_groups[0]["params"], strict=True):
            out |= {f"adam.{part}.{k}": t for part, t in self.adam.state.get(p, {}).items()}
        return out

    def restore(self, saved: dict[str, Tensor]) -> None:
        """The reverse of `tensors`."""
        for k, t in self.momentum.items():
            t.copy_(saved[f"momentum.{k}"])
        for k, p in zip(self.rest, self.adam.param_groups[0]["params"], strict=True):
            moments = {part: torch.empty_like(p).copy_(saved[f"adam.{part}.{k}"]) for part in ("exp_avg", "exp_avg_sq")}
            self.adam.state[p] = {"step": saved[f"adam.step.{k}"].clone(), **moments}  # fused Adam needs p's strides


def schedule(progress: float) -> float:
    """Learning-rate factor: up over the first 3 %, then linearly down to 1 %."""
    return min(progress / WARMUP, 1.0) * max(1 - progress, 0.0) * 0.99 + 0.01


class Trainer:
    """One judge in training."""

    def __init__(self, budget: Budget, wall_minutes: float = math.inf) -> None:
        self.wall_seconds, self.started = wall_minutes * 60, time.time()
        self.budget, (self.subjects, self.styles) = budget, known_names()
        names = [subject_text(s) for s in self.subjects] + [style_text(s) for s in self.styles]
        self.config = JudgeConfig(context=9, vocabulary=words_of(names))
        torch.manual_seed(0)
        self.model = self.config.build().train()
        self.tokens = self.config.tokens(names)
        self.optimiser = Optimiser(self.model)
        self.ema = {k: v.clone() for k, v in self.model.state_dict().items() if v.is_floating_point()}
        self.flippable = torch.tensor([not _SIDED.search(subject_name(s)) for s in self.subjects])
        self.steps, self.spent, self.history = 0, 0.0, list[dict[str, float]]()
        self.folder = zoo_dir("judge")
        if (self.folder / "state.json").exists():
            self._resume()
        self.begun = budget.progress(self.spent, self.steps)

    def _resume(self) -> None:
        saved, meta = load_file(str(self.folder / "state.safetensors")), read_json(self.folder / "state.json")
        self.model.load_state_dict({k[6:]: v for k, v in saved.items() if k.startswith("model.")})
        for k, t in self.ema.items():
            t.copy_(saved[f"ema.{k}"])
        self.optimiser.restore(saved)
        self.steps, self.spent, self.history = meta["steps"], meta["spent"], meta["history"]
        log.info("resumed at step %d after %.0f s", self.steps, self.spent)

    def progress(self) -> float:
        """0..1: of the budget, or of what was left of it when this run began against its wall time."""
        wall = (time.time() - self.started) / self.wall_seconds
        return min(1.0, max(self.budget.progress(self.spent, self.steps), self.begun + (1 - self.begun) * wall))

    def save(self) -> None:
        """Everything needed to go on."""
        flat = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        flat |= {f"ema.{k}": v for k, v in self.ema.items()} | self.optimiser.tensors()
        flat = {k: v.detach().contiguous() for k, v in flat.items()}
        write_atomic(self.folder / "state.safetensors", lambda tmp: save_file(flat, str(tmp)))
        write_json(self.folder / "state.json", {"steps": self.steps, "spent": self.spent, "history": self.history})

    def batch(self, pools: list[Pool], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures 0..255 (b, 3, 64, 64), subject and style numbers (b,)."""
        which = rng.choice(3, BATCH, p=SHARES)
        picks = [(pools[w], rng.integers(len(pools[w].images))) for w in which]
        images = np.stack([p.images[i] for p, i in picks])
        subject, style = (torch.tensor([int(getattr(p, k)[i]) for p, i in picks]) for k in ("subject", "style"))
        return torch.from_numpy(images).permute(0, 3, 1, 2).float(), subject, style

    def names(self, subject: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Subject numbers to choose among (NAMES,), those of the batch included, and where each picture's own is."""
        others = torch.from_numpy(rng.permutation(len(self.subjects)))
        chosen = torch.unique(torch.cat([subject, others[: NAMES - BATCH]]))
        return chosen, torch.searchsorted(chosen, subject)

    def loss(self, pools: list[Pool], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Total, and subject and style cross-entropies."""
        raw, subject, style = self.batch(pools, rng)
        g = torch.Generator().manual_seed(int(rng.integers(2**62)))
        x, honest = augment(raw, self.flippable[subject], g)
        chosen, target = self.names(subject, rng)
        n = len(self.subjects)
        with torch.autocast("cpu", torch.bfloat16):
            seen = self.model.encode_image(x, normalize=True).float()
            text = self.model.encode_text(torch.cat([self.tokens[chosen], self.tokens[n:]]), normalize=True).float()
        logits = self.model.logit_scale.exp() * seen @ text.T
        of_subject = F.cross_entropy(logits[:, : len(chosen)], target, label_smoothing=SMOOTHING)
        each = F.cross_entropy(logits[:, len(chosen) :], style, label_smoothing=SMOOTHING, reduction="none")
        of_style = (each * honest).sum() / honest.sum().clamp(min=1)
        return of_subject + STYLE_WEIGHT * of_style, of_subject.detach(), of_style.detach()

    def step(self, pools: list[Pool]) -> Tensor:
        """One update; returns the two cross-entropies."""
        total, *parts = self.loss(pools, np.random.default_rng((11, self.steps)))
        total.backward()
        self.steps += 1
        self.optimiser.step(schedule(self.progress()))
        decay = min(EMA, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            state = self.model.state_dict()
            torch._foreach_lerp_(list(self.ema.values()), [state[k] for k in self.ema], 1 - decay)
        return torch.stack(parts)

    def judge(self) -> Judge:
        """The averaged model as a judge."""
        model = self.config.build()
        model.load_state_dict({**self.model.state_dict(), **self.ema})
        return Judge(model, self.config, self.subjects, self.styles)

    def run(self, pools: list[Pool]) -> Judge:
        """Train until the budget, or the wall time of this run, is spent."""
        last, saved, meter = time.process_time(), time.time(), torch.zeros(2)
        while self.progress() < 1:
            meter += self.step(pools)
            now = time.process_time()
            self.spent, last = self.spent + now - last, now
            if self.steps % LOG_EVERY == 0:
                subject, style = (meter / LOG_EVERY).tolist()
                self.history.append({"step": self.steps, "spent": self.spent, "subject": subject, "style": style})
                log.info("step %d  %.0f s  subject %.3f  style %.3f", self.steps, self.spent, subject, style)
                meter.zero_()
            if time.time() - saved > SAVE_EVERY:
                self.save()
                saved = time.time()
        self.save()
        return self.judge()


def train(budget: Budget, wall_minutes: float = math.inf) -> Judge:
    """Train (or go on), measure on the held-out pictures, write `emoji_judge.safetensors`."""
    from zoo.evaluate import judge_on_real

    torch.set_num_threads(1)
    trainer = Trainer(budget, wall_minutes)
    judge = trainer.judge() if budget.spent(trainer.spent, trainer.steps) else trainer.run(Pools().load())
    judge.measured = {k: asdict(v) for k, v in judge_on_real(judge).items() if k != "per_style"}
    extra = {"training_steps": str(trainer.steps), "training_cpu_seconds": str(int(trainer.spent))}
    path = judge.save(extra={f"autolora.{k}": v for k, v in extra.items()})
    log.info("wrote %s (%.1f MB): %s", path, path.stat().st_size / 1e6, judge.measured)
    return Judge.load(path)


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser, MINUTES)
    parser.add_argument("--wall-minutes", type=positive, default=math.inf, help="this run's end, annealed in time")
    args = parser.parse_args()
    train(chosen(args.minutes, args.steps, MINUTES), args.wall_minutes)


if __name__ == "__main__":
    main()
