"""Reading files ahead of the one thread that writes: a few threads read, results come in the order of the files.

Hashing, reading and PyTorch's products run outside Python's lock, so a few threads are enough for a few processors; in
a large scan on a larger machine each thread waits for a process of its own (:mod:`.readers`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

from ..encode.threads import only_one
from .readers import Readers, processors

MOST_WORKERS = 4
Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """Raised in a reading thread when the scan has ended."""


class ReadAhead:
    """A pool of ``workers`` threads (None: one a processor, at most :data:`MOST_WORKERS`), or where that is more of one
    for each of ``processes``. Use it in a ``with`` block: at its end what is still being read is told to stop, and
    waited for. ``readers``: the processes, None without."""

    def __init__(self, workers: int | None = None, processes: int = 0):
        self.workers = max(processes, workers or min(MOST_WORKERS, processors()))
        self.readers = Readers(processes) if processes else None
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(self.workers, "autolora-read", initializer=_prepare)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self.readers or nullcontext():
            if self.readers is not None:
                self.readers.stop()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def tick(self, size: int) -> None:
        """What reading threads call with the bytes they read; raises :class:`Stopped` when it is over."""
        if self._over.is_set():
            raise Stopped

    def results(
        self, items: Iterable[Item], work: Callable[[Item], Callable[[], Result] | None]
    ) -> Iterator[tuple[Item, Future[Result] | None]]:
        """Every item in order, with the future of what ``work(item)`` gave, None where nothing is to be done.

        At most ``2 · workers`` results are being made or wait to be taken.
        """
        waiting: deque[tuple[Item, Future[Result] | None]] = deque()
        flying = 0
        for item in items:
            job = work(item)
            waiting.append((item, self._pool.submit(job) if job else None))
            flying += job is not None
            while waiting and (waiting[0][1] is None or flying > 2 * self.workers):
                flying -= waiting[0][1] is not None
                yield waiting.popleft()
        yield from waiting


def _prepare() -> None:
    # A file's many small products are done one after the other: the threads here are the parallelism.
    only_one()
