"""Weights read later: one quiet thread a library reads what is known by its headers alone, what is wanted first.

It works in short rounds and only while nothing else is to be done; every round is an ordinary scan, so whatever ends
it, a prompt, another process that writes, the end of the program or a power cut, the next one goes on from there.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import AutoLoRAError
from .index import Library
from .locks import writing
from .walk import Found, Scope

log = logging.getLogger(__name__)
ROUND_FILES = 256  # read between two fits of the encoders
PAUSE_SECONDS = 1.0  # between two looks at whether there is time
PATIENCE = 20  # rounds in a row that came to nothing, after which it gives up until it is started again

WORDS_KEY = "words_for"  # in the library's meta table
Work = Callable[[Library, Callable[[], bool]], bool]


def unread(library: Library) -> int:
    """How many files of a library, whatever its view, are known by their headers alone."""
    query = "SELECT count(*) FROM files WHERE missing = 0 AND hash >= '~'"
    return int(library.store.db.execute(query).fetchone()[0])


def words_wait(library: Library, tower_id: str) -> bool:
    """Whether the words of a library are still to be encoded by this text tower: until then another one is quicker."""
    return library.store.get(WORDS_KEY) not in (None, tower_id)


def note_words(library: Library, tower_id: str) -> None:
    """The words are encoded by this tower; "": they are to be encoded later."""
    with writing(library.store, library.wait, None), library.store.transaction() as db:
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (WORDS_KEY, tower_id))


class Later:
    """The reading of one library. ``busy()`` says whether to keep still; ``words(library, should_stop)`` is called
    before every round and is False while there is more to do, ``fit(library, should_stop)`` after those that read
    something."""

    def __init__(self, folder: str | os.PathLike, busy: Callable[[], bool], words: Work, fit: Work):
        self.folder, self.busy, self.words, self.fit = Path(folder), busy, words, fit
        self._scopes: dict[str, Scope] = {}
        self._wanted: dict[str, float] = {}
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, scope: Scope) -> None:
        """Read what lies in ``scope``, too; starts the thread unless it runs."""
        with self._lock:
            self._scopes[repr(scope.to_json())] = scope
            if self._thread is None or not self._thread.is_alive():
                self._over.clear()
                self._thread = threading.Thread(target=self._run, name="autolora-later", daemon=True)
                self._thread.start()

    def want(self, names: Iterable[str]) -> None:
        """Files that were picked, or nearly: they are read before all others, the ones asked for last first."""
        with self._lock:
            self._wanted |= dict.fromkeys(names, time.monotonic())

    def stop(self, wait: float = 30.0) -> None:
        """End it; what was read so far stays."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(wait)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def order(self, item: Found) -> tuple[float, int]:
        """What is wanted, then what changed last."""
        return -self._wanted.get(item.name, -1.0), -item.mtime_ns

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        idle = 0
        while idle < PATIENCE and not self._over.is_set():
            if self.busy():
                self._over.wait(PAUSE_SECONDS)
                continue
            try:
                left, read = self._round()
            except AutoLoRAError as error:  # somebody else writes, or the disk is full: later, then
                log.info("reading weights later waits: %s", error)
                left, read = 1, 0
            except Exception as error:
                log.warning("reading weights later ended: %s: %s", type(error).__name__, error, exc_info=True)
                return
            if not left:
                return
            if not read and not self._stopped():  # what is left cannot be read now: it is written, or its drive is away
                idle += 1
                self._over.wait(PAUSE_SECONDS)
            elif read:
                idle = 0

    def _round(self) -> tuple[int, int]:
        """``(whether there is more to do, files read now)``."""
        with Library.open(self.folder, wait=0.0) as library:
            worded, before = self.words(library, self._stopped), unread(library)
            for scope in list(self._scopes.values()):
                how = {"order": self.order, "limit": ROUND_FILES, "workers": 1}
                if library.scan(scope, should_stop=self._stopped, **how).stopped:
                    break
            left = unread(library)
            if before > left and not self._stopped():
                self.fit(library, self._stopped)
        return left or not worded, before - left

    def _stopped(self) -> bool:
        return self._over.is_set() or self.busy()
