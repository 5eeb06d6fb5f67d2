"""Made-up libraries whose right answers are known: LoRAs whose ΔW carries a topic, a creator and noise."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import torch
from encode_worlds import FakeUpdate, seeded

from autolora_core.encode.encoder import RidgeEncoder
from autolora_core.encode.features import FeatureSchema, module_features
from autolora_core.encode.sketch import SketchSize
from autolora_core.retrieve.view import MemoryView, ViewEntry, ViewText, ViewVectors

LATENT = 24
MODULES = [(f"blocks.{i}.{name}", 48, 40) for i in range(8) for name in ("attn", "mlp")]
SIZE = SketchSize(16, 6, 8)


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def normal(name: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(int(digest(name)[:15], 16)).normal(size=shape)


class TopicTower:
    """A tower that knows words: each has a point in a small latent space, a text is the mean of its words."""

    id, dim = "topics-1", 64
    _lift = normal("lift", LATENT, 64)

    def latent(self, text: str) -> np.ndarray:
        words = re.findall(r"[a-z0-9]+", text.lower())
        words = [word for word in words if word not in ("a", "of", "in", "the", "style", "picture")]
        return np.mean([normal(word, LATENT) for word in words] or [np.zeros(LATENT)], axis=0)

    def encode(self, texts):
        rows = np.array([self.latent(text) @ self._lift for text in texts]).reshape(-1, self.dim)
        return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def file_updates(topic: str, creator: int, seed: int, noise: float = 1.0) -> list[FakeUpdate]:
    """Rank 6: one direction says the topic (through maps common to all files), two the creator, three are noise."""
    g, updates = seeded(seed), []
    z = TopicTower().latent(topic)
    for name, out, inputs in MODULES:
        says = torch.from_numpy(normal(f"map {name}", out, LATENT) @ z)[:, None] / LATENT**0.5
        hears = torch.from_numpy(normal(f"ear {name}", 1, inputs))
        made = torch.from_numpy(normal(f"creator {creator} {name}", out, 2))
        made_of = torch.from_numpy(normal(f"creator's {creator} {name}", 2, inputs))
        up = torch.cat([says, made, noise * torch.randn(out, 3, generator=g, dtype=torch.float64)], dim=1)
        down = torch.cat([hears, made_of, torch.randn(3, inputs, generator=g, dtype=torch.float64)])
        updates.append(FakeUpdate(name, up=up, down=down))
    return updates


def weights_world(captioned: int, silent: int, noise: float = 1.0, twins: int = 0) -> tuple[MemoryView, list[str]]:
    """Files "topic0"… : the first ``captioned`` have a title, the other ``silent`` have nothing but weights.

    ``twins`` more are near-duplicates of the first silent ones. Returns the view and each entry's topic.
    """
    topics = [f"topic{i}" for i in range(captioned + silent)] + [f"topic{captioned + i}" for i in range(twins)]
    files = []
    for i, topic in enumerate(topics):
        original = i if i < captioned + silent else captioned + i - captioned - silent
        files.append(module_features(file_updates(topic, original % 7, 1000 + original, noise), SIZE))
    schema = FeatureSchema.learn("emoji", files, SIZE)
    rows = np.stack([schema.assemble(file).vector for file in files])
    rows[captioned + silent :] += 1e-4
    entries = [
        ViewEntry(
            name=f"file_{i:03d}.safetensors",
            hash=digest(f"file {i}"),
            text=ViewText(title=topic) if i < captioned else ViewText(),
        )
        for i, topic in enumerate(topics)
    ]
    pairs = [(entries[captioned + i].hash, entries[captioned + silent + i].hash) for i in range(twins)]
    view = MemoryView(entries, duplicates=pairs, handle={"world": [captioned, silent, noise, twins]})
    if captioned:
        encoder = RidgeEncoder.fit(schema, rows[:captioned], topics[:captioned], TopicTower())
        view.encoders["emoji"] = encoder
        hashes = tuple(entry.hash for entry in entries)
        view.encoded[encoder.id] = ViewVectors(hashes, encoder.encode_many(rows))
    return view, topics


def words_world(titles: list[str], **texts) -> MemoryView:
    """A library of words only; ``texts`` maps a title (spaces as _) to more of its :class:`ViewText`."""
    entries = []
    for title in titles:
        more = texts.get(title.replace(" ", "_"), {})
        entries.append(ViewEntry(f"{title}.safetensors", digest(title), text=ViewText(**{"title": title, **more})))
    return MemoryView(entries)


def auroc(positive, negative) -> float:
    """Probability that a positive scores above a negative, ties counting half."""
    p, n = np.asarray(positive)[:, None], np.asarray(negative)[None]
    return float(((p > n) + 0.5 * (p == n)).mean())
