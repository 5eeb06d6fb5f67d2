"""Train gates on true composites: several losses, each of their pieces left out, and the published recipe.

    python -m zoo.train_fusion --recipe paper --steps 300       one thread; two recipes fit on two cores
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.base_probe import BaseProbe
from zoo.cache import read_json, write_atomic, write_json, zoo_dir
from zoo.fused_layers import Factors, FusedLayers, Gate, Routers, padded, share_done
from zoo.fusion_sets import FusionSet, Shelf, draw_sets, true_latents
from zoo.lora_variants import of_rank
from zoo.text_bank import TextBank
from zoo.train_base import draw_times, flow_loss
from zoo.train_loras import base_tag, load_base

log = logging.getLogger("zoo.fusion")
BATCH, SETS, VALIDATION_SETS, SEED, MARGIN = 8, 320, 96, 41, 0.5
# Sets a step where each is looked at under several pictures; roles and powers, a few numbers, learn faster.
FEW, QUICK = 3, 3.0
# Of the naming loss, in units of the flow loss; styles change more of a picture than subjects do.
SHARPNESS, STYLE_WEIGHT = 0.06, 0.3
TIMES = (0.95, 0.85, 0.7, 0.45)


@dataclass(frozen=True)
class Recipe:
    """``noise``: deviation of the gate's first numbers (0: starts as the plain sum). ``contrast``: how often the
    published contrastive loss is added, 0 to 1. ``naming``: weight of ours (:meth:`Training.naming`). ``asked``: LoRAs
    that say they are of something else are left out, as the Apply node does. ``pairs_only``: two LoRAs, no strangers.
    ``drop``: share of empty prompts. ``common``: rank of the Global-LoRA, the best approximation of the LoRAs' sum,
    which is one more branch in training. ``flow``: weight of the flow loss.
    """

    routed: bool = False
    roled: bool = True
    timed: bool = True
    counted: bool = True
    shared: bool = False
    asked: bool = True
    naming: float = 1.0
    flow: float = 0.3
    contrast: float = 0.0
    noise: float = 0.0
    pairs_only: bool = False
    drop: float = 0.15
    common: int = 0
    rate: float = 3e-3


# As published: AdamW 1e-4, randn start, two LoRAs, contrastive loss always, text dropped in three of ten.
PAPER = Recipe(
    roled=False, timed=False, counted=False, asked=False, naming=0.0, flow=1.0, contrast=1.0, noise=1.0,
    pairs_only=True, drop=0.3, rate=1e-4,
)  # fmt: skip
PUBLISHED = ("paper", "paper-global")
RECIPES = {
    "naming": Recipe(),
    "naming-routed": Recipe(routed=True),
    "naming-unroled": Recipe(roled=False),
    "naming-untimed": Recipe(timed=False),
    "naming-uncounted": Recipe(counted=False),
    "flow": Recipe(naming=0.0, flow=1.0),
    "flow-contrast": Recipe(naming=0.0, flow=1.0, contrast=0.34),
    "flow-contrast-routed": Recipe(naming=0.0, flow=1.0, contrast=0.34, routed=True),
    "scalar": Recipe(shared=True, naming=0.0, flow=1.0, contrast=0.34),
    "paper": PAPER,
    "paper-global": replace(PAPER, common=2),
}


@dataclass
class World:
    """What all recipes share for one part: sets, their pictures, captions, factors and routers.

    ``latents`` (sets, 3, 16, 16, 16): the true picture, another subject's in that style, this subject in another style;
    the true one three times where nothing is confused.
    """

    sets: list[FusionSet]
    latents: np.ndarray
    bank: TextBank
    layers: FusedLayers
    routers: Routers
    model: torch.nn.Module
    styles: list[bool]
    _routes: dict[tuple[int, ...], dict[str, Tensor]] = field(default_factory=dict)
    _common: dict[tuple, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of_part(cls, part: str, count: int) -> World:
        shelf, model = Shelf.of_part(part), load_base()
        sets = draw_sets(shelf, count, SEED)
        probe = BaseProbe(load_base())
        factors = Factors(model, [row["id"] for row in shelf.rows])
        texts = [row["trigger"] or row["thing"] for row in shelf.rows]
        bank = TextBank.build([text for one in sets for text in one.texts], f"fusion-{part}")
        wanted = [
            picture
            for one in sets
            for picture in [(one.subject, one.style), *(one.others or [(one.subject, one.style)] * 2)]
        ]
        latents = true_latents(wanted).reshape(len(sets), 3, 16, 16, 16)
        styles = [row["kind"] == "style" for row in shelf.rows]
        return cls(sets, latents, bank, FusedLayers(factors), Routers(factors, texts, probe), model, styles)

    def put(self, rows: Sequence[int], times: np.ndarray, recipe: Recipe) -> None:
        """Make the layers ready for these sets."""
        none = len(self.layers.factors)
        loras = [self.sets[i].asked if recipe.asked else self.sets[i].loras for i in rows]
        self.layers.ids = torch.tensor([padded(own, none) for own in loras])
        self.layers.roles = torch.tensor(
            [[int(i < none and self.styles[i]) for i in padded(own, none)] for own in loras]
        )
        self.layers.count = torch.tensor([float(max(1, len(own))) for own in loras])
        self.layers.u = torch.from_numpy(share_done(times).astype(np.float32))
        self.layers.routes = self._routed(loras) if recipe.routed else None
        self.layers.common = self._shared(loras, recipe.common) if recipe.common else None

    def _routed(self, sets: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        for own in sets:
            if own not in self._routes:
                self._routes[own] = {n: r.half() for n, r in self.routers.of(own).items()}
        return {n: torch.stack([self._routes[own][n] for own in sets]).float() for n in self._routes[sets[0]]}

    def _shared(self, sets: Sequence[tuple[int, ...]], rank: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Global-LoRA of every set: layer → down (b, rank, in) and up (b, out, rank)."""
        return {
            name: tuple(torch.stack(part) for part in zip(*(self._cut(name, own, rank) for own in sets), strict=True))
            for name in self.layers.factors.layers
        }

    def _cut(self, name: str, loras: tuple[int, ...], rank: int) -> tuple[Tensor, Tensor]:
        """Of the sum of these LoRAs' updates of a layer."""
        if (name, loras) not in self._common:
            own = list(loras)
            down, up = self.layers.factors.down[name][own], self.layers.factors.up[name][own]
            self._common[name, loras] = of_rank(down.flatten(0, 1), up.transpose(0, 1).flatten(1), rank)
        return self._common[name, loras]

    def loss(self, rows: Sequence[int], texts: Sequence[int], t: Tensor, noise: Tensor, which: int = 0) -> Tensor:
        """(b,) flow loss of the sets' true pictures, or of those they might be confused with, under ``texts``."""
        clean = torch.from_numpy(self.latents[list(rows), which].astype(np.float32))
        return flow_loss(self.model, clean, t, noise, *self.bank.rows(np.array(texts)))

    def caption(self, row: int, rng: np.random.Generator) -> int:
        texts = self.sets[row].texts
        return self.bank.index[texts[int(rng.integers(len(texts)))]]


