"""The folders of a scope listed side by side, each by a thread of its own: a slow drive holds up nobody but itself."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .walk import Found, Scope, walk

# All listings that come within this many seconds are taken together, in the order of the roots.
TOGETHER_SECONDS = 1.0


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
        self._left = dict(enumerate(scope.roots.values()))
        self._wanted = scope.predicate()
        self._over, self._start = threading.Event(), time.monotonic()
        self._done: queue.SimpleQueue[tuple[int, Listing | BaseException]] = queue.SimpleQueue()
        self._arrived: dict[int, Listing] = {}

    def __enter__(self) -> Roots:
        for number, root in self._left.items():
            # A call into a drive that hangs cannot be ended: such a thread must not keep the process alive.
            threading.Thread(target=self._list, args=(number, root), name="autolora-list", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    @property
    def over(self) -> bool:
        """Whether all listings were taken."""
        return not self._left and not self._arrived

    @property
    def awaited(self) -> list[str]:
        """The roots that are still being listed, once that takes long."""
        return list(self._left.values()) if self._late else []

    @property
    def _late(self) -> bool:
        return time.monotonic() - self._start > TOGETHER_SECONDS

    def wait(self, seconds: float) -> None:
        """Until a listing has come, but no longer than that."""
        with suppress(queue.Empty):
            number, made = self._done.get(timeout=seconds)
            if isinstance(made, BaseException):
                raise made
            del self._left[number]
            self._arrived[number] = made

    def take(self) -> list[Listing]:
        """Listings that have come since, in the order of the roots; nothing is waited for."""
        while not self._done.empty():
            self.wait(0)
        if self._left and not self._late:
            return []
        arrived, self._arrived = self._arrived, {}
        return [arrived[number] for number in sorted(arrived)]

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
