"""A library: one folder that knows everything about a set of LoRA files.

    library.sqlite                     the truth (see store.py)
    encoder-<encoder id>.safetensors   the fitted encoders (see fit.py)
    vectors-<encoder id>.faiss         a cache of one encoder's vectors (see vectors.py)
    search-<encoder id>-….arrays       a cache: an approximate search of many vectors (see quick.py)
    texts.sqlite                       a cache of text vectors (see texts.py)
    answers.sqlite                     a cache of what LoRAs answer inside a base model (see answers.py)
    *.arrays                           caches of what a view of it was made ready by (see array_file.py)
    writer.lock                        one writer at a time (see locks.py)

Everything is incremental; LoRA folders are only read. :class:`Library` is a ``retrieve.view.LibraryView``.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..encode.encoder import WeightEncoder
from ..encode.factor_table import FactorTable
from ..encode.features import ModuleFeatures
from ..encode.text_cache import CachedTower
from ..encode.threads import one_thread
from ..encode.towers import TextTower
from ..errors import LibraryError, LibraryVersionError
from . import duplicates, encoders, fit, pairs
from .answer_store import AnswerStore
from .answers import CachedAnswers, StateSource, shared_memory
from .array_file import kept_path
from .content import modules_of, read_entries
from .damaged import reads
from .duplicates import Pair
from .entries import Entry, ScanReport
from .fit_report import FitReport
from .grid import Grid, held_grid
from .locks import writing
from .responses import held_responses
from .scan import Progress, Scanner
from .sketches import read_sketches
from .store import Store, sweep
from .texts import TextStore
from .unencoded import why_not_encoded
from .vectors import VectorIndex, open_vectors
from .walk import Scope

INDEX_FORMAT = "autolora-index/1"
# Entries by folder, generation and scope: nodes open a library at every run, and reading 30,000 rows takes a second.
MAX_HELD = 4
# Every root once, from one to the next by the index: SELECT DISTINCT would look at every file.
_ROOTS = """
WITH RECURSIVE found(root) AS (
    SELECT MIN(root) FROM files
    UNION ALL SELECT (SELECT MIN(root) FROM files WHERE root > found.root) FROM found WHERE found.root IS NOT NULL)
