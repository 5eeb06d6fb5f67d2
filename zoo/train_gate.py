"""A first gate for the demo base: the released formula, trained on true composites.

Base and LoRAs are frozen; only the gate vectors learn. A sample is a (subject LoRA, style LoRA) pair whose true picture
exists and is not held out, sometimes with one more LoRA that the prompt does not ask for, or a subject alone. Loss:
squared error of the flow velocity against the true picture. Start: the identity gate, which is the plain sum.

    python -m zoo.train_gate --steps 600
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autolora_core.fusion.base_print import base_fingerprint
from autolora_core.fusion.files import write_gate
from autolora_core.fusion.gate import VECTORS, GateVectors, gated_update
from zoo.autoencoder import encode_pictures
from zoo.cache import models_dir, read_json, write_atomic, write_json, write_npy, zoo_dir
from zoo.captions import captions
from zoo.lora_data import true_picture
from zoo.lora_plan import LoraSpec, plan
from zoo.multi_lora import target_layers
from zoo.pictures import Pictures
from zoo.splits import DEFAULT_STYLE, Splits
from zoo.text_bank import TextBank
from zoo.train_base import draw_times, flow_loss
from zoo.train_loras import RANK, base_path, base_tag, finished, load_base, raw_factors

log = logging.getLogger("zoo.gate")
BATCH, SLOTS, PAIRS, LR = 16, 3, 700, 2e-3
NONE = -1


def spans(name: str, width: int) -> list[tuple[str, int, int]]:
    """Gate entries of a layer: a fused qkv has one for each of its three parts."""
    if name.endswith("attn.qkv"):
        third = width // 3
        return [(f"{name}[{i * third}:{(i + 1) * third}]", i * third, (i + 1) * third) for i in range(3)]
    return [(name, 0, width)]


class GatedLayers(nn.Module):
    """Gate vectors for every target layer, and the LoRAs of the current batch."""

    def __init__(self, model: nn.Module, specs: list[LoraSpec]):
        super().__init__()
        self.vectors = nn.ParameterDict()
        self.ids = torch.zeros(BATCH, SLOTS, dtype=torch.long)
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        loaded = [raw_factors(s) for s in specs]
        for name in target_layers(model):  # type: ignore[arg-type]
            layer = model.get_submodule(name)
            down = torch.zeros(len(specs) + 1, RANK, layer.in_features)  # the last row is "no LoRA"
            up = torch.zeros(len(specs) + 1, layer.out_features, RANK)
            for i, (spec, factors) in enumerate(zip(specs, loaded, strict=True)):
                if name in factors:
                    a, b = factors[name]
                    down[i, : len(a)], up[i, :, : len(a)] = a, b * spec.creator.alpha
            self.factors[name] = down, up
            for entry, start, stop in spans(name, layer.out_features):
                self.vectors[entry.replace(".", "/")] = nn.Parameter(GateVectors.identity(stop - start).stack())
            self._wrap(layer, name)

    def _wrap(self, layer: nn.Linear, name: str) -> None:
        down, up = self.factors[name]
        parts = spans(name, layer.out_features)

        def forward(x: Tensor) -> Tensor:
            y = F.linear(x, layer.weight, layer.bias)
            branches = [torch.bmm(torch.bmm(x, down[ids].mT), up[ids].mT) for ids in self.ids.unbind(1)]
            pieces = []
            for entry, start, stop in parts:
                vectors = GateVectors.from_stack(self.vectors[entry.replace(".", "/")])
                piece = y[..., start:stop]
                pieces.append(piece + gated_update(piece, [b[..., start:stop] for b in branches], vectors))
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)

        layer.forward = forward  # type: ignore[method-assign]

    def named(self) -> dict[str, GateVectors]:
        return {k.replace("/", "."): GateVectors.from_stack(v.detach()) for k, v in self.vectors.items()}


@dataclass
class Composites:
    """Training pairs with their true latents; ``solo`` are subjects alone in the default style."""

    pairs: list[tuple[int, int]]  # rows of specs: subject, style (or NONE)
    latents: np.ndarray
    texts: list[list[str]]


def training_pairs(specs: list[LoraSpec]) -> list[tuple[int, int]]:
    """Pairs by LoRA, never a held-out (subject, style); a fixed draw of ``PAIRS``."""
    subjects = [i for i, s in enumerate(specs) if s.subject]
    styles = [i for i, s in enumerate(specs) if s.style]
    held = Splits.held_out_pair
    every = [(i, j) for i in subjects for j in styles if not held(specs[i].subject or "", specs[j].style or "")]
    rng = np.random.default_rng(21)
    picked = [every[int(k)] for k in rng.choice(len(every), min(PAIRS, len(every)), replace=False)]
    return picked + [(i, NONE) for i in subjects]


def held_out_pairs(specs: list[LoraSpec], count: int) -> list[tuple[int, int]]:
    """Pairs whose composite no gate was trained on, one LoRA for each subject and style; a fixed draw of ``count``."""
    first: dict[str, int] = {}
    for i, spec in enumerate(specs):
        first.setdefault(spec.subject or spec.style or "", i)
    subjects, styles = ([i for i in first.values() if getattr(specs[i], kind)] for kind in ("subject", "style"))
    every = [(i, j) for i in subjects for j in styles if Splits.held_out_pair(specs[i].subject, specs[j].style)]
    rng = np.random.default_rng(22)
    return [every[int(k)] for k in rng.permutation(len(every))[:count]]


def composites(specs: list[LoraSpec], wanted: list[tuple[int, int]]) -> Composites:
    """The pairs of ``wanted`` whose true picture exists, with its latents and captions."""
    pictures = Pictures.load()
    pairs, images, texts = [], [], []
    for i, j in wanted:
        style = specs[j].style if j != NONE else DEFAULT_STYLE
        image = true_picture(pictures, specs[i].subject or "", style or "")
        if image is None:
            continue
        pairs.append((i, j))
        images.append(image)
        words = [c for c, _ in captions(specs[i].subject or "", style or "")]
        texts.append(words[:3] if j == NONE else words[:5])
    digest = hashlib.sha256(
        repr([(specs[i].digest, specs[j].digest if j != NONE else "") for i, j in pairs]).encode()
    ).hexdigest()[:12]
    path = zoo_dir("gate") / f"latents-{digest}.npy"
    if not path.exists():
        write_npy(path, encode_pictures(np.stack(images)))
    return Composites(pairs, np.load(path), texts)


def draw(
    data: Composites, bank: TextBank, rng: np.random.Generator, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch: latents, context, pooled, and LoRA ids (b, SLOTS), ``count`` standing for "none"."""
    latents, texts, ids = [], [], []
    for k in rng.integers(len(data.pairs), size=BATCH):
        subject, style = data.pairs[k]
        slots = [subject, style if style != NONE else count]
        slots.append(int(rng.integers(count)) if rng.random() < 0.3 else count)  # a LoRA nobody asked for
        latents.append(data.latents[k])
        texts.append(0 if rng.random() < 0.1 else bank.index[data.texts[k][rng.integers(len(data.texts[k]))]])
        ids.append(slots)
    return torch.from_numpy(np.stack(latents).astype(np.float32)), *bank.rows(np.array(texts)), torch.tensor(ids)


