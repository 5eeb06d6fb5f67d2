"""What the judge says: of held-out real pictures (how far it can be trusted), and of the base model's own samples.

Every figure is a share with a 95 % interval from resampling subjects, since pictures of one subject stand or fall
together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from autolora_core.errors import FileFormatError
from zoo.autoencoder import Autoencoder, decode_latents, default_path, psnr, to_float, to_uint8
from zoo.cache import models_dir, zoo_dir
from zoo.captions import plain_caption
from zoo.judge import Judge, Verdict
from zoo.mmdit import MMDiT
from zoo.pictures import Pictures
from zoo.sampler import sample
from zoo.splits import DEFAULT_STYLE, Splits, stem
from zoo.text_bank import encode, tower

log = logging.getLogger("zoo.evaluate")
STEPS, CFG, BATCH = 20, 4.0, 16
RESAMPLES = 2000
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Share:
    """A measured share with its 95 % interval over resampled clusters, and the number of pictures."""

    value: float
    low: float
    high: float
    n: int

    def row(self, figure: str) -> dict[str, Any]:
        """One line of a results file."""
        return {"figure": figure, "value": self.value, "low": self.low, "high": self.high, "n": self.n}


def share(hits: np.ndarray, clusters: Sequence[str], seed: int = 0) -> Share:
    """Mean of `hits` (n,) bool or float; bootstrap over `clusters` (n names), percentile interval."""
    names, which = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.bincount(which, hits.astype(np.float64)), np.bincount(which)
    draws = np.random.default_rng(seed).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Share(*(round(float(v), 4) for v in (sums.sum() / counts.sum(), low, high)), len(hits))


def judge_pictures(images: np.ndarray, judge: Judge | None = None, views: int = 5) -> Verdict:
    """Name pictures, uint8 (n, 128, 128, 3): log-probabilities over all subjects and all styles, ranks on request."""
    return (judge or Judge.load()).judge(images, views)


def stem_hits(verdict: Verdict, truth: Sequence[str]) -> np.ndarray:
    """Whether the first subject named is the true one up to its stem (man-artist for woman-artist); (n,) bool."""
    named = [row[0] for row in verdict.top_subjects(1)]
    return np.array([stem(a) == stem(b) for a, b in zip(named, truth, strict=True)])


def subject_shares(verdict: Verdict, truth: Sequence[str]) -> dict[str, Share]:
    """Top-1, top-5 and up-to-stem accuracy among all subjects."""
    rank = verdict.subject_rank(truth)
    hits = {"top1": rank < 1, "top5": rank < 5, "stem": stem_hits(verdict, truth)}
    return {k: share(v, truth) for k, v in hits.items()}


def judge_on_real(judge: Judge | None = None, pictures: Pictures | None = None) -> dict[str, Any]:
    """The judge on real pictures it never saw: subject and style shares, and per style {subject_acc, style_acc, n}."""
    pictures = pictures or Pictures.load()
    rows = [r for r in pictures.rows if Splits.judge_test(r["subject"], r["style"])]
    verdict = judge_pictures(pictures.images[[r["row"] for r in rows]], judge)
    subjects, styles = [r["subject"] for r in rows], np.array([r["style"] for r in rows])
    first, right = verdict.subject_rank(subjects) < 1, verdict.style_rank(list(styles)) < 1
    per_style = {
        s: {
            "subject_acc": round(float(first[at].mean()), 4),
            "style_acc": round(float(right[at].mean()), 4),
            "n": int(at.sum()),
        }
        for s in np.unique(styles).tolist()
        if (at := styles == s).any()
    }
    return {**subject_shares(verdict, subjects), "style": share(right, subjects), "per_style": per_style}


def shipped(name: str) -> Path:
    """A file of `models/`."""
    return models_dir() / name


def load_autoencoder() -> tuple[Autoencoder, Path]:
    """The shipped autoencoder, else the one in the cache."""
    path = shipped("emoji_vae.safetensors")
    path = path if path.exists() else default_path()
    return Autoencoder.load(path), path


def load_base(from_cache: bool = False) -> tuple[MMDiT, dict[str, str]]:
    """The base model and where it came from: {source, steps, seconds}.

    The shipped file, or the averaged weights of the training state when that is asked for or nothing is shipped.
    """
    path, state = shipped("emoji_mmdit.safetensors"), zoo_dir("base") / "state.safetensors"
    if path.exists() and not from_cache:
        model = MMDiT().eval()
        model.load_state_dict({k: v.float() for k, v in load_file(str(path)).items()})
        with safe_open(str(path), "pt") as handle:
            meta = handle.metadata() or {}
        steps, seconds = (meta.get(f"autolora.training_{k}", "0") for k in ("steps", "seconds"))
        return model, {"source": f"models/{path.name}", "steps": steps, "seconds": seconds}
    if not state.exists():
        fix = "restore models/ from git or run `python -m zoo.train_base`"
        raise FileFormatError("There is no base model.", path=path, fix=fix)
    from zoo.train_base import ema_model

    saved = load_file(str(state))
    clock = saved["clock"].tolist()
    return ema_model(saved["ema"]), {
        "source": "training state",
        "steps": str(int(clock[1])),
        "seconds": str(int(clock[0])),
    }


def draw_pictures(
    model: nn.Module, prompts: Sequence[str], seed: int, decoder: Autoencoder, progress: Progress | None = None
) -> np.ndarray:
    """Sample prompt i from the noise of `seed + i` (cfg 4, 20 Euler steps, bf16) -> uint8 (n, 128, 128, 3)."""
    minilm, out = tower(), []
    empty = encode([""], minilm)
    for start in range(0, len(prompts), BATCH):
        context, pooled = encode(prompts[start : start + BATCH], minilm)
        with torch.autocast("cpu", torch.bfloat16):
            latents = sample(model, context, pooled, empty, steps=STEPS, cfg=CFG, seed=seed + start)
        out.append(decode_latents(latents.float(), decoder, batch=8))
        if progress:
            progress(min(start + BATCH, len(prompts)), len(prompts))
    return np.concatenate(out)


@dataclass(frozen=True)
class Case:
    """One picture to ask the base for; no style means the default caption ('an otter')."""

    subject: str
    style: str | None = None

    @property
    def prompt(self) -> str:
        return plain_caption(self.subject, self.style)


def base_cases(n_subjects: int, seed: int = 0) -> list[Case]:
    """A fixed draw of subjects the base knows: each by its default caption, then each in one of the known styles."""
    splits, rng = Splits.load(), np.random.default_rng(seed)
    subjects = [str(s) for s in rng.permutation(sorted(splits.base_subjects))[:n_subjects]]
    styles = sorted(splits.base_styles)
    return [Case(s) for s in subjects] + [Case(s, styles[i % len(styles)]) for i, s in enumerate(subjects)]


def evaluate_base(
    n_subjects: int = 200,
    seeds: Sequence[int] = (0, 1),
    *,
    judge: Judge | None = None,
    from_cache: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The base on subjects it knows, named by the judge: subjects and default look from default captions, style (and
    subject) from captions that name one of the base's styles. Also says where the base came from.
    """
    (model, source), (decoder, _) = load_base(from_cache), load_autoencoder()
    cases = base_cases(n_subjects)
    total, images = len(cases) * len(seeds), []
    for k, seed in enumerate(seeds):
        told = (lambda n, _, k=k: progress(k * len(cases) + n, total)) if progress else None
        images.append(draw_pictures(model, [c.prompt for c in cases], 10_000 * seed, decoder, told))
    return {**base_shares(np.concatenate(images), cases * len(seeds), judge), "source": source}