def gate_of(recipe: Recipe, layers: Mapping[str, torch.nn.Linear]) -> Gate:
    return Gate(layers, recipe.shared, recipe.roled, recipe.timed, recipe.counted, recipe.noise)


def folder() -> Path:
    """Gates belong to a base and to the LoRAs that they were trained with."""
    rows = Shelf.of_part().rows
    digest = hashlib.sha256(repr([row["id"] for row in rows]).encode()).hexdigest()[:8]
    return zoo_dir("fusion", f"{base_tag()}-{digest}")


class Training:
    """One recipe's training."""

    def __init__(self, name: str, world: World):
        self.name, self.recipe, self.world = name, RECIPES[name], world
        self.gate = gate_of(self.recipe, world.layers.factors.layers)
        slow = [p for n, p in self.gate.named_parameters() if p.requires_grad and n.startswith(("numbers", "norms"))]
        quick = [p for n, p in self.gate.named_parameters() if p.requires_grad and n.startswith(("roles", "powers"))]
        decay = 0.01 if self.recipe.noise else 0.0
        groups = [{"params": slow, "times": 1.0}, {"params": quick, "times": QUICK}]
        groups = [group for group in groups if group["params"]]
        self.optimiser = torch.optim.AdamW(groups, lr=self.recipe.rate, betas=(0.9, 0.98), weight_decay=decay)
        every = range(len(world.sets))
        self.rows = [i for i in every if not self.recipe.pairs_only or len(world.sets[i].loras) == 2]
        self.confused = [i for i in every if world.sets[i].others]
        self.path, self.step, self.history = folder() / f"{name}.safetensors", 0, []
        if self.path.exists():
            self.gate.load_state_dict(load_file(str(self.path)))
            about = read_json(self.path.with_suffix(".json"))
            self.step, self.history = about["step"], about["history"]

    def one_step(self, step: int, steps: int) -> float:
        rng, generator = np.random.default_rng((51, step)), torch.Generator().manual_seed(step)
        own = self.recipe
        self.world.layers.gate = self.gate
        for group in self.optimiser.param_groups:
            group["lr"] = group["times"] * own.rate * min(1, step / 10) * max(0.05, 1 - step / steps)
        loss = own.naming * self.naming(rng, generator) if own.naming else 0.0
        flow, told = self.flow(rng, generator, FEW if own.naming else BATCH)
        self.optimiser.zero_grad()
        (loss + own.flow * flow).backward()
        self.optimiser.step()
        return told

    def flow(self, rng: np.random.Generator, generator: torch.Generator, many: int) -> tuple[Tensor, float]:
        """Flow loss of the true pictures, with the published contrastive loss where the recipe has it; and the first
        alone."""
        world, own = self.world, self.recipe
        rows = [self.rows[int(i)] for i in rng.choice(len(self.rows), many, replace=False)]
        t, noise = draw_times(many, generator), torch.randn(many, 16, 16, 16, generator=generator)
        world.put(rows, t.numpy(), own)
        loss = world.loss(
            rows, [0 if rng.random() < own.drop else world.caption(i, rng) for i in rows], t, noise
        ).mean()
        told = float(loss.detach())
        if rng.random() < own.contrast:
            others = [world.caption(i, rng) for i in np.roll(rows, 1)]
            loss = loss + (MARGIN - world.loss(rows, others, t, noise)).clamp_min(0).mean()
        return loss, told

    def naming(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """How far the model with its LoRAs takes the true picture for another one's, under the true caption.

        Guided sampling draws from p(x)·p(text | x)^w, so what must be right is p(text | x): by Bayes' rule it
        falls from the flow error without text to that with it. Of each picture that rate is compared with that of the
        same subject in another style and of another subject in the same style.
        """
        world = self.world
        rows = [self.confused[int(i)] for i in rng.choice(len(self.confused), FEW, replace=False)]
        t, noise = draw_times(FEW, generator), torch.randn(FEW, 16, 16, 16, generator=generator)
        texts = [world.caption(i, rng) for i in rows]
        world.put(rows, t.numpy(), self.recipe)
        told = torch.stack([world.loss(rows, texts, t, noise, which) for which in range(3)])
        with torch.no_grad():
            untold = torch.stack([world.loss(rows, [0] * FEW, t, noise, which) for which in range(3)])
        rate = (untold - told) / SHARPNESS
        subject, style = (F.softplus(rate[which] - rate[0]).mean() for which in (1, 2))
        return subject + STYLE_WEIGHT * style

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
def validation_loss(world: World, gate: Gate | None, recipe: Recipe) -> np.ndarray:
    """(sets,) mean flow loss over :data:`TIMES`, with the same noise for whoever asks."""
    out = np.zeros(len(world.sets))
    world.layers.gate = gate
    for start in range(0, len(out), BATCH):
        rows = list(range(start, min(start + BATCH, len(out))))
        texts = [world.bank.index[world.sets[i].texts[0]] for i in rows]
        for number, time_ in enumerate(TIMES):
            generator = torch.Generator().manual_seed(1000 * number + start)
            t = torch.full((len(rows),), time_)
            world.put(rows, t.numpy(), replace(recipe, common=0))
            noise = torch.randn(len(rows), 16, 16, 16, generator=generator)
            out[rows] += world.loss(rows, texts, t, noise).numpy() / len(TIMES)
    return out


def compare() -> dict[str, dict[str, float]]:
    """Recipe → mean loss over the sets of each number of LoRAs and of each kind."""
    world = World.of_part("validation", VALIDATION_SETS)
    counts = np.array([len(one.loras) for one in world.sets])
    plain = {"sum": Recipe(asked=False), "sum-asked": Recipe(), "ssr": Recipe(routed=True, asked=False)}
    out = {name: _by_count(validation_loss(world, None, own), counts) for name, own in plain.items()}
    for name, own in RECIPES.items():
        path = folder() / f"{name}.safetensors"
        if path.exists():
            gate = gate_of(own, world.layers.factors.layers)
            gate.load_state_dict(load_file(str(path)))
            out[name] = _by_count(validation_loss(world, gate, own), counts)
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