def train(steps: int, compiled: bool = True) -> Path:
    """Train (or go on) for ``steps`` steps and write ``models/emoji_gate.safetensors``."""
    specs = [s for s in plan() if finished(s).exists()]
    model = load_base()
    gate = GatedLayers(model, specs)
    data = composites(specs, training_pairs(specs))
    bank = TextBank.build([t for ts in data.texts for t in ts], "gate")
    fast = torch.compile(model, dynamic=False) if compiled else model
    params = list(gate.parameters())
    optimiser = torch.optim.Adam(params, lr=LR, betas=(0.9, 0.98))
    # A gate belongs to its base and its LoRAs: with other LoRAs it starts anew instead of going on.
    shelf = hashlib.sha256(repr([s.digest for s in specs]).encode()).hexdigest()[:12]
    state, done, history = zoo_dir("gate", f"{base_tag()}-{shelf}") / "state.safetensors", 0, []
    if state.exists():
        for p, saved in zip(params, load_file(str(state)).values(), strict=True):
            p.data.copy_(saved)
        meta = read_json(state.with_suffix(".json"))
        done, history = meta["step"], meta["history"]
    began, meter = time.time(), []
    for step in range(done + 1, steps + 1):
        rng = np.random.default_rng((31, step))
        generator = torch.Generator().manual_seed(step)
        clean, context, pooled, gate.ids = draw(data, bank, rng, len(specs))
        for group in optimiser.param_groups:
            group["lr"] = LR * min(1, step / 10) * max(0.05, 1 - step / steps)
        noise = torch.randn(clean.shape, generator=generator)
        loss = flow_loss(fast, clean, draw_times(BATCH, generator), noise, context, pooled).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        meter.append(float(loss.detach()))
        if step % 20 == 0 or step == steps:
            history.append({"step": step, "loss": float(np.mean(meter))})
            meter = []
            tensors = {f"{i:03d}": p.detach().clone() for i, p in enumerate(params)}
            write_atomic(state, lambda tmp, tensors=tensors: save_file(tensors, str(tmp)))
            write_json(state.with_suffix(".json"), {"step": step, "history": history})
            log.info("step %d/%d  loss %.4f  %.0f s", step, steps, history[-1]["loss"], time.time() - began)
    return save(gate, steps, len(specs))


def save(gate: GatedLayers, steps: int, loras: int) -> Path:
    digest = hashlib.sha256(base_path().read_bytes()).hexdigest()
    recipe = f"flow loss on true composites of {loras} LoRAs, {steps} steps of {BATCH}, K 1 to 3, from the identity"
    recipe += "; used from K 2 on"  # one LoRA alone stays exactly what the stock loader makes of it
    path = models_dir() / "emoji_gate.safetensors"
    fingerprint = base_fingerprint(load_file(str(base_path())))
    write_gate(
        path, gate.named(), family="emoji", k_range=(2, SLOTS), recipe=recipe, base_sha256=digest,
        base_fingerprint=fingerprint,
    )  # fmt: skip
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    log.info("%s: %d vectors a layer", train(args.steps, not args.no_compile), len(VECTORS))


if __name__ == "__main__":
    main()
