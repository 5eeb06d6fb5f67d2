"""Weight encoders: a file's features in, a unit vector in the text tower's space out.

``RidgeEncoder`` is the closed-form one; a learned one can take its place behind :class:`WeightEncoder`. An encoder
file is safetensors with ``format=autolora-encoder/1``; its id is a hash of its contents.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from ..errors import FileFormatError
from ..portable import load_whole, write_bytes
from .features import Features, FeatureSchema
from .generic import GENERIC_PROMPTS
from .ridge import KernelRidge
from .sketch import SketchSize
from .towers import TextTower

FORMAT = "autolora-encoder/1"
FIX = "fetch the file again, or remove it: the library then fits its own encoder"
# Below this many captioned files the map from weights to words is noise: `RidgeEncoder.usable` says so.
MIN_TRAINING_FILES = 8
# Cosine of standardised features from which two rows count as the same file (re-saved, another dtype).
SAME_FILE_COSINE = 0.995


@runtime_checkable
class WeightEncoder(Protocol):
    """What the library and the retriever ask of an encoder. ``tower`` is the id of the text tower it maps to.

    ``trained_on``: SHA-256 of the files whose vectors repeat what it was taught of them, so that they say nothing of
    how good it is; empty when there is none, None when nobody said. ``held_out_recall_at_1``: how often, as whoever
    fitted it measured, the right file came first among files it never saw; None when nobody said. Both are metadata of
    an encoder file under these names.
    """

    id: str
    dim: int
    family: str
    tower: str
    schema: FeatureSchema
    usable: bool
    trained_on: frozenset[str] | None
    held_out_recall_at_1: float | None

    def encode(self, features: Features) -> np.ndarray:
        """``features`` (on ``schema``) → float32 (dim,), unit norm; zero when no module is known."""
        ...

    def query(self, vectors: np.ndarray) -> np.ndarray:
        """Tower vectors (n, dim) → float32 (n, dim) unit rows that may be compared with :meth:`encode`'s."""
        ...


AnEncoder = TypeVar("AnEncoder", bound=WeightEncoder)


class OnSchema:
    """What an encoder's schema and the centre of its texts already say."""

    schema: FeatureSchema
    centre: np.ndarray

    @property
    def family(self) -> str:
        """Base family whose files it reads."""
        return self.schema.family

    @property
    def dim(self) -> int:
        """Length of a vector: the tower's."""
        return len(self.centre)


