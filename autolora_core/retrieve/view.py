"""What the retriever asks of a library: small enough to be made by hand in a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ..encode.encoder import WeightEncoder
from ..encode.factor_table import FactorTable
from ..encode.text_cache import CachedTower, cached
from ..encode.towers import TextTower
from ..library.answers import CachedAnswers, StateSource
from ..library.array_file import kept_path
from ..library.grid import WIDTH, Grid


class TextLike(Protocol):
    """Words about a LoRA; any of them may be empty."""

    title: str
    tags: tuple[str, ...]
    triggers: tuple[str, ...]
    description: str


class EntryLike(Protocol):
    """One LoRA file of the library. ``halves``: what it changes, ``model`` and text encoders by name; ``base_model``:
    what its header and sidecars call its base."""

    name: str
    path: str
    hash: str
    family: str
    kind: str
    text: TextLike
    halves: tuple[str, ...]
    variant: str
    base_model: str


class VectorsLike(Protocol):
    """``matrix`` (n, d) float32, unit rows; row i belongs to the content ``hashes[i]``. ``folder``: where an
    approximate search of them may be kept, or None."""

    hashes: Sequence[str]
    matrix: np.ndarray
    folder: Path | None


class LibraryView(Protocol):
    """The library as the retriever sees it. ``handle`` goes into the selection (JSON); it names folder and state.

    Nothing here may change between two calls as long as ``handle`` does not.
    """

    handle: dict

    def entries(self, family: str | None = None, include_missing: bool = False) -> Sequence[EntryLike]:
        """Files present now, of one family or of all."""
        ...

    def encoder(self, family: str, tower_id: str) -> WeightEncoder | None:
        """The encoder whose vectors the library holds for this family and text tower, or None."""
        ...

    def vectors(self, family: str, encoder_id: str) -> VectorsLike:
        """What weights say, in the tower's space (compare with ``encoder.query(...)``)."""
        ...

    def near_duplicates(self, family: str) -> Iterable[tuple[str, str]]:
        """Pairs of contents (hashes) that are nearly the same LoRA."""
        ...

    def unencoded(self, family: str | None = None) -> Sequence[tuple[EntryLike, str]]:
        """Files without a vector of their weights, and why."""
        ...

    def grid(self, family: str, tick: Callable[[int, int], None] = lambda done, total: None) -> Grid:
        """A row of weights a content, to compare LoRAs with each other; ``tick(done, total)`` may raise."""
        ...

    def kept(self, name: str) -> Path | None:
        """A file to keep ``name`` in that saves work, a cache; None where nothing may be kept."""
        ...

    def text_tower(self, tower: TextTower) -> CachedTower:
        """``tower`` with this library's own store of text vectors behind it."""
        ...

    def responses(self, family: str) -> FactorTable:
        """What the files of a family do to prompts."""
        ...

    def asking(self, base: StateSource) -> CachedAnswers:
        """``base`` with this library's own store of answers behind it."""
        ...


@dataclass(frozen=True)
class ViewText:
    """Plain :class:`TextLike`."""

    title: str = ""
    tags: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class ViewEntry:
    """Plain :class:`EntryLike`."""

    name: str
    hash: str
    family: str = "emoji"
    kind: str = "lora"
    path: str = ""
    text: ViewText = ViewText()
    halves: tuple[str, ...] = ()
    variant: str = ""
    base_model: str = ""


@dataclass(frozen=True)
class ViewVectors:
    """Plain :class:`VectorsLike`."""

    hashes: tuple[str, ...]
    matrix: np.ndarray
    folder: Path | None = None


@dataclass
class MemoryView:
    """A :class:`LibraryView` held in memory, for tests, benchmarks and one-off searches."""

    held: Sequence[EntryLike]
    encoders: dict[str, WeightEncoder] = field(default_factory=dict)
    encoded: dict[str, VectorsLike] = field(default_factory=dict)
    duplicates: Sequence[tuple[str, str]] = ()
    handle: dict = field(default_factory=dict)
    factors: FactorTable = field(default_factory=lambda: FactorTable.packed({}))
    grids: dict[str, Grid] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # hash → why its weights are not encoded
    remembered: dict[str, dict] = field(default_factory=dict)  # base → what it answered
    folder: Path | None = None  # for what is kept

    def entries(self, family: str | None = None, include_missing: bool = False) -> Sequence[EntryLike]:
        """See :class:`LibraryView`."""
        return [entry for entry in self.held if family in (None, entry.family)]

    def encoder(self, family: str, tower_id: str) -> WeightEncoder | None:
        """See :class:`LibraryView`."""
        found = self.encoders.get(family)
        return found if found is not None and found.tower == tower_id else None

    def vectors(self, family: str, encoder_id: str) -> VectorsLike:
        """See :class:`LibraryView`."""
        return self.encoded[encoder_id]

    def near_duplicates(self, family: str) -> Iterable[tuple[str, str]]:
        """See :class:`LibraryView`."""
        return self.duplicates

    def unencoded(self, family: str | None = None) -> Sequence[tuple[EntryLike, str]]:
        """See :class:`LibraryView`."""
        return [(entry, self.reasons[entry.hash]) for entry in self.entries(family) if entry.hash in self.reasons]

    def grid(self, family: str, tick: Callable[[int, int], None] = lambda done, total: None) -> Grid:
        """See :class:`LibraryView`."""
        return self.grids.get(family) or Grid(family, (), np.zeros((0, WIDTH), np.float32))

    def kept(self, name: str) -> Path | None:
        """See :class:`LibraryView`."""
        return None if self.folder is None else kept_path(self.folder, name, "")

    def text_tower(self, tower: TextTower) -> CachedTower:
        """See :class:`LibraryView`."""
        return cached(tower)

    def responses(self, family: str) -> FactorTable:
        """See :class:`LibraryView`."""
        return self.factors

    def asking(self, base: StateSource) -> CachedAnswers:
        """See :class:`LibraryView`."""
        return CachedAnswers(base, memory=self.remembered.setdefault(base.id, {}))
