"""Train gates on true composites: ours, each of its pieces left out, and the published recipe.

    python -m zoo.train_fusion --recipe ours --steps 300        one thread; two recipes fit on two cores
    python -m zoo.train_fusion --compare                        flow loss of all that are trained, on validation sets

Base and LoRAs are frozen. A batch is eight sets (:mod:`zoo.fusion_sets`), each with its own number of LoRAs. The loss
is the squared error of the flow velocity against the set's true picture, and the published contrastive one,
``max(0, 0.5 − error under another set's text)`` (method: AutoLoRA, arXiv 2508.02107). State is saved every twenty steps
and gone on from.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.base_probe import BaseProbe
from zoo.cache import read_json, write_atomic, write_json, zoo_dir
from zoo.fused_layers import Factors, FusedLayers, Gate, Routers, padded, share_done
from zoo.fusion_sets import FusionSet, Shelf, draw_sets, true_latents
from zoo.text_bank import TextBank
from zoo.train_base import draw_times, flow_loss
from zoo.train_loras import base_tag, load_base

log = logging.getLogger("zoo.fusion")
BATCH, SETS, VALIDATION_SETS, SEED, MARGIN = 8, 320, 96, 41, 0.5
TIMES = (0.95, 0.85, 0.7, 0.45)


@dataclass(frozen=True)
class Recipe:
    """``noise``: deviation of the gate's first numbers (0: starts as the plain sum). ``contrast``: how often the
    contrastive loss is added, 0 to 1. ``pairs_only``: two LoRAs, no strangers. ``drop``: share of empty prompts."""

    routed: bool = True
    timed: bool = True
    counted: bool = True
    shared: bool = False
    noise: float = 0.0
    contrast: float = 0.34
    pairs_only: bool = False
    drop: float = 0.1
    rate: float = 3e-3


RECIPES = {
    "ours": Recipe(),
    "ours-unrouted": Recipe(routed=False),
    "ours-untimed": Recipe(timed=False),
    "ours-uncounted": Recipe(counted=False),
    "ours-flow": Recipe(contrast=0.0),
    "scalar": Recipe(shared=True),
    "scalar-unrouted": Recipe(shared=True, routed=False),
    # As published: AdamW 1e-4, randn start, two LoRAs, contrastive loss always, text dropped in three of ten.
    "paper": Recipe(False, False, False, False, 1.0, 1.0, True, 0.3, 1e-4),
}


@dataclass
class World:
    """What all recipes share for one part: sets, their pictures, captions, factors and routers."""

    sets: list[FusionSet]
    latents: np.ndarray
    bank: TextBank
    layers: FusedLayers
    routers: Routers
    model: torch.nn.Module
    _routes: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of_part(cls, part: str, count: int) -> World:
        shelf, model = Shelf.of_part(part), load_base()
        sets = draw_sets(shelf, count, SEED)
        probe = BaseProbe(load_base())
        factors = Factors(model, [row["id"] for row in shelf.rows])
        texts = [row["trigger"] or row["thing"] for row in shelf.rows]
        bank = TextBank.build([text for one in sets for text in one.texts], f"fusion-{part}")
        return cls(sets, true_latents(sets), bank, FusedLayers(factors), Routers(factors, texts, probe), model)

    def put(self, rows: Sequence[int], times: np.ndarray, routed: bool) -> None:
        """Make the layers ready for these sets."""
        none = len(self.layers.factors)
        loras = [self.sets[i].loras for i in rows]
        self.layers.ids = torch.tensor([padded(own, none) for own in loras])
        self.layers.count = torch.tensor([float(len(own)) for own in loras])
        self.layers.u = torch.from_numpy(share_done(times).astype(np.float32))
        self.layers.routes = self._routed(rows) if routed else None

    def _routed(self, rows: Sequence[int]) -> dict[str, Tensor]:
        for i in rows:
            if i not in self._routes:
                self._routes[i] = {n: r.half() for n, r in self.routers.of(self.sets[i].loras).items()}
        return {n: torch.stack([self._routes[i][n] for i in rows]).float() for n in self._routes[rows[0]]}

    def loss(self, rows: Sequence[int], texts: Sequence[int], t: Tensor, noise: Tensor) -> Tensor:
        """(b,) flow loss of the sets' true pictures under the captions ``texts``."""
        clean = torch.from_numpy(self.latents[list(rows)].astype(np.float32))
        return flow_loss(self.model, clean, t, noise, *self.bank.rows(np.array(texts)))

    def caption(self, row: int, rng: np.random.Generator) -> int:
        texts = self.sets[row].texts
        return self.bank.index[texts[int(rng.integers(len(texts)))]]


def folder() -> Path:
    """Gates belong to a base and to the LoRAs that they were trained with."""
    rows = Shelf.of_part().rows
    digest = hashlib.sha256(repr([row["id"] for row in rows]).encode()).hexdigest()[:8]
    return zoo_dir("fusion", f"{base_tag()}-{digest}")


