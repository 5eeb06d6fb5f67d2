"""Vectors and words of a made-up collector's library, with the structure that real ones have.

A text is composed as captions are: a subject, a manner and something else, whose MiniLM vectors are real, and noise
along the texts' own covariance; made from part vectors because MiniLM takes six milliseconds a text.

What an encoder makes of a file follows the leave-one-out vectors of a ridge encoder on the 2,226 LoRAs of the retrieval
benchmark: their mean and covariance (most of a vector lies in a few dozen directions), and a cosine of about 0.2 with
the text that the file is asked for by, the text seen through the same covariance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from safetensors import safe_open

from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.ridge import KernelRidge
from autolora_core.encode.threads import one_thread
from autolora_core.encode.towers import TextTower, default_tower
from benchmarks.results_file import REPO
from zoo.cache import read_json
from zoo.captions import STYLE_NAMES
from zoo.splits import Splits

BLOCK = 100_000
# How much of a vector the text of its file is, beside the usual spread.
TOLD = 0.35


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
    ``centre`` (d,) the mean of the generic prompts; ``usual`` (d,) and ``encoded`` (d, d) mean and root of the
    covariance of what an encoder makes of files."""

    things: np.ndarray
    manners: np.ndarray
    spread: np.ndarray
    centre: np.ndarray
    usual: np.ndarray
    encoded: np.ndarray

    @classmethod
    @one_thread()
    def of(cls, tower: TextTower | None = None) -> Parts:
        """Of all subjects and manners: ten seconds with MiniLM."""
        tower = tower or default_tower()
        things, ways = tower.encode(list(subjects())), tower.encode(list(manners()))
        centre = tower.encode(list(GENERIC_PROMPTS)).mean(axis=0)
        made = _encoded(tower, centre)
        return cls(things, ways, _root(np.concatenate([things, ways])), centre, made.mean(axis=0), _root(made))

    def noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count, d) along the covariance of texts."""
        return rng.standard_normal((count, len(self.spread)), np.float32) @ self.spread

    def texts(self, rng: np.random.Generator, thing: np.ndarray, manner: np.ndarray) -> np.ndarray:
        """Unit rows of texts that speak of ``thing`` (n,) in ``manner`` (n,), indices, and of more."""
        shares = rng.dirichlet([2, 1, 1], len(thing)).astype(np.float32)
        other = self.things[rng.integers(len(self.things), size=len(thing))]
        rows = shares[:, :1] * self.things[thing] + shares[:, 1:2] * self.manners[manner] + shares[:, 2:] * other
        return unit(rows + 0.45 * self.noise(rng, len(thing)))

    def vectors(self, rng: np.random.Generator, texts: np.ndarray) -> np.ndarray:
        """Unit rows of what an encoder makes of files of which ``texts`` (n, d) would speak truly."""
        seen = unit(unit(texts - self.centre) @ self.encoded.T) @ self.encoded
        noise = rng.standard_normal((len(texts), len(self.encoded)), np.float32) @ self.encoded
        return unit(self.usual + TOLD * unit(seen) + noise)


def _root(rows: np.ndarray) -> np.ndarray:
    """(d, d) float32 root of the covariance of rows (n, d): normal numbers times it are spread as the rows are."""
    _, scale, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    return ((scale / len(rows) ** 0.5)[:, None] * axes).astype(np.float32)


def _encoded(tower: TextTower, centre: np.ndarray) -> np.ndarray:
    """(2226, d) leave-one-out vectors of a ridge encoder on the features and labels of the retrieval benchmark."""
    pack = REPO / "benchmarks" / "data" / "retrieval"
    with safe_open(f"{pack}.safetensors", "np") as file:
        packed = [(file.get_tensor(name), file.get_tensor(f"{name}.scale")) for name in ("product", "flat")]
    blocks = [np.float32(values) * np.float32(scale) for values, scale in packed]
    labels = [row["label"] for row in read_json(pack.with_suffix(".json"))["rows"]]
    told = {label: row for label, row in zip(sorted(set(labels)), tower.encode(sorted(set(labels))), strict=True)}
    targets = unit(np.stack([told[label] for label in labels]) - centre)
    return unit(KernelRidge.fit(unit(np.concatenate(blocks, axis=1)), targets, np.ones(len(labels))).loo())


def many_vectors(parts: Parts, count: int, seed: int) -> np.ndarray:
    """(count, d) float32 vectors of files, in blocks: a million are 1.5 GB."""
    out = np.empty((count, parts.things.shape[1]), np.float32)
    for start, rng, thing, manner in _blocks(parts, count, seed):
        out[start : start + len(thing)] = parts.vectors(rng, parts.texts(rng, thing, manner))
    return out


def shown(parts: Parts, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count,) each: which thing, and in which manner, the files of :func:`many_vectors` show."""
    blocks = [(thing, manner) for _, _, thing, manner in _blocks(parts, count, seed)]
    return tuple(np.concatenate(part) for part in zip(*blocks, strict=True))


def _blocks(parts: Parts, count: int, seed: int) -> Iterator[tuple[int, np.random.Generator, np.ndarray, np.ndarray]]:
    for start in range(0, count, BLOCK):
        rng, size = np.random.default_rng([seed, start]), min(BLOCK, count - start)
        yield start, rng, rng.integers(len(parts.things), size=size), rng.integers(len(parts.manners), size=size)