SELECT root FROM found WHERE root IS NOT NULL"""
_entries: dict[tuple[str, int, str], list[Entry]] = {}
_entries_lock = threading.Lock()


class Library:
    """An open library. Use :meth:`open`; close it, or use it in a ``with`` block.

    Readers see the last committed state and never wait; writers (:meth:`scan`, :meth:`fit`, :meth:`near_duplicates`)
    take turns across processes, waiting at most ``wait`` seconds.
    """

    def __init__(self, store: Store, scope: Scope | None = None, wait: float = 30.0):
        self.store, self.scope, self.wait = store, scope, wait
        self._texts: TextStore | None = None
        self._answers: AnswerStore | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike, *, wait: float = 30.0) -> Library:
        """The library in ``folder``, created when absent. Raises :class:`LibraryError` and LibraryVersionError."""
        return cls(Store(folder), None, wait)

    @classmethod
    def from_handle(cls, handle: Mapping) -> Library:
        """The library, and the part of it, that an index handle names (see :meth:`handle`). Never creates one."""
        if not isinstance(handle, Mapping) or handle.get("format") != INDEX_FORMAT:
            found = handle.get("format") if isinstance(handle, Mapping) else type(handle).__name__
            if str(found).startswith(INDEX_FORMAT.partition("/")[0] + "/"):
                raise LibraryVersionError(f"the index has the newer format {found}", fix="update ComfyUI-AutoLoRA")
            fix = "connect the index output of Encode LoRA Library"
            raise LibraryError(f"this is not a LoRA index ({found!s:.80})", key="index", fix=fix)
        folder = Path(str(handle.get("folder", "")))
        if not os.path.isfile(folder / "library.sqlite"):  # False for a NUL in its name, and for one too long
            raise LibraryError("the library is not there any more", path=folder, fix="run Encode LoRA Library again")
        return cls(Store(folder), _scope_of(handle))

    @property
    def folder(self) -> Path:
        return self.store.folder

    @property
    @reads
    def generation(self) -> int:
        """Grows with every change."""
        return self.store.generation

    @property
    @reads
    def handle(self) -> dict:
        """The JSON that travels between nodes: folder, generation, and which part of the library is shown."""
        shown = self._shown().to_json()
        return {"format": INDEX_FORMAT, "folder": str(self.folder), "generation": self.generation, **shown}

    @reads
    def kept(self, name: str) -> Path:
        """Where this view keeps ``name``, a cache (see :mod:`.array_file`)."""
        return kept_path(self.folder, name, json.dumps(self._shown().to_json(), sort_keys=True))

    def _shown(self) -> Scope:
        return self.scope or Scope.of(self._roots())

    def _roots(self) -> list[str]:
        return sorted(os.fsdecode(row[0]) for row in self.store.db.execute(_ROOTS))

    def view(self, scope: Scope) -> Library:
        """The same library, showing only the entries inside ``scope``."""
        return Library(self.store, scope, self.wait)

    def text_tower(self, tower: TextTower) -> CachedTower:
        """``tower`` with this library's own store of text vectors behind it."""
        if isinstance(tower, CachedTower) and isinstance(tower.store, TextStore):
            return tower
        if self._texts is None:
            self._texts = TextStore(self.folder)
        return CachedTower(tower.tower if isinstance(tower, CachedTower) else tower, self._texts)

    def asking(self, base: StateSource) -> CachedAnswers:
        """``base`` with this library's own store of answers behind it."""
        if self._answers is None:
            self._answers = AnswerStore(self.folder)
        return CachedAnswers(base, self._answers, shared_memory(base.id))

    def close(self) -> None:
        self.store.close()
        for cache in (self._texts, self._answers):
            if cache is not None:
                cache.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    @one_thread()
    @reads
    def scan(
        self,
        roots: Mapping[str, str | os.PathLike] | Sequence[str | os.PathLike] | Scope,
        *,
        should_stop: Callable[[], bool] | None = None,
        kind: Callable[..., Scanner] = Scanner,
        **how: Any,
    ) -> ScanReport:
        """Bring the library in line with the LoRA folders, and encode every content that is not encoded yet.

        ``roots`` maps labels to folders (or is a list, or a :class:`Scope`). ``should_stop()`` ends the scan early,
        ``progress(done, total, name)`` may raise to interrupt: what was done is kept, the next scan goes on from it.
        ``force`` reads every file again; ``headers_only`` reads what is new by its header alone: found by its words at
        once, by its weights after a scan that reads it. More in :class:`.scan.Scanner`; ``kind`` makes one.
        """
        scope = roots if isinstance(roots, Scope) else Scope.of(roots)
        with writing(self.store, self.wait, should_stop):
            sweep(self.folder)
            return kind(self.store, scope, should_stop=should_stop, **how).run()

    @one_thread()
    @reads
    def fit(
        self,
        tower: TextTower,
        *,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
        shipped: Mapping[str, WeightEncoder] | None = None,
    ) -> FitReport:
        """Fit (or keep) one weight encoder per family against ``tower`` and bring all vectors up to date.

        ``shipped`` encoders (family → encoder, see :func:`.encoders.find_encoders`) are extended with its own files.
        """
        with writing(self.store, self.wait, should_stop):
            return fit.fit_library(self.store, self.text_tower(tower), progress, should_stop, shipped)

    # -- reading ---------------------------------------------------------------------------------------------------

    @reads
    def entries(
        self, family: str | None = None, include_missing: bool = False, include_shadowed: bool = False
    ) -> list[Entry]:
        """Files of this view, sorted by name; of one ``family`` when given.

        Left out unless asked for: files not there now, and files hidden by one of the same name in an earlier root.
        """
        key = (str(self.folder), self.generation, json.dumps(self.scope.to_json()) if self.scope else "")
        found = _entries.get(key)
        if found is None:
            found = self._read_entries()
            with _entries_lock:  # the panel's threads ask beside the nodes
                while len(_entries) >= MAX_HELD:
                    del _entries[next(iter(_entries))]
                _entries[key] = found
        return [
            entry
            for entry in found
            if (family is None or entry.family == family)
            and (include_missing or not entry.missing)
            and (include_shadowed or not entry.shadowed)
        ]

    def _read_entries(self) -> list[Entry]:
        inside = self.scope.predicate() if self.scope else lambda name: True
        roots = set(self.scope.roots.values()) if self.scope else None
        entries = read_entries(self.store.db)
        return [entry for entry in entries if (roots is None or entry.root in roots) and inside(entry.name)]

    @reads
    def modules(self, digest: str) -> tuple[tuple[str, str, int | None], ...]:
        """``(base module, adapter kind, rank)`` of every module of a content."""
        return modules_of(self.store.db, digest)

    @reads
    def module_features(self, family: str) -> dict[str, ModuleFeatures]:
        """Content hash → module features of the encodable, present files of one family, by hash."""
        hashes = sorted({entry.hash for entry in self.entries(family) if entry.hash})
        return read_sketches(self.store.db, hashes, family)

    @reads
    def responses(self, family: str) -> FactorTable:
        """What the present files of one family do to prompts, by hash."""
        hashes = tuple(sorted({entry.hash for entry in self.entries(family) if entry.hash}))
        return held_responses(self.store.db, (str(self.folder), self.generation), hashes, family)

    @reads
    def encoder(self, family: str, tower_id: str | None = None) -> WeightEncoder | None:
        """The encoder fitted for a family and text tower (any tower when None), or None."""
        return encoders.current_encoder(self.store, family, tower_id)

    @reads
    def features(self, family: str) -> tuple[list[Entry], np.ndarray]:
        """``(entries, matrix (n, F) float32)`` on the family's current schema; entries without features left out."""
        fitted = encoders.current_encoder(self.store, family)
        schema = fitted.schema if fitted else None
        return fit.feature_matrix(self.entries(family), self.module_features(family), family, schema)

    @reads
    def vectors(self, family: str, encoder_id: str) -> VectorIndex:
        """The vectors of one encoder. Raises EncoderMismatchError when it is not an encoder of ``family``."""
        encoders.check_encoder(self.store, family, encoder_id)
        return open_vectors(self.store, encoder_id)

    @reads
    def grid(self, family: str, tick: Callable[[int, int], None] = lambda done, total: None) -> Grid:
        """One short row of weights a file, to compare files with each other; ``tick(done, total)`` may raise."""
        return held_grid(self, family, tick)

    @reads
    def unencoded(self, family: str | None = None) -> list[tuple[Entry, str]]:
        """Present files without a vector of their weights, and why; of one ``family`` when given."""
        return why_not_encoded(self.store.db, self.entries(family))

    # -- duplicates ------------------------------------------------------------------------------------------------

    def exact_copies(self) -> list[list[Entry]]:
        """Groups of present entries with the same content."""
        return duplicates.exact_copies(self.entries(include_shadowed=True))

    @reads
    def near_duplicates(self, family: str) -> list[tuple[str, str]]:
        """Pairs of hashes that :meth:`compare_duplicates` found to be one LoRA; reads only what is stored."""
        return pairs.near_hashes(self.store, {entry.hash for entry in self.entries(family)})

    @one_thread()
    @reads
    def compare_duplicates(
        self, family: str, tick: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Pair]:
        """Pairs of different contents of one family that are one LoRA by their weights; compared once, then stored.

        ``tick(done, total)`` is called before each comparison and may raise to interrupt.
        """
        paths = {entry.hash: entry.path for entry in self.entries(family) if entry.hash}
        return pairs.compare_family(self.store, family, paths, lambda: self.module_features(family), self.wait, tick)


def _scope_of(handle: Mapping) -> Scope:
    """The part that a handle names. LibraryError for one that nobody made here: handles come from anywhere."""
    roots, under, names = handle.get("roots"), handle.get("under", ""), handle.get("names", "")
    texts = [under, names, *roots.keys(), *roots.values()] if isinstance(roots, Mapping) else [None]
    if not all(isinstance(text, str) for text in texts):
        fix = "connect the index output of Encode LoRA Library"
        raise LibraryError("the index does not say which folders it is of", key="roots", fix=fix)
    return Scope(dict(roots), under, names)