class Training:
    """One recipe's training."""

    def __init__(self, name: str, world: World):
        self.name, self.recipe, self.world = name, RECIPES[name], world
        own = self.recipe
        self.gate = Gate(world.layers.factors.layers, own.shared, own.timed, own.counted, own.noise)
        self.params = [p for p in self.gate.parameters() if p.requires_grad]
        decay = 0.01 if own.noise else 0.0
        self.optimiser = torch.optim.AdamW(self.params, lr=own.rate, betas=(0.9, 0.98), weight_decay=decay)
        self.rows = [i for i, one in enumerate(world.sets) if not own.pairs_only or len(one.loras) == 2]
        self.path, self.step, self.history = folder() / f"{name}.safetensors", 0, []
        if self.path.exists():
            self.gate.load_state_dict(load_file(str(self.path)))
            about = read_json(self.path.with_suffix(".json"))
            self.step, self.history = about["step"], about["history"]

    def one_step(self, step: int, steps: int) -> float:
        rng, generator = np.random.default_rng((51, step)), torch.Generator().manual_seed(step)
        rows = [self.rows[int(i)] for i in rng.choice(len(self.rows), BATCH, replace=False)]
        t = draw_times(BATCH, generator)
        world, own = self.world, self.recipe
        world.layers.gate = self.gate
        world.put(rows, t.numpy(), own.routed)
        noise = torch.randn(BATCH, 16, 16, 16, generator=generator)
        texts = [0 if rng.random() < own.drop else world.caption(i, rng) for i in rows]
        loss = world.loss(rows, texts, t, noise).mean()
        told = float(loss.detach())
        if rng.random() < own.contrast:
            others = [world.caption(i, rng) for i in np.roll(rows, 1)]
            loss = loss + (MARGIN - world.loss(rows, others, t, noise)).clamp_min(0).mean()
        for group in self.optimiser.param_groups:
            group["lr"] = own.rate * min(1, step / 10) * max(0.05, 1 - step / steps)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return told

    def run(self, steps: int) -> None:
        began, meter = time.time(), []
        for step in range(self.step + 1, steps + 1):
            meter.append(self.one_step(step, steps))
            if step % 20 == 0 or step == steps:
                self.step = step
                self.history.append({"step": step, "loss": round(float(np.mean(meter)), 5)})
                meter = []
                self.save()
                log.info("%s %d/%d loss %.4f, %.0f s", self.name, step, steps, self.history[-1]["loss"],
                         time.time() - began)  # fmt: skip

    def save(self) -> None:
        state = {k: v.detach().contiguous() for k, v in self.gate.state_dict().items()}
        write_atomic(self.path, lambda tmp: save_file(state, str(tmp)))
        write_json(self.path.with_suffix(".json"), {"step": self.step, "history": self.history})


@torch.no_grad()
def validation_loss(world: World, gate: Gate | None, routed: bool) -> np.ndarray:
    """(sets,) mean flow loss over :data:`TIMES`, with the same noise for whoever asks."""
    out = np.zeros(len(world.sets))
    world.layers.gate = gate
    for start in range(0, len(out), BATCH):
        rows = list(range(start, min(start + BATCH, len(out))))
        texts = [world.bank.index[world.sets[i].texts[0]] for i in rows]
        for number, time_ in enumerate(TIMES):
            generator = torch.Generator().manual_seed(1000 * number + start)
            t = torch.full((len(rows),), time_)
            world.put(rows, t.numpy(), routed)
            noise = torch.randn(len(rows), 16, 16, 16, generator=generator)
            out[rows] += world.loss(rows, texts, t, noise).numpy() / len(TIMES)
    return out


def compare() -> dict[str, dict[str, float]]:
    """Recipe → mean loss over the sets of each number of LoRAs and of each kind."""
    world = World.of_part("validation", VALIDATION_SETS)
    counts = np.array([len(one.loras) for one in world.sets])
    asked = {(False, None): "sum", (True, None): "ssr"}
    out: dict[str, dict[str, float]] = {}
    for (routed, gate), name in asked.items():
        out[name] = _by_count(validation_loss(world, gate, routed), counts)
    for name, own in RECIPES.items():
        path = folder() / f"{name}.safetensors"
        if path.exists():
            gate = Gate(world.layers.factors.layers, own.shared, own.timed, own.counted, own.noise)
            gate.load_state_dict(load_file(str(path)))
            out[name] = _by_count(validation_loss(world, gate, own.routed), counts)
            out[name]["steps"] = read_json(path.with_suffix(".json"))["step"]
    for name, row in out.items():
        log.info("%s %s", name, {k: round(v, 4) for k, v in row.items()})
    write_json(folder() / "compare.json", out)
    return out


def _by_count(loss: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    return {"all": float(loss.mean())} | {f"k{k}": float(loss[counts == k].mean()) for k in sorted(set(counts))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, action="append", default=[])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    if args.recipe:
        world = World.of_part("train", SETS)
        log.info("%d sets of %d LoRAs", len(world.sets), len(world.layers.factors))
        for name in args.recipe:
            Training(name, world).run(args.steps)
    if args.compare:
        compare()


if __name__ == "__main__":
    main()
