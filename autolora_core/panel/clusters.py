"""Groups of LoRAs that mean alike, and what to call them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ..encode.threads import product
from ..library.entries import Entry

MOST, ROUNDS, SAMPLE = 16, 12, 8192
LABELS = 3
LEAST_SAID, LEAST_LIFT = 0.005, 1.5  # share of a group's LoRAs that say a word, and how much oftener than all do
Tick = Callable[[], None]


def cluster(vectors: np.ndarray, tick: Tick = lambda: None) -> np.ndarray:
    """(n,) uint16: k-means on the sphere of unit ``vectors`` (n, d), the largest group 0. Starts from vectors that are
    far from each other, the first one being the nearest to the mean; nothing is drawn by lot."""
    count = len(vectors)
    k = min(MOST, max(1, round(math.sqrt(count / 4))), count)
    if k < 2:
        return np.zeros(count, np.uint16)
    some = vectors[np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64))]
    centres = _apart(some, k)
    for _ in range(ROUNDS):
        tick()
        home = product(some, np.ascontiguousarray(centres.T)).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, home, some)
        size = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(size > 1e-9, sums / np.maximum(size, 1e-9), centres).astype(np.float32)
    turned = np.ascontiguousarray(centres.T)
    home = np.concatenate([product(np.array(vectors[at : at + SAMPLE]), turned).argmax(axis=1)
                           for at in range(0, count, SAMPLE)])  # fmt: skip
    sizes = np.bincount(home, minlength=k)
    rank = np.empty(k, np.uint16)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(k)
    return rank[home]


def _apart(vectors: np.ndarray, k: int) -> np.ndarray:
    """(k, d): each as far from those before it as the typical far one; the very farthest are often odd ones out."""
    chosen = [int((vectors @ vectors.mean(axis=0)).argmax())]
    nearest = vectors @ vectors[chosen[0]]
    while len(chosen) < k:
        order = np.argsort(nearest, kind="stable")
        chosen.append(int(order[len(order) // 50]))
        nearest = np.maximum(nearest, vectors @ vectors[chosen[-1]])
    return vectors[chosen].astype(np.float32)


def name_clusters(entries: Sequence[Entry], home: np.ndarray) -> list[list[str]]:
    """For every group the words that tell it from the others best: said by many in it and by few outside."""
    said = [_words(entry) for entry in entries]
    everywhere = Counter(word for words in said for word in words)
    labels = []
    for number in range(len(np.bincount(home))):
        inside = np.flatnonzero(home == number)
        counts = Counter(word for at in inside.tolist() for word in said[at])
        speaking = max(sum(bool(said[at]) for at in inside.tolist()), 1)
        lift = {word: n / len(inside) / (everywhere[word] / len(entries)) for word, n in counts.items()}
        telling = {
            word: n * math.log(lift[word]) ** 2
            for word, n in counts.items()
            if n >= max(2, LEAST_SAID * speaking) and lift[word] >= LEAST_LIFT
        }
        best = sorted(telling, key=lambda word: (-telling[word], word))
        labels.append([word[:40] for word in best[:LABELS]])
    return labels


def _words(entry: Entry) -> set[str]:
    """Tags as they are, and the title's words."""
    text = entry.text
    title = (word.strip(".,:;!?()[]{}\"'").casefold() for word in text.title.split())
    return {tag.strip().casefold() for tag in text.tags[:12]} | {word for word in title if len(word) > 2} - {""}
