"""When a search is approximate: switched in by itself where a table is large and FAISS is there, kept on disk.

What :mod:`.approximate` learns is made by Encode, or by a thread of its own once somebody asks: until it is there,
exact search answers. It is used only if it finds what exact search finds (``approximate.WANTED``). The file holds plain
arrays with checksums, and the key of every row: rows that went are left out when it is opened, new ones are coded as
the others were, and beyond a tenth of them it is made anew. Making it takes some ten seconds of a processor a million
rows, so what is interrupted is begun again.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..encode.threads import one_thread
from . import approximate
from .approximate import WANTED, Approximate, Coded, Measured, Tick, faiss_or_none
from .array_file import kept_path, open_arrays, save_arrays
from .table import Table

log = logging.getLogger(__name__)
# Where exact search of one text passes ten milliseconds of a processor (docs/scale.md).
FROM = 250_000
# Set to 1: search exactly, whatever the size.
EXACT = "AUTOLORA_EXACT_SEARCH"
# A larger share of new rows is not coded by values that were learnt without them.
GROWN = 0.1
VERSION, FILES_ASKED = 1, 50
_one_at_a_time, _over = threading.Lock(), threading.Event()


class _Ended(Exception):
    """The program ends; never leaves this module."""


@atexit.register
def _end() -> None:
    _over.set()


def forced() -> bool:
    """Whether searches are to be exact."""
    return os.environ.get(EXACT, "") not in ("", "0")


def quick_path(folder: Path | None, encoder_id: str, generic: np.ndarray) -> Path | None:
    """Where what is learnt of an encoder's vectors, read beside these generic prompts' (g, d), is kept."""
    if folder is None:
        return None
    return kept_path(folder, f"search-{encoder_id}", hashlib.sha256(generic.tobytes()).hexdigest())


@dataclass
class Quick:
    """Approximate search of ``table`` where there is any; ``keys`` name its rows for ever, ``texts()`` (q, d) are
    questions to try it with, ``path`` keeps it (None: in memory only)."""

    table: Table
    keys: Sequence[str]
    texts: Callable[[], np.ndarray]
    path: Path | None = None

    def __post_init__(self) -> None:
        self.found: Approximate | None = None
        self.measured: Measured | None = None  # also where it was not good enough
        self._fault = ""
        self._tried, self._lock, self._thread = False, threading.Lock(), None

    @property
    def large(self) -> bool:
        """Whether there is any question of it."""
        return len(self.table) >= FROM

    def ready(self) -> Approximate | None:
        """What to search by instead of the table; None: by the table. Waits for nothing but a file to be read: where
        there is none, it is made in the background, for later questions."""
        if not self.large or forced() or faiss_or_none() is None:
            return None
        with self._lock:
            if not self._tried:
                self._tried = True
                if not self._opened():
                    self._thread = threading.Thread(target=self._in_background, name="autolora-learn", daemon=True)
                    self._thread.start()
            return self.found

    def make(self, tick: Tick = lambda done, total: None) -> None:
        """Learn what is not kept of this very table; ``tick(done, total)`` may raise to interrupt."""
        if not self.large or forced() or faiss_or_none() is None:
            return
        with self._lock:
            self._tried = True
            if self._opened(whole=True):
                return
        self._learn(tick)

    def wait(self, seconds: float | None = None) -> None:
        """For what is being made in the background."""
        if self._thread is not None:
            self._thread.join(seconds)

    # -- making and keeping ----------------------------------------------------------------------------------------

    def _in_background(self) -> None:
        def tick(*_: int) -> None:
            if _over.is_set():
                raise _Ended

        try:
            with _one_at_a_time, one_thread(share=False):
                if not self._opened():  # somebody else may have made it meanwhile
                    self._learn(tick)
        except _Ended:
            pass
        except Exception as error:  # a full memory, a FAISS of another make: exact search goes on
            self._fault = f"{type(error).__name__}: {error}"
            log.warning("searching exactly: %s", self._fault, exc_info=True)

    @one_thread()
    def _learn(self, tick: Tick) -> None:
        faiss, texts = faiss_or_none(), self.texts()
        files = approximate.held_out(len(self.table), FILES_ASKED)
        coded = approximate.learnt(faiss, self.table, lambda done, total: tick(done, 2 * total))
        found = Approximate(faiss, self.table, coded, Measured(0, 0.0, 0.0, {}))
        told = approximate.measured(found, texts, files, lambda done, total: tick(total + done, 2 * total))
        self._take(found, told)
        if self.path is not None:
            said = {"version": VERSION, "order": _order(self.keys), "stretch": coded.stretch, "measured": asdict(told)}
            said |= {"index": f"PQ{len(coded.centroids)}x{approximate.BITS}fs", "bytes_a_vector": coded.codes.shape[1]}
            arrays = {"turn": coded.turn, "centroids": coded.centroids, "codes": coded.codes}
            save_arrays(self.path, said, {**arrays, "keys": _numbers(self.keys)})

    def _take(self, found: Approximate, told: Measured) -> None:
        self.measured = told
        self.found = found if told.good else None

    def _opened(self, whole: bool = False) -> bool:
        """Whether what was kept can be used as it is; ``whole``: only when it is of these very rows."""
        kept = open_arrays(self.path) if self.path is not None else None
        try:
            found = None if kept is None else self._coded(faiss_or_none(), *kept, whole)
            if found is not None:
                self._take(Approximate(faiss_or_none(), self.table, *found), found[1])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            # Sound, but written by somebody else.
            log.warning("%s cannot be used (%s: %s); making it again", self.path, type(error).__name__, error)
            return False
        return found is not None

    def _coded(self, faiss: ModuleType, said: Any, arrays: Any, whole: bool) -> tuple[Coded, Measured] | None:
        told = Measured.of_json(said["measured"])
        coded = Coded(arrays["turn"], float(said["stretch"]), arrays["centroids"], arrays["codes"])
        if said["version"] != VERSION or not coded.fits(self.table.rows.shape[1]):
            return None
        if said["order"] == _order(self.keys) and len(coded.codes) == len(self.table):
            return coded, told
        carried = None if whole else self._carried_over(faiss, coded, arrays["keys"])
        return None if carried is None else (carried, told)

    def _carried_over(self, faiss: ModuleType, coded: Coded, keys: np.ndarray) -> Coded | None:
        """Codes of the table's rows from those of earlier ones; None where too many are new."""
        own, order = _numbers(self.keys), np.argsort(keys, kind="stable")
        at = order[np.minimum(np.searchsorted(keys[order], own), len(keys) - 1)]
        new = np.flatnonzero(keys[at] != own)
        if len(new) > GROWN * len(own) or len(keys) != len(coded.codes):
            return None
        codes = coded.codes[at]
        if len(new):
            codes[new] = coded.encoded(faiss, self.table, new)
        return Coded(coded.turn, coded.stretch, coded.centroids, codes)

    # -- words -----------------------------------------------------------------------------------------------------

    def line(self) -> str | None:
        """What is used, for Encode's report; None for a table that is searched exactly because it is small."""
        if not self.large:
            return None
        head, told = f"of {len(self.table):,} vectors", self.measured
        if self.found is None or forced():
            return f"exact, {head}: {self._why_exact()}."
        asked = " and ".join(f"{count} {kind}" for kind, count in told.kinds.items() if count)
        size, each = self.found.nbytes / 1e6, self.found.nbytes / len(self.table)
        return (
            f"approximate, {head} (FAISS PQ, {each:.0f} bytes a vector, {size:.1f} MB); it finds {told.recall:.1%} of"
            f" the best ten and {told.deep:.1%} of the best fifty that exact search finds (asked: {asked}),"
            f" scoring {told.candidates} again. {EXACT}=1 makes it exact."
        )

    def _why_exact(self) -> str:
        if forced():
            return f"{EXACT} is set"
        if faiss_or_none() is None:
            return "FAISS is not installed, or too old (python -m pip install -U faiss-cpu makes it quicker)"
        if self.measured is None:
            return self._fault or "approximate search is being made ready in the background"
        low = min(self.measured.recall, self.measured.deep)
        return f"approximate search found {low:.1%} of what exact search finds, {WANTED:.1%} are wanted"

    def note(self, used: Approximate | None) -> str | None:
        """What an answer says of how weights were searched; None for a small table."""
        if not self.large:
            return None
        if used is None:
            return f"Weights were searched exactly, which takes longer in so large a library: {self._why_exact()}."
        return (
            "Weights were searched approximately, as the library is so large"
            f" ({used.measured.recall:.1%} of the best ten were found when it was tried)."
            f" {EXACT}=1 in ComfyUI's environment makes it exact."
        )


def _order(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def _numbers(keys: Sequence[str]) -> np.ndarray:
    """(n,) uint64: two of a million are alike once in forty million libraries, and then cost a candidate."""
    digest = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digest, "<u8").copy()
