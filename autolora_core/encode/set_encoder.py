"""The learned encoder: a file's module tokens through a set transformer into the text tower's space.

Same protocol and file format as the ridge encoder (``format=autolora-encoder/1``), ``kind=set``. Trained on a zoo by
``python -m zoo.train_encoder``; a library takes it as it is. Texts have a learned linear map too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from .encoder import FORMAT, OnSchema, checked_encoder, stated_training, write_encoder
from .features import Features, FeatureSchema
from .set_network import SetConfig, SetNetwork
from .sketch import KINDS, SketchSize
from .tokens import TokenMap

TOKEN_ARRAYS = ("basis", "mean", "scale", "usual")
MODULES = "sketches"  # the group of tokens that a file alone gives


@dataclass(frozen=True)
class SetEncoder(OnSchema):
    """``network`` maps groups of tokens to unit vectors; ``centre`` (dim,) and ``text_map`` (dim, dim) map texts.

    ``figures`` are what it was found to do on LoRAs that it never saw, ``held_out_recall_at_1`` among them.
    """

    tokens: TokenMap
    tower: str
    network: SetNetwork
    centre: np.ndarray
    text_map: np.ndarray
    figures: dict[str, float] = field(default_factory=dict)
    trained_on: frozenset[str] | None = None

    @property
    def held_out_recall_at_1(self) -> float | None:
        """See ``WeightEncoder``; None when nobody measured it."""
        return self.figures.get("held_out_recall_at_1")

    @property
    def schema(self) -> FeatureSchema:
        """Where a library lays a file's sketches out."""
        return self.tokens.schema

    @property
    def usable(self) -> bool:
        """It was trained on enough, or it would not be a file."""
        return True

    @cached_property
    def id(self) -> str:
        """``set-`` and 12 hex digits over everything that decides a vector."""
        digest = hashlib.sha256(f"{FORMAT} {self.tower} {self.tokens.id}".encode())
        for name, array in sorted(self._tensors().items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return "set-" + digest.hexdigest()[:12]

    def encode(self, features: Features) -> np.ndarray:
        """See ``WeightEncoder``."""
        return self.encode_many(features.vector[None], features.mask[None], features.log_norms[None])[0]

    def encode_many(self, vectors: np.ndarray, masks: np.ndarray, log_norms: np.ndarray) -> np.ndarray:
        """(n, F) rows on :attr:`schema` → float32 (n, dim), zero where no module is known. Rows do not interact."""
        out = np.zeros((len(vectors), self.dim), np.float32)
        for row, vector, mask, norms in zip(out, vectors, masks, log_norms, strict=True):
            if mask.any():
                tokens, _ = self.tokens.tokens(Features(vector, mask, norms, self.schema.modules))
                row[:] = self.encode_groups({MODULES: (tokens[None], mask[None])})[0]
        return out

    @torch.inference_mode()
    def encode_groups(self, groups: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Groups of (n, T, width) tokens and (n, T) masks → (n, dim) unit rows."""
        given = {k: (torch.from_numpy(x), torch.from_numpy(m)) for k, (x, m) in groups.items()}
        return self.network(given).numpy()

    def query(self, vectors: np.ndarray) -> np.ndarray:
        """See ``WeightEncoder``."""
        mapped = (np.asarray(vectors, np.float64) - self.centre) @ self.text_map
        return (mapped / np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def save(self, path: str | os.PathLike, also: Mapping[str, str] | None = None) -> Path:
        """Write atomically, with ``also`` in the metadata; returns the path."""
        said = {"family": self.family, "size": asdict(self.schema.size), "modules": self.schema.modules}
        metadata = {
            "format": FORMAT, "kind": "set", "id": self.id, "tower": self.tower, "schema": json.dumps(said),
            "config": json.dumps(asdict(self.network.config)), "figures": json.dumps(self.figures),
            **(also or {}),
        }  # fmt: skip
        metadata |= {name: str(value) for name, value in self.figures.items() if name == "held_out_recall_at_1"}
        if self.trained_on is not None:
            metadata["trained_on"] = json.dumps(sorted(self.trained_on))
        return write_encoder(path, self._tensors(), metadata)

    @classmethod
    def restore(cls, path: Path, metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> SetEncoder:
        """From what ``encoder_files.load_encoder_file`` read; ``FileFormatError`` when it does not fit together."""
        return checked_encoder(path, metadata, lambda: cls._restored(metadata, tensors))

    @classmethod
    def _restored(cls, metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> SetEncoder:
        said, config = json.loads(metadata["schema"]), json.loads(metadata["config"])
        groups = {name: tuple(shape) for name, shape in config.pop("groups").items()}
        weights = {k[8:]: v.astype(np.float32) for k, v in tensors.items() if k.startswith("network.")}
        network = SetNetwork(_sizes_of(SetConfig(groups=groups, **config), weights))
        network.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
        schema = token_schema(said["family"], SketchSize(**said["size"]), tuple(said["modules"]))
        own = (tensors[f"tokens.{k}"].astype(np.float32) for k in TOKEN_ARRAYS)
        texts = tensors["centre"].astype(np.float32), tensors["text_map"].astype(np.float32)
        figures = json.loads(metadata["figures"])
        return cls(
            TokenMap(schema, *own), metadata["tower"], network.eval(), *texts, figures, stated_training(metadata)
        )

    def _tensors(self) -> dict[str, np.ndarray]:
        """float16, as the file keeps them; of an encoder that :func:`rounded` gave, saving changes nothing."""
        named = {f"network.{k}": v.detach().numpy() for k, v in self.network.state_dict().items()}
        named |= {f"tokens.{k}": getattr(self.tokens, k) for k in TOKEN_ARRAYS}
        return {k: np.ascontiguousarray(v, np.float16) for k, v in named.items()} | {
            "centre": self.centre.astype(np.float32), "text_map": self.text_map.astype(np.float16),
        }  # fmt: skip


def _sizes_of(config: SetConfig, weights: Mapping[str, np.ndarray]) -> SetConfig:
    """``config``, which a file may state at will, if it is that of the file's own weights: nothing larger is made.
    Raises ValueError or KeyError."""
    layers = {name.split(".")[1] for name in weights if name.startswith("layers.")}
    stated = {**config.groups, "layers": config.layers, "cls": (config.width,), "head": (config.dim, config.width)}
    found = {name.removeprefix("inward."): array.shape[:2] for name, array in weights.items() if "inward." in name}
    found |= {"layers": len(layers), "cls": weights["cls"].shape, "head": weights["head.weight"].shape}
    if stated != found or not 0 < config.heads <= config.width:
        raise ValueError(f"its config {stated} is not that of its weights, {found}")
    return config


def rounded(encoder: SetEncoder) -> SetEncoder:
    """The encoder in the file's precision: what is measured is what is shipped."""
    for parameter in encoder.network.parameters():
        parameter.data = parameter.data.half().float()
    own = (getattr(encoder.tokens, k).astype(np.float16).astype(np.float32) for k in TOKEN_ARRAYS)
    tokens = TokenMap(encoder.schema, *own)
    text_map = encoder.text_map.astype(np.float16).astype(np.float32)
    network = encoder.network.eval()
    return SetEncoder(tokens, encoder.tower, network, encoder.centre, text_map, encoder.figures, encoder.trained_on)


def token_schema(family: str, size: SketchSize, modules: tuple[str, ...]) -> FeatureSchema:
    """A schema that changes no number: nothing is centred, nothing scaled; :class:`.tokens.TokenMap` does both."""
    widths = np.array(size.widths, np.float32)
    scale = np.tile((len(KINDS) * widths) ** -0.5, (len(modules), 1)).astype(np.float32)
    return FeatureSchema(family, size, modules, np.zeros((len(modules), size.width), np.float32), scale)
