"""Reading files ahead of the one thread that writes: a few threads a drive, results in the order of its files.

Hashing, reading and PyTorch's products run outside Python's lock, so a few threads are enough for a few processors; in
a large scan on a larger machine each thread waits for a process of its own (:mod:`.readers`). Drives do not wait for
one another: what they bring adds up, and one that is slow or hangs holds up its own files alone.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

from ..encode.threads import only_one
from .readers import Readers, processors
from .streams import Streams

log = logging.getLogger(__name__)
MOST_WORKERS = 4
MOST_READING = 16  # threads of all drives together that read in this process
POLL_SECONDS = 0.05  # between two looks at whether the scan is to stop
END_SECONDS = 10.0  # how long a drive is waited for when it is over
Item = TypeVar("Item")
Result = TypeVar("Result")
Cost = Callable[[Any], tuple[int, float]]


class Stopped(Exception):
    """Raised in a reading thread when the scan has ended."""


class ReadAhead:
    """``workers`` threads a drive (None: one a processor, at most :data:`MOST_WORKERS`); or, where that is more, as
    many as there are ``processes``, in equal parts for the drives that have files left. Use it in a ``with`` block: at
    its end what is still being read is told to stop, and waited for, but not for ever. ``readers``: the processes, None
    without."""

    def __init__(self, workers: int | None = None, processes: int = 0):
        self.workers = max(processes, workers or min(MOST_WORKERS, processors()))
        self.readers = Readers(processes) if processes else None
        self._over = threading.Event()
        self._drives: list[_Drive] = []

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self.readers or nullcontext():
            if self.readers is not None:
                self.readers.stop()
            flying = [future for drive in self._drives for future in drive.end()]
            if wait(flying, END_SECONDS).not_done:
                log.warning("a drive does not answer: what was being read there is given up")

    def tick(self, size: int) -> None:
        """What reading threads call with the bytes they read; raises :class:`Stopped` when it is over."""
        if self._over.is_set():
            raise Stopped

    def results(
        self,
        items: Iterable[Item],
        work: Callable[[Item], Callable[[], Result] | None],
        drive: Callable[[Item], Hashable] = lambda item: None,
        cost: Cost = lambda result: (0, 0.0),
        tick: Callable[[list[Item]], None] = lambda items: None,
    ) -> Iterator[tuple[Item, Future[Result] | None]]:
        """Every item with the finished future of what ``work(item)`` gave, None where nothing is to be done; those of
        one ``drive`` in order. ``tick`` is called while it waits, with the items that are awaited, and with none before
        every item; it may raise. ``cost``: the bytes that a result cost the drive, and the seconds that were waited for
        them, by which it is told how many files are read there at a time (:mod:`.streams`).

        Of a drive at most twice as many results are being made or wait to be taken as threads may read there.
        """
        sorted_out: dict[Hashable, list[Item]] = {}
        for item in items:
            sorted_out.setdefault(drive(item), []).append(item)
        drives = [_Drive(some, self.workers, self._over.is_set, cost) for some in sorted_out.values()]
        self._drives += drives
        while drives:
            for one in drives:
                one.allow(self._share(len(drives)))
                one.hand_out(work)
            ready = [one for one in drives if one.ready]
            if not ready:
                tick([one.waiting[0][0] for one in drives])
                wait([one.waiting[0][1] for one in drives], POLL_SECONDS, FIRST_COMPLETED)
            for one in ready:
                tick([])
                yield one.take()
            drives = [one for one in drives if one.left or one.waiting]

    def _share(self, drives: int) -> int:
        """How many threads may read one of so many drives at a time."""
        if self.readers is not None:
            return -(-self.workers // drives)
        return max(1, min(self.workers, MOST_READING // drives))


class _Drive(Generic[Item, Result]):
    """The files of one drive: ``left`` to be handed out, ``waiting`` to be taken, both in order. ``over`` says whether
    whoever waits for a turn need not wait, ``cost`` is that of :meth:`ReadAhead.results`."""

    def __init__(self, items: Iterable[Item], threads: int, over: Callable[[], bool], cost: Cost):
        self.left, self.waiting = deque(items), deque[tuple[Item, Future[Result] | None]]()
        self._over, self._cost, self._streams = over, cost, Streams()
        self._flying, self._allowed, self._running, self._turn = 0, 0, 0, threading.Condition()
        self._pool = ThreadPoolExecutor(threads, "autolora-read", initializer=_prepare)

    @property
    def ready(self) -> bool:
        """Whether :meth:`take` need not wait."""
        return bool(self.waiting) and (self.waiting[0][1] is None or self.waiting[0][1].done())

    def allow(self, threads: int) -> None:
        """So many may read at a time."""
        if threads != self._allowed:
            with self._turn:
                self._allowed = threads
                self._turn.notify_all()

    def hand_out(self, work: Callable[[Item], Callable[[], Result] | None]) -> None:
        """To the threads, until they have enough to do or something can be taken that needs none."""
        while self.left and self._flying < 2 * self._allowed and not (self.waiting and self.waiting[0][1] is None):
            item = self.left.popleft()
            job = work(item)
            self.waiting.append((item, self._pool.submit(self._in_turn, job) if job else None))
            self._flying += job is not None

    def take(self) -> tuple[Item, Future[Result] | None]:
        item, future = self.waiting.popleft()
        self._flying -= future is not None
        return item, future

    def end(self) -> list[Future[Result]]:
        """Hand out no more; what still runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._turn:
            self._turn.notify_all()
        return [future for _, future in self.waiting if future is not None and not future.done()]

    def _in_turn(self, job: Callable[[], Result]) -> Result:
        with self._turn:
            self._turn.wait_for(self._may_run)
            self._running += 1
        try:
            began = self._streams.begin()
            result = job()
            self._streams.note(began, *self._cost(result), self._allowed)
            return result
        finally:
            with self._turn:
                self._running -= 1
                self._turn.notify_all()

    def _may_run(self) -> bool:
        return self._over() or self._running < (1 if self._streams.one else self._allowed)


def _prepare() -> None:
    # A file's many small products are done one after the other: the threads here are the parallelism.
    only_one()
