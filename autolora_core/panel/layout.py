"""Where the LoRAs of a library lie on a map: neighbours in the embedding are neighbours in the plane.

Up to :data:`LANDMARKS` of them are laid out by t-SNE (van der Maaten and Hinton 2008: exact, from the two principal
components on, so that nothing is drawn by lot); every other one is put among the landmarks that are nearest to it.
The same vectors give the same map.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..encode.threads import product

LANDMARKS = 1500
PERPLEXITY = 30.0
STEPS, EARLY, EXAGGERATION = 300, 75, 12.0
NEAREST = 8  # landmarks that place another LoRA
_BLOCK = 4096
Tick = Callable[[], None]


def lay_out(vectors: np.ndarray, tick: Tick = lambda: None) -> np.ndarray:
    """(n, 2) float32 within [−1, 1] for unit ``vectors`` (n, d) float32. ``tick()`` is called now and then and may
    raise to interrupt."""
    count = len(vectors)
    if count < 3:
        return np.linspace(-0.5, 0.5, count, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    chosen = np.unique(np.linspace(0, count - 1, min(count, LANDMARKS)).astype(np.int64))
    marks = vectors[chosen]
    places = _tsne(marks, tick)
    out = np.empty((count, 2), np.float32)
    for start in range(0, count, _BLOCK):
        tick()
        out[start : start + _BLOCK] = _among(np.array(vectors[start : start + _BLOCK]), marks, places)
    out[chosen] = places
    low, high = out.min(axis=0), out.max(axis=0)
    return ((out - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-9)).astype(np.float32)


def principal(vectors: np.ndarray, count: int = 2) -> np.ndarray:
    """(n, count) float32: the principal components, the largest entry of each direction positive."""
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    directions = directions[:, ::-1][:, :count]
    at = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[at, np.arange(directions.shape[1])] + 1e-30)
    return (centred @ directions).astype(np.float32)


def _tsne(vectors: np.ndarray, tick: Tick) -> np.ndarray:
    likely = _likely(vectors)
    places = principal(vectors)
    places *= 1e-2 / max(float(places[:, 0].std()), 1e-9)
    speed, gain = np.zeros_like(places), np.ones_like(places)
    rate = max(len(vectors) / EXAGGERATION, 50.0)
    for step in range(STEPS):
        tick()
        pull = likely * EXAGGERATION if step < EARLY else likely
        square = (places * places).sum(axis=1)
        near = 1 / (1 + np.maximum(square[:, None] + square[None] - 2 * product(places, _turned(places)), 0))
        np.fill_diagonal(near, 0)
        force = (pull - near / near.sum(dtype=np.float64).astype(np.float32)) * near
        slope = 4 * (force.sum(axis=1)[:, None] * places - product(force, places))
        gain = np.maximum(np.where(slope * speed < 0, gain + 0.2, gain * 0.8), 0.01).astype(np.float32)
        speed = (0.5 if step < EARLY else 0.8) * speed - rate * gain * slope
        places = places + speed
        places -= places.mean(axis=0)
    return places


def _turned(matrix: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix.T)


def _likely(vectors: np.ndarray) -> np.ndarray:
    """(n, n) float32, sums to one: how likely each is the other's neighbour, at the perplexity asked for."""
    distance = np.maximum(2 - 2 * product(vectors, _turned(vectors)), 0)
    np.fill_diagonal(distance, np.inf)
    wanted = np.log(min(PERPLEXITY, max((len(vectors) - 1) / 3, 1.0)))
    distance = distance - distance.min(axis=1, keepdims=True)
    low, high = np.full(len(vectors), 1e-3), np.full(len(vectors), 1e6)
    rest = np.where(np.isinf(distance), 0, distance)
    for _ in range(30):  # halving the range of every row's width, in logarithms
        sharp = np.sqrt(low * high)
        weights = np.exp(-distance * sharp[:, None].astype(np.float32))
        total = weights.sum(axis=1)
        entropy = np.log(total) + sharp * (weights * rest).sum(axis=1) / total
        low, high = np.where(entropy > wanted, sharp, low), np.where(entropy > wanted, high, sharp)
    likely = weights / total[:, None]
    return np.maximum((likely + likely.T) / (2 * len(vectors)), 1e-12).astype(np.float32)


def _among(vectors: np.ndarray, marks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(m, 2): between the nearest landmarks, the nearer the more it counts."""
    cosines = product(vectors, _turned(marks))
    few = min(NEAREST, len(marks))
    nearest = np.argpartition(-cosines, few - 1, axis=1)[:, :few]
    near = np.take_along_axis(cosines, nearest, axis=1)
    weights = np.exp((near - near.max(axis=1, keepdims=True)) * 12)
    weights /= weights.sum(axis=1, keepdims=True)
    # Neighbours may have been torn apart: only those on the side of the nearest count.
    own = places[nearest[np.arange(len(near)), near.argmax(axis=1)]]
    spread = float(places.std()) or 1.0
    close = np.linalg.norm(places[nearest] - own[:, None], axis=2) < 0.25 * spread
    weights *= close
    weights /= weights.sum(axis=1, keepdims=True)
    return (places[nearest] * weights[:, :, None]).sum(axis=1)