@dataclass(frozen=True)
class RidgeEncoder(OnSchema):
    """Ridge regression from features to centred text embeddings.

    Text embeddings are centred on the mean of the generic prompts, so that "no idea" is the zero vector instead of the
    average caption. A file the encoder was fitted on gets its *leave-one-out* prediction: its vector says what its
    weights say, not what its caption says, and is as good as that of a file nobody captioned.
    ``texts[i]`` are the captions of training row i (kept to refit for another tower).
    """

    schema: FeatureSchema
    tower: str
    centre: np.ndarray
    ridge: KernelRidge
    texts: tuple[tuple[str, ...], ...]
    held_out_recall_at_1: float | None = None
    trained_on: ClassVar[frozenset[str]] = frozenset()  # such a file gets its leave-one-out vector

    @classmethod
    def fit(
        cls,
        schema: FeatureSchema,
        vectors: np.ndarray,
        texts: Sequence[str | Sequence[str]],
        tower: TextTower,
        weights: np.ndarray | None = None,
    ) -> RidgeEncoder:
        """Fit on ``vectors`` (n, F) of files laid out on ``schema`` and their captions (one or several a file)."""
        captions = tuple((text,) if isinstance(text, str) else tuple(text) for text in texts)
        centre = tower.encode(GENERIC_PROMPTS).mean(axis=0)
        targets = np.stack([_unit(tower.encode(list(own)).mean(axis=0) - centre) for own in captions])
        # float16 is how the file keeps X: fit on what will be read back, so that saving changes nothing.
        kept = (np.asarray(vectors, np.float32) * schema.width**0.5).astype(np.float16)
        return cls(schema, tower.id, centre, KernelRidge.fit(_restored(kept, schema.width), targets, weights), captions)

    def extended(
        self,
        vectors: np.ndarray,
        texts: Sequence[str | Sequence[str]],
        tower: TextTower,
        weights: np.ndarray | None = None,
    ) -> RidgeEncoder:
        """A new encoder fitted on this one's training files, as much as they counted, and the given ones with
        ``weights`` (default ones); also refits for another ``tower``."""
        mine = self.ridge.weights
        weights = np.concatenate([mine, np.ones(len(texts)) if weights is None else weights])
        X = np.concatenate([self.ridge.X, np.asarray(vectors, np.float32).reshape(-1, self.schema.width)])
        fitted = RidgeEncoder.fit(self.schema, X, [*self.texts, *texts], tower, weights)
        return replace(fitted, held_out_recall_at_1=self.held_out_recall_at_1)

    @property
    def usable(self) -> bool:
        """Whether enough files were seen for its vectors to mean anything."""
        return len(self.texts) >= MIN_TRAINING_FILES

    @cached_property
    def id(self) -> str:
        """``ridge-`` and 12 hex digits over everything that decides a vector."""
        digest = hashlib.sha256(f"{FORMAT} {self.tower} {self.schema.id}".encode())
        # Files without row weights are older, or of rows that count the same: the id is that of no weights.
        same = bool((self.ridge.weights == 1).all())
        for name, array in sorted(self._tensors().items()):
            if not (same and name == "weights"):
                digest.update(np.ascontiguousarray(array).tobytes())
        return "ridge-" + digest.hexdigest()[:12]

    def encode(self, features: Features) -> np.ndarray:
        """See :class:`WeightEncoder`."""
        return self.encode_many(features.vector[None])[0]

    def encode_many(self, vectors: np.ndarray) -> np.ndarray:
        """(n, F) → float32 (n, dim): unit rows, or zero for a zero vector. Rows do not depend on each other."""
        vectors = np.asarray(vectors, np.float32)
        out = np.zeros((len(vectors), self.dim), np.float32)
        lengths = np.linalg.norm(self.ridge.X, axis=1)
        for row, vector in zip(out, vectors, strict=True):
            norm = np.linalg.norm(vector)
            if norm == 0:
                continue
            same = self.ridge.X @ vector / np.maximum(lengths * norm, 1e-12)
            best = int(same.argmax())
            found = self.ridge.loo()[best] if same[best] > SAME_FILE_COSINE else self.ridge.predict(vector[None])[0]
            row[:] = _unit(found)
        return out

    def query(self, vectors: np.ndarray) -> np.ndarray:
        """See :class:`WeightEncoder`."""
        centred = np.asarray(vectors, np.float64) - self.centre
        return (centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def save(self, path: str | os.PathLike, also: Mapping[str, str] | None = None) -> Path:
        """Write atomically, with ``also`` in the metadata; returns the path."""
        schema = {
            "family": self.schema.family,
            "size": asdict(self.schema.size),
            "modules": self.schema.modules,
        }
        metadata = {
            "format": FORMAT,
            "kind": "ridge",
            "id": self.id,
            "tower": self.tower,
            "schema": json.dumps(schema),
            "texts": json.dumps(self.texts),
            **(also or {}),
        }
        if self.held_out_recall_at_1 is not None:
            metadata["held_out_recall_at_1"] = repr(self.held_out_recall_at_1)
        return write_encoder(path, self._tensors(), metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> RidgeEncoder:
        """Read an encoder file; :class:`FileFormatError` when it is not one or its contents do not match its id."""
        from safetensors import SafetensorError

        try:
            tensors, metadata = load_whole(path)
        except (OSError, SafetensorError) as error:
            raise FileFormatError(f"the encoder cannot be read: {error}", path=path) from error
        return cls.of_file(path, arrays(tensors), metadata)

    @classmethod
    def of_file(cls, path: str | os.PathLike, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> RidgeEncoder:
        """:meth:`load` of a file that has been read."""
        if metadata.get("format") != FORMAT or metadata.get("kind") != "ridge":
            raise FileFormatError(f"not a ridge encoder of format {FORMAT}", path=path, fix=FIX)
        return checked_encoder(path, metadata, lambda: cls._restore(metadata, tensors))

    @classmethod
    def _restore(cls, metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> RidgeEncoder:
        said = json.loads(metadata["schema"])
        schema = FeatureSchema(
            said["family"], SketchSize(**said["size"]), tuple(said["modules"]), tensors["mean"], tensors["scale"]
        )
        X = _restored(tensors["X"], schema.width)
        ridge = KernelRidge.from_tensors({**tensors, "X": X})
        texts = tuple(tuple(own) for own in json.loads(metadata["texts"]))
        return cls(schema, metadata["tower"], tensors["centre"], ridge, texts, stated_recall(metadata))

    def _tensors(self) -> dict[str, np.ndarray]:
        kept = (self.ridge.X * self.schema.width**0.5).astype(np.float16)
        named = {"mean": self.schema.mean, "scale": self.schema.scale, "centre": self.centre}
        return {**self.ridge.to_tensors(), "X": kept, **named}


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The same numbers as arrays; types that no encoder of ours holds, and NumPy may not know, are left out."""
    known = (torch.float16, torch.float32, torch.float64, torch.int64, torch.int32)
    return {name: value.numpy() for name, value in tensors.items() if value.dtype in known}


def write_encoder(path: str | os.PathLike, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Path:
    """Write an encoder file atomically (temporary file beside it, flushed, renamed); returns its path."""
    from safetensors.numpy import save

    write_bytes(path, save(tensors, metadata))
    return Path(path)


def checked_encoder(path: str | os.PathLike, metadata: Mapping[str, str], make: Callable[[], AnEncoder]) -> AnEncoder:
    """What ``make`` restores from a file; :class:`FileFormatError` when that fails, does not match the file's id, or
    gives no vectors."""
    try:
        encoder = make()
        if encoder.id != metadata.get("id"):
            raise FileFormatError("the encoder's contents do not match its id", path=path, fix=FIX)
        _try_out(encoder)
    except _UNFIT as error:
        raise FileFormatError(f"the encoder's contents are incomplete: {error!r:.300}", path=path, fix=FIX) from error
    return encoder


# An id says that a file is whole, not that its author meant well: its parts may fit together in no way at all.
_UNFIT = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError)


def _try_out(encoder: WeightEncoder) -> None:
    """Raises one of :data:`_UNFIT` for an encoder whose arrays hold NaN, or do not fit together."""
    modules = encoder.schema.modules
    if not all(np.isfinite(array).all() for array in encoder._tensors().values()):
        raise ValueError("it has values that are not finite")
    if not all(isinstance(text, str) for text in (encoder.family, encoder.tower, *modules)):
        raise TypeError("names that are no texts")
    ones = np.ones(encoder.schema.width, np.float32)
    vector = encoder.encode(Features(ones, np.ones(len(modules), bool), np.zeros(len(modules), np.float32), modules))
    query = encoder.query(np.ones((1, encoder.dim), np.float32))
    if vector.shape != (encoder.dim,) or query.shape != (1, encoder.dim):
        raise ValueError(f"it gives vectors of {vector.shape} and {query.shape}, not {encoder.dim} numbers")
    if not (np.isfinite(vector).all() and np.isfinite(query).all()):
        raise ValueError("it gives vectors that are not finite")


def stated_recall(metadata: Mapping[str, str]) -> float | None:
    """``held_out_recall_at_1`` of an encoder file, None when absent. Raises ValueError unless it is a share."""
    text = metadata.get("held_out_recall_at_1")
    if text is None:
        return None
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError(f"held_out_recall_at_1 must lie between 0 and 1, it is {text}")
    return share


def stated_training(metadata: Mapping[str, str]) -> frozenset[str] | None:
    """``trained_on`` of an encoder file (a JSON list of SHA-256), None when absent. Raises ValueError otherwise."""
    found = json.loads(metadata.get("trained_on", "null"))
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(digest, str) for digest in found):
        raise ValueError("trained_on must be a list of SHA-256")
    return frozenset(found)


def _restored(kept: np.ndarray, width: int) -> np.ndarray:
    """float16 rows in units of 1/√F → float32."""
    return kept.astype(np.float32) / np.float32(max(width, 1) ** 0.5)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