def base_shares(images: np.ndarray, cases: Sequence[Case], judge: Judge | None = None) -> dict[str, Any]:
    """What the judge says of the pictures (n, 128, 128, 3) drawn for `cases`."""
    out: dict[str, Any] = {}
    for prefix, wanted in (("", [c.style is None for c in cases]), ("styled_", [c.style is not None for c in cases])):
        mine = [c for c, w in zip(cases, wanted, strict=True) if w]
        subjects = [c.subject for c in mine]
        verdict = judge_pictures(images[np.array(wanted)], judge)
        out |= {prefix + k: v for k, v in subject_shares(verdict, subjects).items()}
        rank = verdict.style_rank([c.style or DEFAULT_STYLE for c in mine])
        out["style" if prefix else "default_style"] = share(rank < 1, subjects)
    return out


def autoencoder_psnr(pictures: Pictures | None = None) -> Share:
    """Round trip of real pictures of subjects the autoencoder never saw, dB (mean of pictures, interval likewise)."""
    from zoo.autoencoder_train import held_out

    pictures, (model, _) = pictures or Pictures.load(), load_autoencoder()
    rows = [r for r in pictures.rows if held_out(r["subject"])]
    values = []
    with torch.inference_mode():
        for start in range(0, len(rows), 8):
            images = pictures.images[[r["row"] for r in rows[start : start + 8]]]
            out = to_uint8(model.decode(model.encode(to_float(images))))
            values += [psnr(a[None], b[None]) for a, b in zip(images, out, strict=True)]
    return share(np.array(values), [r["subject"] for r in rows])
