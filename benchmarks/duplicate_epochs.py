"""A few LoRAs of the demo base trained with their factors kept at several steps: real other epochs of one training.

Beside them stand what must not be taken for one: another subject begun from the very same random numbers, and the same
subject begun from others. Needs the base and the cache of pictures (``python -m zoo.pictures``); about two minutes.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.duplicate_files import Factors
from zoo.cache import write_atomic, zoo_dir
from zoo.lora_data import LoraData, load
from zoo.lora_plan import CREATORS, LoraSpec, chosen_subjects
from zoo.multi_lora import StackedAdam, StackedAdapters
from zoo.pictures import Pictures
from zoo.text_bank import TextBank
from zoo.train_base import draw_times, flow_loss
from zoo.train_loras import DROP, PER_LORA, RANK, base_tag, load_base

log = logging.getLogger("benchmarks.duplicate_epochs")
MARKS = (0.5, 0.7, 0.85, 0.95, 1.0)
# (run, subject's place in the list, style, creator, seed); "dev" chooses thresholds, "test" is only measured.
RUNS = (
    ("dev-0", 0, None, "mellow", 1), ("dev-1", 1, None, "mellow", 1), ("dev-2", 0, None, "mellow", 2),
    ("dev-3", 2, None, "juniper", 3),
    ("test-0", 10, None, "lumen", 11), ("test-1", 11, None, "lumen", 11), ("test-2", 10, None, "lumen", 12),
    ("test-3", 12, None, "tern", 13), ("test-4", None, "watercolour", "basalt", 14),
)  # fmt: skip


def specs() -> list[LoraSpec]:
    """One spec a run of :data:`RUNS`."""
    subjects, creators = chosen_subjects(), {c.name: c for c in CREATORS}
    return [
        LoraSpec(name, None if at is None else subjects[at], style, creators[creator], "none", name, seed)
        for name, at, style, creator, seed in RUNS
    ]


def checkpoint(run: str, step: int) -> Path:
    """Where the factors of one run at one step lie."""
    return zoo_dir("epochs", base_tag()) / f"{run}-{step:04d}.safetensors"


def marks(spec: LoraSpec) -> list[int]:
    """Steps at which a run is kept."""
    return [round(share * spec.creator.steps) for share in MARKS]


def missing() -> list[Path]:
    """Checkpoints that are not in the cache."""
    wanted = [checkpoint(spec.id, step) for spec in specs() for step in marks(spec)]
    return [path for path in wanted if not path.exists()]


def train() -> None:
    """Train all runs side by side, unless they are in the cache."""
    if not missing():
        return
    torch.set_num_threads(1)
    runs, pictures = specs(), Pictures.load()
    sets = [load(spec, pictures) for spec in runs]
    bank = TextBank.build([text for data in sets for texts in data.captions for text in texts], "epochs")
    model = load_base()
    adapters = StackedAdapters(model, len(runs), RANK)
    creators = [spec.creator for spec in runs]
    adapters.reset(creators, [spec.seed for spec in runs])
    optimiser = StackedAdam(adapters, creators)
    last = max(creator.steps for creator in creators)
    for step in range(1, last + 1):
        rng = np.random.default_rng((1, step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean, context, pooled = _batch(sets, bank, rng)
        noise = torch.randn(clean.shape, generator=generator)
        losses = flow_loss(model, clean, draw_times(len(clean), generator), noise, context, pooled)
        (losses.sum() / PER_LORA).backward()
        optimiser.step(step)
        for k, spec in enumerate(runs):
            if step in marks(spec):
                _store(adapters, k, spec, step)
        if step % 20 == 0:
            log.info("step %d of %d, loss %.4f", step, last, float(losses.detach().mean()))


def _batch(sets: list[LoraData], bank: TextBank, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    latents, ids = [], []
    for data in sets:
        for i in rng.integers(len(data.latents), size=PER_LORA):
            latents.append(data.latents[i])
            text = data.captions[i][rng.integers(len(data.captions[i]))]
            ids.append(0 if rng.random() < DROP else bank.index[text])
    return torch.from_numpy(np.stack(latents).astype(np.float32)), *bank.rows(np.array(ids))


def _store(adapters: StackedAdapters, k: int, spec: LoraSpec, step: int) -> None:
    flat = {}
    for name, (down, up) in adapters.factors(k, spec.creator).items():
        flat |= {f"{name}|down": down.contiguous(), f"{name}|up": (up * spec.creator.alpha).contiguous()}
    said = {"run": json.dumps(spec.to_json())}
    write_atomic(checkpoint(spec.id, step), lambda tmp: save_file(flat, str(tmp), said))


def factors(run: str, step: int) -> Factors:
    """Module → (down, up) with the scale folded in."""
    path = checkpoint(run, step)
    with safe_open(str(path), "pt") as handle:
        names = [key.removesuffix("|down") for key in handle.keys() if key.endswith("|down")]
    flat = load_file(str(path))
    return {name: (flat[f"{name}|down"], flat[f"{name}|up"]) for name in names}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train()
