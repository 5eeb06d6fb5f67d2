"""Encoder files of both kinds. What is accepted has the id that it states, and its vectors are finite."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from safetensors import deserialize

from autolora_core.encode.encoder import RidgeEncoder
from autolora_core.encode.encoder_files import load_encoder_file
from autolora_core.encode.features import Features, FeatureSchema
from autolora_core.encode.set_encoder import MODULES, SetEncoder, rounded, token_schema
from autolora_core.encode.set_network import SetConfig, SetNetwork
from autolora_core.encode.sketch import KINDS, SketchSize
from autolora_core.encode.tokens import TokenMap
from autolora_core.library.encoders import encoders_state, find_encoders

from .. import document
from ..memory import MIB
from ..oracle import Hang, Wrong, deadline

CASES = 1_500
SIZE = SketchSize(2, 1, 1)
NAMES = ("joint_blocks.0.x_block.attn.qkv", "joint_blocks.0.x_block.mlp.fc1")
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "I8": "i1", "BOOL": "?"}
METADATA = (
    "format",
    "kind",
    "id",
    "tower",
    "schema",
    "texts",
    "config",
    "figures",
    "held_out_recall_at_1",
    "trained_on",
    "library",
    "trained",
)
KEYS = (
    "X",
    "dual",
    "left_out",
    "lam",
    "weights",
    "mean",
    "scale",
    "centre",
    "text_map",
    "tokens.basis",
    "tokens.mean",
    "tokens.scale",
    "tokens.usual",
    "network.cls",
    "network.head.weight",
    "network.layers.0.qkv.weight",
    "network.inward.sketches",
)


def bound(size: int) -> int:
    """A network is made before its weights are laid in: of the size that the file's tensors have."""
    return 64 * MIB + 60 * size


class Words:
    """A tower of sixteen numbers."""

    id, dim = "words", 16

    def encode(self, texts):
        rows = np.stack([np.random.default_rng(list(text.encode())).standard_normal(self.dim) for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _ridge(path: Path) -> bytes:
    drawn = np.random.default_rng(1)
    schema = FeatureSchema(
        "sd3", SIZE, NAMES, np.zeros((2, SIZE.width), np.float32), np.ones((2, len(KINDS)), np.float32)
    )
    vectors = drawn.standard_normal((8, schema.width)).astype(np.float32)
    texts = ["an otter", "a fox", "ink", "neon", "a castle", "a rocket", "a cactus", "a crown"]
    return (
        RidgeEncoder.fit(schema, vectors, texts, Words())
        .save(path, {"library": "default", "trained": "2026"})
        .read_bytes()
    )


def _set(path: Path) -> bytes:
    schema = token_schema("sd3", SIZE, NAMES)
    tokens = TokenMap(
        schema,
        np.ones((2, 3, SIZE.width), np.float32),
        np.zeros((2, SIZE.width), np.float32),
        np.ones((2, 3), np.float32),
        np.zeros(2, np.float32),
    )
    network = SetNetwork(SetConfig({MODULES: (2, 5)}, 4, width=4, heads=2, layers=1))
    made = SetEncoder(
        tokens, "tower", network, np.zeros(4, np.float32), np.eye(4, dtype=np.float32), {"held_out_recall_at_1": 0.5}
    )
    return rounded(made).save(path).read_bytes()


def seeds(folder: Path) -> list[bytes]:
    return [_ridge(folder / "seed.safetensors"), _set(folder / "seed.safetensors")]


def make(rng: random.Random, parent: bytes) -> bytes:
    made = document.lie(rng, parent, KEYS, METADATA)
    return _signed(made) if rng.random() < 0.6 else made


def _signed(data: bytes) -> bytes:
    """With the id of what is in it, as somebody would write it who wants it to be taken."""
    parts = document.Document.read(data)
    try:
        with deadline(1.0):
            metadata = dict(parts.metadata)
            tensors = {name: _array(info) for name, info in deserialize(data)}
            restore = SetEncoder._restored if metadata["kind"] == "set" else RidgeEncoder._restore
            parts.metadata = metadata | {"id": restore(metadata, tensors).id}
            return parts.write()
    except (Exception, Hang):  # it fits together so little that it has no id
        return data


def _array(info: dict) -> np.ndarray:
    return np.frombuffer(info["data"], TYPES[info["dtype"]]).reshape(info["shape"])


def run(data: bytes, folder: Path) -> None:
    (folder / "seed.safetensors").unlink(missing_ok=True)
    path = folder / "my-encoder.safetensors"
    path.write_bytes(data)
    found = find_encoders([folder], "default")
    encoders_state([folder])
    encoder = load_encoder_file(path)
    if found.get(encoder.family) is not None and found[encoder.family].id != encoder.id:
        raise Wrong(f"found as {found[encoder.family].id}, loaded as {encoder.id}")
    modules, width = encoder.schema.modules, encoder.schema.width
    features = Features(
        np.ones(width, np.float32), np.ones(len(modules), bool), np.zeros(len(modules), np.float32), modules
    )
    vector = encoder.encode(features)
    if vector.shape != (encoder.dim,) or not np.isfinite(vector).all():
        raise Wrong(f"a vector of shape {vector.shape}, {int((~np.isfinite(vector)).sum())} not finite")
    query = encoder.query(np.ones((1, encoder.dim), np.float32))
    if query.shape != (1, encoder.dim) or not np.isfinite(query).all():
        raise Wrong("a query that is not finite")
