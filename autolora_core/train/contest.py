"""Ridge against the set transformer, fold by fold; what neither of them saw decides how good the winner is.

A fold f is held out. Ridge learns from the four others. The set transformer learns from three of them and is judged
after every second epoch on the fourth (f + 1), where ridge, learnt from the same three, is judged too. The set
transformer is taken where it beats ridge there (:func:`.figures.beats`). Only then is fold f asked, once a method: so
the figures are those of the choice as well. They err on the safe side, the final encoder learns from everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..encode.ridge import KernelRidge
from ..encode.set_encoder import MODULES
from ..encode.set_network import SetConfig, SetNetwork
from ..library.store import write_atomically
from .figures import beats, ranks_of, scores_of
from .inputs import Inputs
from .kept import read_kept
from .material import Asked, Material
from .split import FOLDS
from .trainer import TextMap, TextSide, Tick, Trainer

CONTROL, RIDGE, SET, CHOSEN = "control", "ridge", "set", "chosen"
MOST_TOKENS = 96  # modules a training step looks at
MOST_JUDGED = 500  # candidates while training; held-out figures have all
ATTENTION_NUMBERS = 8_000_000  # of one head at a time


@dataclass(frozen=True)
class Data:
    """A :class:`.steps.TrainingSet`: the captioned files."""

    groups: dict[str, tuple[np.ndarray, np.ndarray]]
    texts: tuple[tuple[str, ...], ...]
    train: np.ndarray
    thing: np.ndarray
    recipe: np.ndarray


@dataclass(frozen=True)
class Contest:
    """``epochs`` planned for the set transformer, 0: it does not take part. ``work`` keeps checkpoints."""

    material: Material
    inputs: Inputs
    asked: Asked
    epochs: int
    work: Path

    @property
    def weights(self) -> np.ndarray:
        """(n,): how much each file's captions count."""
        words = self.material.words
        return np.array([words[d].weight if d in words else 1.0 for d in self.material.hashes])

    # -- one fold --------------------------------------------------------------------------------------------------

    def fold(self, number: int, tick: Tick) -> dict:
        """What fold ``number`` says; a second call reads it from disk.

        ``ranks`` of every method for its asks, :data:`CHOSEN` among them; the best ``epoch``; ``lead`` of the set
        transformer's reciprocal rank by validation ask.
        """
        path = self.work / f"fold-{number}.json"
        kept = read_kept(path, "ranks", "epoch", "lead")
        if kept is not None:
            return kept
        known = self.material.captioned & (self.material.folds != number)
        held = self.asked.folds == number
        ranks = {CONTROL: self._ridge_ranks(self.inputs.control, known, held),
                 RIDGE: self._ridge_ranks(self.inputs.kernel_rows, known, held)}  # fmt: skip
        found = {"epoch": 0, "lead": []}
        wins = False
        if self.epochs:
            wins = self._race(number, known, held, ranks, found, tick)
        ranks[CHOSEN] = ranks[SET] if wins else ranks[RIDGE]
        found["ranks"] = {name: values.tolist() for name, values in ranks.items()}
        write_atomically(path, json.dumps(found).encode())
        return found

    def _race(self, number: int, known: np.ndarray, held: np.ndarray, ranks: dict, found: dict, tick: Tick) -> bool:
        """Train the set transformer for a fold, fill in its ranks; does it beat ridge on the validation fold?"""
        validation = (number + 1) % FOLDS
        train = known & (self.material.folds != validation)
        asks = self.asked.folds == validation
        pool = self._pool(number, asks)
        ridge = ranks_of(self._scores(self._ridge(self.inputs.kernel_rows, train)[pool], asks),
                         self.asked.right[asks][:, pool])  # fmt: skip
        judge = Judge(self, asks, pool)
        trainer = self.trainer(train, judge, tick)
        trainer.run(self.epochs, self.work / f"fold-{number}.safetensors")
        own = judge.ranks(trainer.network.eval(), trainer.map)
        found["epoch"] = trainer.best[1]
        found["lead"] = (1 / (1 + own) - 1 / (1 + ridge)).tolist()
        with torch.no_grad():
            queries, generic = mapped(trainer.map, self.asked.queries[held]), mapped(trainer.map, self.asked.generic)
        scores = scores_of(self.set_vectors(trainer.network), queries, generic)
        ranks[SET] = ranks_of(scores, self.asked.right[held])
        return beats(own, ridge)

    def _pool(self, number: int, asks: np.ndarray) -> np.ndarray:
        """Rows that take part in judging an epoch: those asked for, and others in the order of their hashes; nothing of
        the fold that is held out."""
        wanted = self.asked.right[asks].any(axis=0)
        others = np.flatnonzero(~wanted & (self.material.folds != number))
        return np.sort(np.concatenate([np.flatnonzero(wanted), others[: max(MOST_JUDGED - int(wanted.sum()), 0)]]))

    # -- methods ---------------------------------------------------------------------------------------------------

    def _ridge(self, rows: np.ndarray, known: np.ndarray) -> np.ndarray:
        """(n, d): ridge learnt from ``known`` (n,) bool; these get their leave-one-out predictions, as in a library."""
        fit = KernelRidge.fit(rows[known], self.asked.targets[known], self.weights[known])
        out = fit.predict(rows)
        out[known] = fit.loo()
        return out

    def _ridge_ranks(self, rows: np.ndarray, known: np.ndarray, asks: np.ndarray) -> np.ndarray:
        return ranks_of(self._scores(self._ridge(rows, known), asks), self.asked.right[asks])

    def _scores(self, vectors: np.ndarray, asks: np.ndarray) -> np.ndarray:
        return scores_of(vectors, self.asked.queries[asks], self.asked.generic)

    def trainer(self, train: np.ndarray, score: Callable | None, tick: Tick) -> Trainer:
        """A trainer on the captioned files of ``train`` (n,) bool."""
        rows = np.flatnonzero(self.material.captioned)
        token_map, tokens, mask = self.inputs.tokens
        thing = self.material.groups[rows]
        data = Data({MODULES: (tokens[rows], mask[rows])}, tuple(() for _ in rows), train[rows], thing,
                    self.inputs.recipes[rows])  # fmt: skip
        side = TextSide.from_vectors(data, [self.asked.lines[i] for i in rows])
        config = SetConfig({MODULES: (mask.shape[1], token_map.width)}, self.asked.targets.shape[1])
        return Trainer(data, side, config, score, weights=self.weights[rows], most_tokens=MOST_TOKENS, tick=tick)

    @torch.no_grad()
    def set_vectors(self, network: SetNetwork, rows: np.ndarray | None = None) -> np.ndarray:
        """(n, d) unit vectors of the files, or of those at ``rows``."""
        _, tokens, mask = self.inputs.tokens
        rows, block = np.arange(len(tokens)) if rows is None else rows, mask.shape[1] ** 2
        block, out = int(np.clip(ATTENTION_NUMBERS // max(block, 1), 1, 256)), []
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            out.append(network({MODULES: (torch.from_numpy(tokens[part]), torch.from_numpy(mask[part]))}).numpy())
        return np.concatenate(out)


def mapped(text_map: TextMap, rows: np.ndarray) -> np.ndarray:
    """Centred text vectors (q, d) as the set transformer compares them."""
    with torch.no_grad():
        return text_map(torch.from_numpy(np.ascontiguousarray(rows, np.float32))).numpy()


@dataclass(frozen=True)
class Judge:
    """Asks for the validation fold's LoRAs among those of ``pool``."""

    contest: Contest
    asks: np.ndarray
    pool: np.ndarray

    def ranks(self, network: SetNetwork, text_map: TextMap) -> np.ndarray:
        """(q,) ranks of the validation asks."""
        asked = self.contest.asked
        vectors = self.contest.set_vectors(network, self.pool)
        scores = scores_of(vectors, mapped(text_map, asked.queries[self.asks]), mapped(text_map, asked.generic))
        return ranks_of(scores, asked.right[self.asks][:, self.pool])

    def __call__(self, network: SetNetwork, text_map: TextMap) -> float:
        """Mean of recall at 1, recall at 5 and reciprocal rank."""
        ranks = self.ranks(network, text_map)
        return float(np.mean([(ranks < 1).mean(), (ranks < 5).mean(), (1 / (1 + ranks)).mean()]))
