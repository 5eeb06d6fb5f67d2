"""Pictures of the demo world's LoRAs on neutral prompts, with and without each: what Render LoRA Previews renders.

Latents are kept in the zoo's cache, a file a LoRA, in a folder named after how they were rendered; a run that was
stopped goes on.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autolora_core.previews.settings import NEUTRAL_PROMPTS
from zoo.autoencoder import Autoencoder, decode_latents
from zoo.cache import write_npy, zoo_dir
from zoo.judge import Judge
from zoo.sampler import schedule
from zoo.scale_data import factors
from zoo.text_bank import encode
from zoo.train_loras import base_tag, load_base

log = logging.getLogger("benchmarks.previews")
SAY_EVERY = 16


@dataclass(frozen=True)
class Rendering:
    """How pictures are made."""

    seed: int = 0
    prompts: tuple[str, ...] = NEUTRAL_PROMPTS
    steps: int = 6
    cfg: float = 4.0

    @property
    def folder(self) -> Path:
        """Where latents rendered so are kept."""
        said = hashlib.sha256(repr((base_tag(), *astuple(self))).encode()).hexdigest()[:12]
        return zoo_dir("previews", said)


def noises(rendering: Rendering) -> Tensor:
    """(prompts, 16, 16, 16): each prompt starts from a noise of its own."""
    seeds = [1000 * rendering.seed + at for at in range(len(rendering.prompts))]
    return torch.stack([torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


class Renderer:
    """The base in bfloat16; a LoRA is added to its weights while its pictures are made."""

    def __init__(self, rendering: Rendering):
        self.rendering, self.noise = rendering, noises(rendering)
        context, pooled = encode([*rendering.prompts, ""])
        many = len(rendering.prompts)
        self.context = torch.cat([context[:-1], context[-1:].expand(many, -1, -1)])
        self.pooled = torch.cat([pooled[:-1], pooled[-1:].expand(many, -1)])
        model = load_base()
        self.plain = model.state_dict()
        self.model = load_base().bfloat16()
        self.layers = dict(self.model.named_modules())

    @torch.no_grad()
    def render(self, lora: dict[str, tuple[Tensor, Tensor]]) -> np.ndarray:
        """(prompts, 16, 16, 16) float16 with a LoRA's factors, none for the base alone."""
        for name, (down, up) in lora.items():
            self.layers[name].weight.copy_(self.plain[f"{name}.weight"] + up @ down)
        latents = self._sample()
        for name in lora:
            self.layers[name].weight.copy_(self.plain[f"{name}.weight"])
        return latents

    def _sample(self) -> np.ndarray:
        x, levels = self.noise, schedule(self.rendering.steps)
        for now, after in zip(levels[:-1], levels[1:], strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                both = self.model(torch.cat([x, x]), now.expand(2 * len(x)), self.context, self.pooled)
            cond, uncond = both.float().chunk(2)
            x = x + (after - now) * (uncond + self.rendering.cfg * (cond - uncond))
        return x.numpy().astype(np.float16)


def rendered(ids: Sequence[str], rendering: Rendering) -> tuple[np.ndarray, np.ndarray]:
    """Latents without (pictures, …) and with every LoRA (n, pictures, …); what is missing is rendered and kept."""
    paths = [rendering.folder / f"{name}.npy" for name in ids]
    base = rendering.folder / "without.npy"
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    if missing or not base.exists():
        renderer, began = Renderer(rendering), time.time()
        write_npy(base, renderer.render({}))
        for done, i in enumerate(missing, 1):
            write_npy(paths[i], renderer.render(factors(ids[i])))
            if done % SAY_EVERY == 0 or done == len(missing):
                left = (time.time() - began) / done * (len(missing) - done)
                log.info("rendered %d of %d, %.0f s left", done, len(missing), left)
    return np.load(base), np.stack([np.load(path) for path in paths])


def seen_by_judge(ids: Sequence[str], rendering: Rendering) -> tuple[np.ndarray, np.ndarray]:
    """The judge's unit vectors without (prompts, 192) and with every LoRA (n, prompts, 192), kept beside latents."""
    paths = [rendering.folder / f"{name}.judge.npy" for name in ["without", *ids]]
    missing = [path for path in paths if not path.exists()]
    if missing:
        judge, decoder, began = Judge.load(), Autoencoder.load(), time.time()
        for done, path in enumerate(missing, 1):
            latents = np.load(path.with_name(path.name.replace(".judge", ""))).astype(np.float32)
            write_npy(path, judge.image_embeddings(decode_latents(latents, decoder)).numpy())
            if done % SAY_EVERY == 0 or done == len(missing):
                left = (time.time() - began) / done * (len(missing) - done)
                log.info("judged %d of %d, %.0f s left", done, len(missing), left)
    found = np.stack([np.load(path) for path in paths])
    return found[0], found[1:]


def chosen(rows: Sequence[dict], train: int | None = None) -> list[str]:
    """Ids of the validation and test part, then of ``train`` LoRAs of the training part (None: all), in the plan's
    order, which is by hash."""
    apart = [[row["id"] for row in rows if (row["part"] == "train") == wanted] for wanted in (False, True)]
    return [*apart[0], *apart[1][:train]]
