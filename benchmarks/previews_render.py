"""Pictures of the demo world's LoRAs on neutral prompts, with and without each: what Render LoRA Previews renders.

Latents are kept in the zoo's cache, a file a LoRA, under a name that says what was rendered how; a run that was stopped
goes on.
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
from zoo.sampler import schedule
from zoo.scale_data import factors
from zoo.text_bank import encode
from zoo.train_loras import base_tag, load_base

log = logging.getLogger("benchmarks.previews")
SAY_EVERY = 16
SEEDS = (0, 1)
# None names a subject or a style of the zoo; the node offers the same.
PROMPTS = ("a picture", "an animal", "a person", "a thing")


@dataclass(frozen=True)
class Rendering:
    """How pictures are made."""

    seed: int = 0
    prompts: tuple[str, ...] = PROMPTS
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


def in_order(rows: Sequence[dict]) -> list[str]:
    """Ids, those that decide first: a run that is stopped can be measured on what there is."""
    return [row["id"] for row in sorted(rows, key=lambda row: row["part"] == "train")]


if __name__ == "__main__":
    from zoo.scale_data import rows

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    for seed in SEEDS:
        rendered(in_order(rows(copies=False)), Rendering(seed))
