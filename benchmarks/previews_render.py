"""Pictures of the demo world's LoRAs on neutral prompts, with and without each: what Render LoRA Previews renders.

Latents are kept in the zoo's cache, a file a LoRA, under a name that says what was rendered how; a run that was stopped
goes on. Several LoRAs share the base's forward passes, as in training.
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

from zoo.cache import write_npy, zoo_dir
from zoo.mmdit import MMDiT
from zoo.multi_lora import StackedAdapters
from zoo.sampler import schedule
from zoo.scale_data import factors
from zoo.text_bank import encode
from zoo.train_loras import base_tag, load_base

log = logging.getLogger("benchmarks.previews")
WIDEST_RANK = 16
SEEDS = (0, 1)
# None names a subject or a style of the zoo; the node offers the same.
PROMPTS = ("a picture", "an animal", "a person", "a thing")


@dataclass(frozen=True)
class Rendering:
    """How pictures are made."""

    seed: int = 0
    prompts: tuple[str, ...] = PROMPTS
    steps: int = 8
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
    """The base with room for ``together`` LoRAs at once."""

    def __init__(self, rendering: Rendering, together: int = 16, model: MMDiT | None = None):
        self.rendering, self.together = rendering, together
        self.model = model or load_base()
        self.noise = noises(rendering)
        context, pooled = encode([*rendering.prompts, ""])
        self.context, self.pooled = context[:-1], pooled[:-1]
        self.empty = context[-1:].expand_as(self.context), pooled[-1:].expand_as(self.pooled)
        self.without = self._sample(1)[0]
        self.adapters = StackedAdapters(self.model, together, WIDEST_RANK).requires_grad_(False)
        self.adapters.scale.fill_(1)

    @torch.no_grad()
    def render(self, found: Sequence[dict[str, tuple[Tensor, Tensor]]]) -> np.ndarray:
        """(LoRAs, pictures, 16, 16, 16) float16 of at most :attr:`together` LoRAs' factors."""
        for p in self.adapters.parameters():
            p.zero_()
        for k, lora in enumerate(found):
            for name, (down, up) in lora.items():
                key = name.replace(".", "/")
                self.adapters.down[key][k, : len(down)] = down
                self.adapters.up[key][k, :, : up.shape[1]] = up
        return self._sample(self.together)[: len(found)]

    @torch.no_grad()
    def _sample(self, loras: int) -> np.ndarray:
        """The LoRA is the slowest axis of every batch, with and without the text beside each other within it."""
        many = len(self.noise)
        x = self.noise.expand(loras, *self.noise.shape)
        context = torch.cat([self.context, self.empty[0]]).repeat(loras, 1, 1)
        pooled = torch.cat([self.pooled, self.empty[1]]).repeat(loras, 1)
        levels = schedule(self.rendering.steps)
        for now, after in zip(levels[:-1], levels[1:], strict=True):
            both = torch.cat([x, x], dim=1).flatten(0, 1)
            with torch.autocast("cpu", torch.bfloat16):
                told = self.model(both, now.expand(len(both)), context, pooled).float()
            cond, uncond = told.view(loras, 2, many, *x.shape[2:]).unbind(1)
            x = x + (after - now) * (uncond + self.rendering.cfg * (cond - uncond))
        return x.numpy().astype(np.float16)


def rendered(ids: Sequence[str], rendering: Rendering) -> tuple[np.ndarray, np.ndarray]:
    """Latents without (pictures, …) and with every LoRA (n, pictures, …); what is missing is rendered and kept."""
    paths = [rendering.folder / f"{name}.npy" for name in ids]
    base = rendering.folder / "without.npy"
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    if missing or not base.exists():
        renderer, began = Renderer(rendering), time.time()
        write_npy(base, renderer.without)
        for start in range(0, len(missing), renderer.together):
            part = missing[start : start + renderer.together]
            for i, latents in zip(part, renderer.render([factors(ids[i]) for i in part]), strict=True):
                write_npy(paths[i], latents)
            done = start + len(part)
            left = (time.time() - began) / done * (len(missing) - done)
            log.info("rendered %d of %d, %.0f s left", done, len(missing), left)
    return np.load(base), np.stack([np.load(path) for path in paths])


def in_order(rows: Sequence[dict]) -> list[str]:
    """Ids, those that decide first: a run that is stopped can be measured on what there is."""
    return [row["id"] for row in sorted(rows, key=lambda row: row["part"] == "train")]


if __name__ == "__main__":
    from zoo.scale_data import rows

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    for seed in SEEDS:
        rendered(in_order(rows(copies=False)), Rendering(seed))
