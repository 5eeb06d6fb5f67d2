"""Reading files ahead of the one thread that writes: a few threads a drive, results in the order of its files.

Hashing, reading and PyTorch's products run outside Python's lock, so a few threads are enough for a few processors; in
a large scan on a larger machine each thread waits for a process of its own (:mod:`.readers`). Drives do not wait for
one another: what they bring adds up, and one that is slow or hangs holds up its own files alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

from ..encode.threads import only_one
from .readers import Readers, processors
from .streams import Streams

log = logging.getLogger(__name__)
MOST_WORKERS = 4
MOST_READING = 8  # threads that read in this process, of all drives together, unless there are more drives
POLL_SECONDS = 0.05  # between two looks at whether the scan is to stop
END_SECONDS = 10.0  # how long what is being read is waited for when it is over
Item = TypeVar("Item")
Result = TypeVar("Result")
Cost = Callable[[Any], tuple[int, float]]


class Stopped(BaseException):
    """Raised in a reading thread when the scan has ended. No ``Exception``: it is no trouble with a file."""


class ReadAhead:
    """``workers`` threads a drive (None: one a processor, at most :data:`MOST_WORKERS`); after :meth:`enlist`, as many
    as there are processes, in equal parts for the drives that have files left. Use it in a ``with`` block: at its end
    what is still being read is told to stop, and waited for, but not for ever. ``readers``: the processes, None
    without."""

    def __init__(self, workers: int | None = None):
        self.workers = workers or min(MOST_WORKERS, processors())
        self.readers: Readers | None = None
        self._over = threading.Event()
        self._drives: dict[Hashable, _Drive] = {}  # those with files left

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self.readers or nullcontext():
            if self.readers is not None:
                self.readers.stop()
            end = time.monotonic() + END_SECONDS
            if not all([drive.end(end) for drive in self._drives.values()]):
                log.warning("what was being read is given up: a drive does not answer, or a file takes long")

    def enlist(self, processes: int) -> None:
        """Let so many processes read, unless some do already."""
        if processes and self.readers is None:
            self.workers, self.readers = max(processes, self.workers), Readers(processes)

    def tick(self, size: int) -> None:
        """What reading threads call with the bytes they read; raises :class:`Stopped` when it is over."""
        if self._over.is_set():
            raise Stopped

    def results(
        self,
        more: Iterator[Sequence[Item]],
        work: Callable[[Item], Callable[[], Result] | None],
        drive: Callable[[Item], Hashable] = lambda item: None,
        cost: Cost = lambda result: (0, 0.0),
        tick: Callable[[Sequence[Item] | None], None] = lambda awaited: None,
    ) -> Iterator[tuple[Item, Future[Result] | None]]:
        """Every item with the finished future of what ``work(item)`` gave, None where nothing is to be done; those of
        one ``drive`` in order. Of a drive at most twice as many results are being made or wait to be taken as threads
        may read there.

        ``more``: items as they become known; an empty sequence where none are just now. ``tick`` is called while
        something is awaited, with the next item of each drive (without any where only ``more`` is, for which it is to
        wait a moment), and with None before every item; it may raise. ``cost``: the bytes that a result cost the drive,
        and the seconds that were waited for them, by which it is told how many files are read there at a time
        (:mod:`.streams`).
        """
        drives, coming = self._drives, True
        while coming or drives:
            some = next(more, None) if coming else ()
            coming = some is not None
            for item in some or ():
                key = drive(item)
                if key not in drives:
                    drives[key] = _Drive(self._over.is_set, cost)
                drives[key].left.append(item)
            for one in drives.values():
                one.allow(self._share(len(drives)))
                one.hand_out(work)
            ready = [one for one in drives.values() if one.ready]
            if not ready and (coming or drives):
                heads = [one.waiting[0] for one in drives.values()]
                tick([item for item, _ in heads])
                if heads:
                    wait([future for _, future in heads], POLL_SECONDS, FIRST_COMPLETED)
            for one in ready:
                tick(None)
                yield one.take()
            for key, one in list(drives.items()):
                if not one.left and not one.waiting:
                    drives.pop(key).close()

    def _share(self, drives: int) -> int:
        """How many threads may read one of so many drives at a time."""
        if self.readers is not None:
            return -(-self.workers // drives)
        return max(1, min(self.workers, MOST_READING // drives))


class _Drive(Generic[Item, Result]):
    """The files of one drive: ``left`` to be handed out, ``waiting`` to be taken, both in order. ``over`` says whether
    the scan has ended, ``cost`` is that of :meth:`ReadAhead.results`.

    Its threads are daemons, unlike a ``ThreadPoolExecutor``'s: one that hangs in a drive must not keep the process.
    """

    def __init__(self, over: Callable[[], bool], cost: Cost):
        self.left: deque[Item] = deque()
        self.waiting: deque[tuple[Item, Future[Result] | None]] = deque()
        self._over, self._cost, self._streams = over, cost, Streams()
        self._todo: deque[tuple[Future[Result], Callable[[], Result]]] = deque()
        self._threads: list[threading.Thread] = []
        self._flying, self._allowed, self._running, self._closed = 0, 0, 0, False
        self._turn = threading.Condition()

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
            self.waiting.append((item, self._submit(job) if job else None))
            self._flying += job is not None

    def take(self) -> tuple[Item, Future[Result] | None]:
        item, future = self.waiting.popleft()
        self._flying -= future is not None
        return item, future

    def close(self) -> None:
        """Let the threads go: nothing is left to be done."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()

    def end(self, by: float) -> bool:
        """Hand out no more, and wait for what is being read until ``by``; whether all of it has ended."""
        self.close()
        for thread in self._threads:
            thread.join(max(0.0, by - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # -- the threads -----------------------------------------------------------------------------------------------

    def _submit(self, job: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        with self._turn:
            self._todo.append((future, job))
            self._turn.notify()
        if len(self._threads) < self._allowed:
            self._threads.append(threading.Thread(target=self._serve, name="autolora-read", daemon=True))
            self._threads[-1].start()
        return future

    def _serve(self) -> None:
        only_one()  # a file's many small products are done one after the other: the threads here are the parallelism
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._closed or self._over() or self._may_begin())
                if self._closed or self._over():
                    return
                future, job = self._todo.popleft()
                self._running += 1
            try:
                self._run(future, job)
            finally:
                with self._turn:
                    self._running -= 1
                    self._turn.notify_all()

    def _may_begin(self) -> bool:
        return bool(self._todo) and self._running < (1 if self._streams.one else self._allowed)

    def _run(self, future: Future[Result], job: Callable[[], Result]) -> None:
        try:
            began = self._streams.begin()
            result = job()
            self._streams.note(began, *self._cost(result), self._allowed)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
