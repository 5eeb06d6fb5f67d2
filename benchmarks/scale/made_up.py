"""Vectors and words of a made-up collector's library, with the structure that real ones have.

A text is composed as captions are: a subject, a manner and something else, whose MiniLM vectors are real, and noise
along the texts' own covariance. What an encoder makes of a file is such a text about the generic prompts' mean, the
direction of the file's creator, and noise of the same covariance: near each other in groups, and never on top of the
text they are asked for by. Made from part vectors because MiniLM takes six milliseconds a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.towers import TextTower, default_tower
from zoo.captions import STYLE_NAMES
from zoo.splits import Splits

CREATORS = 400
BLOCK = 100_000


@cache
def subjects() -> tuple[str, ...]:
    """Names of things, sorted."""
    return tuple(sorted(name.replace("-", " ") for name in Splits.load().table["subjects"]))


@cache
def manners() -> tuple[str, ...]:
    """Names of manners of drawing, sorted."""
    return tuple(sorted(STYLE_NAMES.values()))


def unit(rows: np.ndarray) -> np.ndarray:
    """float32 rows of length one."""
    return (rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


@dataclass(frozen=True)
class Parts:
    """``things`` and ``manners`` (n, d) the real vectors of the parts, ``spread`` (d, d) a root of their covariance,
    ``centre`` (d,) the mean of the generic prompts."""

    things: np.ndarray
    manners: np.ndarray
    spread: np.ndarray
    centre: np.ndarray

    @classmethod
    def of(cls, tower: TextTower | None = None) -> Parts:
        """Of all subjects and manners: ten seconds with MiniLM."""
        tower = tower or default_tower()
        things, ways = tower.encode(list(subjects())), tower.encode(list(manners()))
        every = np.concatenate([things, ways])
        _, scale, axes = np.linalg.svd(every - every.mean(axis=0), full_matrices=False)
        spread = (scale / len(every) ** 0.5)[:, None] * axes
        return cls(things, ways, spread, tower.encode(list(GENERIC_PROMPTS)).mean(axis=0))

    def noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count, d) along the covariance of texts."""
        return rng.standard_normal((count, len(self.spread)), np.float32) @ self.spread.astype(np.float32)

    def texts(self, rng: np.random.Generator, thing: np.ndarray, manner: np.ndarray) -> np.ndarray:
        """Unit rows of texts that speak of ``thing`` (n,) in ``manner`` (n,), indices, and of more."""
        shares = rng.dirichlet([2, 1, 1], len(thing)).astype(np.float32)
        other = self.things[rng.integers(len(self.things), size=len(thing))]
        rows = shares[:, :1] * self.things[thing] + shares[:, 1:2] * self.manners[manner] + shares[:, 2:] * other
        return unit(rows + 0.45 * self.noise(rng, len(thing)))

    def vectors(self, rng: np.random.Generator, texts: np.ndarray) -> np.ndarray:
        """Unit rows of what an encoder makes of files of which ``texts`` (n, d) would speak truly."""
        creators = unit(self.noise(np.random.default_rng(0), CREATORS))
        mine = creators[rng.integers(CREATORS, size=len(texts))]
        return unit(0.6 * unit(texts - self.centre) + 0.45 * mine + 0.65 * unit(self.noise(rng, len(texts))))


def many_vectors(parts: Parts, count: int, seed: int) -> np.ndarray:
    """(count, d) float32 vectors of files, in blocks: a million are 1.5 GB."""
    out = np.empty((count, parts.things.shape[1]), np.float32)
    for start in range(0, count, BLOCK):
        rng = np.random.default_rng([seed, start])
        size = min(BLOCK, count - start)
        thing = rng.integers(len(parts.things), size=size)
        manner = rng.integers(len(parts.manners), size=size)
        out[start : start + size] = parts.vectors(rng, parts.texts(rng, thing, manner))
    return out
