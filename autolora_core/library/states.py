"""Text states of base models kept on disk, so that a base answers a library's own texts once.

A file of its own beside the library (``states.sqlite``), float16, keyed by who made the states (base model, text
encoder and how they were run), the space and the text. It is a cache: whatever is wrong with it, the model is asked
again. Prompts are remembered in memory only; what is kept on disk grows with the library, not with its use.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..encode.response import TextStates
from .cache_file import CacheFile, storable

log = logging.getLogger(__name__)
FILE_NAME = "states.sqlite"
# Bases whose states are kept; of FLUX the generic prompts take about 30 MB.
MAX_SOURCES = 4
MAX_REMEMBERED, MAX_MEMORIES = 2048, 2
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS sources (id TEXT PRIMARY KEY, used REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS states (source TEXT NOT NULL, space TEXT NOT NULL, text TEXT NOT NULL,"
    " width INTEGER NOT NULL, tokens BLOB NOT NULL, PRIMARY KEY (source, space, text))",
)
Progress = Callable[[int, int, str], None]
Memory = dict[tuple[str, str], np.ndarray]
_memories: OrderedDict[str, Memory] = OrderedDict()
_memory_lock = threading.Lock()


class StateSource(Protocol):
    """A base model with its text encoder. ``id`` says which; ``lasting`` whether it means the same tomorrow."""

    id: str
    lasting: bool

    def record(self, texts: Sequence[str], spaces: Sequence[str], progress: Progress | None = None) -> TextStates:
        """The inputs of ``spaces`` for every text; spaces that the model does not have are left out."""
        ...


def shared_memory(source: str) -> Memory:
    """What this process remembers of a source's prompts; of the two sources used last."""
    with _memory_lock:
        memory = _memories.setdefault(source, {})
        _memories.move_to_end(source)
        while len(_memories) > MAX_MEMORIES:
            _memories.popitem(last=False)
        return memory


class StateStore:
    """``(source, space, text)`` → (tokens, width) float16. Falls back to remembering nothing when it cannot write."""

    def __init__(self, folder: Path):
        self.path = folder / FILE_NAME
        self._file = CacheFile(self.path, _SCHEMA, "text states are not kept")

    def read(self, source: str, space: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """Text → (tokens, width) float16, of those that are there."""
        if self._file.db is None:
            return {}
        query = "SELECT width, tokens FROM states WHERE source = ? AND space = ? AND text = ?"
        found = {}
        try:
            for text in texts:
                row = self._file.db.execute(query, (source, space, storable(text))).fetchone()
                if row is not None:
                    found[text] = np.frombuffer(row[1], "<f2").reshape(-1, row[0])
        except (sqlite3.Error, ValueError) as error:
            log.warning("%s: %s; the states are recorded again", self.path, error)
        return found

    def write(self, source: str, states: dict[str, dict[str, np.ndarray]]) -> None:
        """``space → text → (tokens, width)``; the sources used longest ago make room."""
        if self._file.db is None:
            return
        rows = [
            (source, space, storable(text), tokens.shape[1], tokens.astype("<f2").tobytes())
            for space, texts in states.items()
            for text, tokens in texts.items()
        ]
        try:
            self._file.db.execute("BEGIN IMMEDIATE")
            self._file.db.executemany("INSERT OR REPLACE INTO states VALUES (?,?,?,?,?)", rows)
            self._file.db.execute("INSERT OR REPLACE INTO sources VALUES (?,?)", (source, time.time()))
            old = "SELECT id FROM sources ORDER BY used DESC LIMIT -1 OFFSET ?"
            for table, column in (("states", "source"), ("sources", "id")):
                self._file.db.execute(f"DELETE FROM {table} WHERE {column} IN ({old})", (MAX_SOURCES,))
            self._file.db.execute("COMMIT")
        except sqlite3.Error as error:
            log.warning("%s: %s; these text states are not kept", self.path, error)
            if self._file.db.in_transaction:
                self._file.db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file; nothing is read or kept any more."""
        self._file.close()


class CachedStates:
    """A :class:`StateSource` that remembers: in ``memory``, and on disk (``store``) what is asked with ``keep``."""

    def __init__(self, source: StateSource, store: StateStore | None = None, memory: Memory | None = None):
        self.source, self.store = source, store if source.lasting else None
        self._memory: Memory = {} if memory is None else memory
        self._lacking: set[str] = set()  # spaces the model turned out not to have

    @property
    def id(self) -> str:
        """The source's."""
        return self.source.id

    def states(
        self, texts: Sequence[str], spaces: Sequence[str], keep: bool = False, progress: Progress | None = None
    ) -> TextStates:
        """States of ``texts`` in order; every text is asked of the model once. Spaces it lacks are left out."""
        spaces = [space for space in spaces if space not in self._lacking]
        known: dict[str, dict[str, np.ndarray]] = {space: self._known(space, texts, keep) for space in spaces}
        missing = [text for text in dict.fromkeys(texts) if any(text not in own for own in known.values())]
        if missing:
            fresh = _apart(self.source.record(missing, spaces, progress), missing)
            self._lacking |= set(spaces) - fresh.keys()
            self._keep(fresh, keep)
            known = {space: {**known[space], **own} for space, own in fresh.items()}
        return _joined(known, texts)

    def _known(self, space: str, texts: Sequence[str], keep: bool) -> dict[str, np.ndarray]:
        found = {text: self._memory[space, text] for text in texts if (space, text) in self._memory}
        if keep and self.store is not None:
            found |= self.store.read(self.id, space, [text for text in dict.fromkeys(texts) if text not in found])
        return found

    def _keep(self, fresh: dict[str, dict[str, np.ndarray]], keep: bool) -> None:
        if keep:
            if self.store is not None:
                self.store.write(self.id, fresh)
            return
        if len(self._memory) > MAX_REMEMBERED:
            self._memory.clear()
        self._memory |= {(space, text): own for space, texts in fresh.items() for text, own in texts.items()}


def _apart(states: TextStates, texts: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """``space → text → (tokens, width)`` float16."""
    ends = np.cumsum(states.counts)[:-1]
    return {
        space: dict(zip(texts, np.split(tokens.astype(np.float16), ends), strict=True))
        for space, tokens in states.tokens.items()
    }


def _joined(known: dict[str, dict[str, np.ndarray]], texts: Sequence[str]) -> TextStates:
    first = next(iter(known.values()), {})
    counts = np.array([len(first[text]) for text in texts] if first else [0] * len(texts), int)
    tokens = {space: np.concatenate([own[text] for text in texts]) for space, own in known.items() if own}
    return TextStates(counts, tokens)
