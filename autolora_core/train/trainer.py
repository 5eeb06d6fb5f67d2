"""How a learned encoder is trained: start as ridge, contrast texts and LoRAs, vary what must not matter.

Knows nothing of where LoRAs and texts come from: a zoo and a user's library are trained on alike.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from torch.func import functional_call

from ..encode.ridge import KernelRidge
from ..encode.set_network import SetConfig, SetNetwork
from ..library.store import write_atomically
from ..portable import load_copies
from .steps import Groups, TrainingSet, augmented, batches, contrastive, joined

log = logging.getLogger(__name__)
RATE, DECAY, SEED = 5e-4, 0.05, 3
TEMPERATURE, COLDEST = 1 / 0.07, 100.0
# What a LoRA is seen by in a training step, and how often: (share, names of groups).
Views = Sequence[tuple[float, Sequence[str]]]
Tick = Callable[[int, int], None]


@dataclass
class TextSide:
    """``vectors[i]`` (k_i, d): centred unit vectors of LoRA i's texts. ``bank`` (B, d) and ``bank_thing`` (B,): the
    first text of every thing in the training part, to be told apart from."""

    vectors: list[np.ndarray]
    bank: np.ndarray
    bank_thing: np.ndarray

    @classmethod
    def of(cls, data: TrainingSet, encode: Callable[[Sequence[str]], np.ndarray]) -> TextSide:
        return cls.from_vectors(data, [encode(texts) for texts in data.texts])

    @classmethod
    def from_vectors(cls, data: TrainingSet, vectors: list[np.ndarray]) -> TextSide:
        """Of texts that are encoded already, ``vectors[i]`` those of LoRA i."""
        first = {int(data.thing[i]): i for i in reversed(np.flatnonzero(data.train))}
        keys = sorted(first)
        return cls(vectors, np.stack([vectors[first[k]][0] for k in keys]), np.array(keys))


class TextMap(torch.nn.Module):
    """The identity plus a learned correction, unit rows."""

    def __init__(self, dim: int):
        super().__init__()
        self.change = torch.nn.Parameter(torch.zeros(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x + x @ self.change, dim=-1)

    def matrix(self) -> np.ndarray:
        return (torch.eye(len(self.change)) + self.change).detach().numpy()


def start_as_ridge(network: SetNetwork, data: TrainingSet, targets: np.ndarray) -> None:
    """Set the linear path to ridge regressions of the training part, one a group of tokens.

    Each is fitted on the LoRAs that have the group, and shrinks by itself what it cannot tell; their sum still means
    something when a group is missing, which one regression on all of them would not.
    """
    for name, weights in network.linear.items():
        there = data.train & data.groups[name][1].any(axis=1)
        if there.sum() > 1:
            fit = KernelRidge.fit(joined(data.groups, (name,))[there], targets[there])
            slope = fit.X.T.astype(np.float64) @ fit.dual
            weights.data = torch.from_numpy(slope.reshape(weights.shape).astype(np.float32))


class Trainer:
    """Network, text map and temperature, and what they are trained on.

    ``score(network, text map)`` judges an epoch and the best one is kept; without it the last one is. ``weights`` (n,):
    how much each LoRA's texts are worth. ``most_tokens``: a step looks at so many modules, drawn anew each time.
    ``tick(done, total)`` is called before every step and may raise to interrupt.
    """

    def __init__(
        self, data: TrainingSet, texts: TextSide, config: SetConfig, score: Callable | None, views: Views | None = None,
        weights: np.ndarray | None = None, most_tokens: int | None = None, tick: Tick = lambda done, total: None,
    ):  # fmt: skip
        torch.manual_seed(SEED)
        self.data, self.texts, self.score, self.tick = data, texts, score, tick
        self.weights, self.most_tokens = weights, most_tokens
        self.views = tuple(views or ((1.0, tuple(data.groups)),))
        self.network, self.map = SetNetwork(config), TextMap(config.dim)
        self.temperature = torch.nn.Parameter(torch.tensor(float(np.log(TEMPERATURE))))
        self.groups = {k: tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in v) for k, v in data.groups.items()}
        targets = np.stack([v.mean(axis=0) for v in texts.vectors])
        targets /= np.linalg.norm(targets, axis=1, keepdims=True)
        start_as_ridge(self.network, data, targets)
        slow = [*self.network.linear.values(), *self.map.parameters()]
        known = {id(p) for p in slow}
        fast = [p for p in self.network.parameters() if id(p) not in known]
        self.optimiser = torch.optim.AdamW(
            [{"params": fast, "lr": RATE}, {"params": slow, "lr": RATE / 10}, {"params": [self.temperature], "lr": 1e-2,
             "weight_decay": 0.0}], weight_decay=DECAY, betas=(0.9, 0.98))  # fmt: skip
        self.rates = [g["lr"] for g in self.optimiser.param_groups]
        self.best: tuple[float, int, dict[str, Tensor]] = (-1.0, 0, {})

    def epoch(self, number: int, epochs: int) -> float:
        rng = np.random.default_rng((SEED, number))
        losses = []
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * (number - 1) / epochs))
        bank, bank_thing = torch.from_numpy(self.texts.bank), torch.from_numpy(self.texts.bank_thing)
        self.network.train()
        steps = batches(self.data, rng)
        for at, rows in enumerate(steps):
            self.tick((number - 1) * len(steps) + at, epochs * len(steps))
            names = self.views[int(rng.choice(len(self.views), p=[p for p, _ in self.views]))][1]
            names = [name for name in names if name in self.groups]
            # A made-up LoRA has no file: where only the file is looked at, it is not there.
            seen = torch.stack([self.groups[name][1][rows].any(dim=1) for name in names]).any(dim=0).numpy()
            rows = rows[seen]
            if len(rows) < 2:
                continue
            part = {name: tuple(array[rows] for array in self.groups[name]) for name in names}
            vectors = self._vectors(part, names, rng)
            said = [self.texts.vectors[i] for i in rows]
            own = np.stack([v[min(int(rng.exponential(1.2)), len(v) - 1)] for v in said])
            loss = contrastive(
                vectors, self.map(torch.from_numpy(own)), self.map(bank), torch.from_numpy(self.data.thing[rows]),
                bank_thing, self.temperature.exp().clamp(max=COLDEST),
                None if self.weights is None else torch.from_numpy(self.weights[rows].astype(np.float32)),
            )  # fmt: skip
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimiser.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def _vectors(self, part: Groups, names: Sequence[str], rng: np.random.Generator) -> Tensor:
        """The network's vectors of augmented LoRAs. With fewer tokens the linear path is louder by as much as it lacks,
        so that its mean over draws is what it gives for all of them."""
        swapped: dict[str, Tensor] = {}
        for name in names:
            count = part[name][1].shape[1]
            if self.most_tokens and count > self.most_tokens:
                at = torch.from_numpy(np.sort(rng.choice(count, self.most_tokens, replace=False)))
                part[name] = tuple(array[:, at] for array in part[name])
                louder = (count / self.most_tokens) ** 0.5
                swapped[f"inward.{name}"] = self.network.inward[name][at]
                swapped[f"mark.{name}"] = self.network.mark[name][at]
                swapped[f"linear.{name}"] = self.network.linear[name][at] * louder
        seen = augmented(part, names, rng)
        return functional_call(self.network, swapped, (seen,)) if swapped else self.network(seen)

    def state(self) -> dict[str, Tensor]:
        return {f"network.{k}": v.detach().clone() for k, v in self.network.state_dict().items()} | {
            "map.change": self.map.change.detach().clone()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        self.network.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith("network.")})
        self.map.change.data = state["map.change"].clone()

    def judge(self, number: int) -> float:
        """Keep this state if it is the best so far."""
        value = self.score(self.network.eval(), self.map) if self.score is not None else float(number)
        if value > self.best[0]:
            self.best = (value, number, self.state())
        return value

    def run(self, epochs: int, checkpoint: Path | None = None, stop: int | None = None) -> None:
        """Train, judge every second epoch, end with the best state loaded. ``stop`` ends it after so many of the
        ``epochs`` that the rate is planned for."""
        first, began, stop = self._resume(checkpoint), time.time(), epochs if stop is None else stop
        if first == 1:
            log.info("epoch 0 (ridge): %.4f", self.judge(0))
        for number in range(first, stop + 1):
            loss = self.epoch(number, epochs)
            if number % 2 == 0 or number == stop:
                value = self.judge(number)
                left = (time.time() - began) / (number - first + 1) * (stop - number)
                log.info("epoch %d/%d loss %.3f validation %.4f (best %.4f at %d), %.0f s left", number, stop, loss,
                         value, self.best[0], self.best[1], left)  # fmt: skip
                self._keep(checkpoint, number)
        self.load(self.best[2])

    def _keep(self, checkpoint: Path | None, number: int) -> None:
        if checkpoint is None:
            return
        moments = {f"adam.{i}.{k}": v for i, s in self.optimiser.state_dict()["state"].items() for k, v in s.items()}
        stored = self.state() | {f"best.{k}": v for k, v in self.best[2].items()} | moments
        stored |= {"temperature": self.temperature.detach(), "progress": torch.tensor([number, self.best[1]])}
        stored["best_value"] = torch.tensor([self.best[0]], dtype=torch.float64)
        stored = {k: v.contiguous().clone() for k, v in stored.items()}
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(checkpoint, save(stored))

    def _resume(self, checkpoint: Path | None) -> int:
        if checkpoint is None or not checkpoint.exists():
            return 1
        try:
            stored = load_copies(checkpoint)
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be used (%s); training from the beginning", checkpoint, error)
            return 1
        self.load({k: v for k, v in stored.items() if k.startswith(("network.", "map."))})
        self.temperature.data = stored["temperature"]
        number, best = (int(v) for v in stored["progress"])
        self.best = (float(stored["best_value"]), best, {k[5:]: v for k, v in stored.items() if k.startswith("best.")
                     and k != "best_value"})  # fmt: skip
        state = self.optimiser.state_dict()
        for key, value in stored.items():
            if key.startswith("adam."):
                _, i, name = key.split(".", 2)
                state["state"].setdefault(int(i), {})[name] = value
        self.optimiser.load_state_dict(state)
        return number + 1
