"""The folders of a scope listed side by side, each by a thread of its own: a slow drive holds up nobody but itself."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .walk import Found, Scope, walk

# All listings that come within this many seconds are taken together, in the order of the roots.
TOGETHER_SECONDS = 1.0
POLL_SECONDS = 0.1


@dataclass
class Listing:
    """What lies in one root; ``offline``: the folder is not there. ``troubles``: (path, why) of what was passed by."""

    root: str
    found: list[Found] = field(default_factory=list)
    troubles: list[tuple[str, str]] = field(default_factory=list)
    offline: bool = False


class _Over(Exception):
    """Nobody waits for this listing any more."""


class Roots:
    """Use it in a ``with`` block: at its end, listings that are still being made are given up."""

    def __init__(self, scope: Scope):
        self._roots = list(scope.roots.values())
        self._wanted = scope.predicate()
        self._over = threading.Event()
        self._done: queue.SimpleQueue[tuple[int, Listing | BaseException]] = queue.SimpleQueue()

    def __enter__(self) -> Roots:
        for number, root in enumerate(self._roots):
            # A call into a drive that hangs cannot be ended: such a thread must not keep the process alive.
            threading.Thread(target=self._list, args=(number, root), name="autolora-list", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def arrivals(self, waiting: Callable[[list[str]], None]) -> Iterator[list[Listing]]:
        """Listings as they come. ``waiting(roots)`` is called while there is nothing else to do, with the roots that
        are awaited once they take long, and may raise."""
        left, start = dict(enumerate(self._roots)), time.monotonic()
        arrived: dict[int, Listing] = {}
        while left:
            try:
                number, made = self._done.get(timeout=POLL_SECONDS)
            except queue.Empty:
                late = time.monotonic() - start > TOGETHER_SECONDS
                if not (late and arrived):
                    waiting(list(left.values()) if late else [])
                    continue
            else:
                if isinstance(made, BaseException):
                    raise made
                del left[number]
                arrived[number] = made
                if left and time.monotonic() - start <= TOGETHER_SECONDS:
                    continue
            yield [arrived[number] for number in sorted(arrived)]
            arrived = {}
        if arrived:
            yield [arrived[number] for number in sorted(arrived)]

    def _list(self, number: int, root: str) -> None:
        try:
            self._done.put((number, self._listing(root)))
        except _Over:
            pass
        except BaseException as error:
            self._done.put((number, error))

    def _listing(self, root: str) -> Listing:
        made = Listing(root)
        made.offline = not Path(root).is_dir()
        if not made.offline:
            for item in walk(root, self._wanted, lambda path, why: made.troubles.append((path, why))):
                if self._over.is_set():
                    raise _Over
                made.found.append(item)
        return made
