"""How many files of one drive are read side by side: several, or one at a time where the drive gives more that way.

A hard disk that several files are read from moves its head from one to the other and back, and may give half of what it
gives to one reader; a memory drive, and most networks, give more to several. What a drive is made of cannot be asked
everywhere, so it is tried out: only where every reader waits long for its bytes, for 256 MB and a few files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SLOW_BYTES_A_SECOND = 120e6  # that one of several readers gets; above it, computing takes as long as waiting
TRIED_BYTES, TRIED_FILES = 256 << 20, 4  # read one way before it is judged; so many files a reader
GAIN = 1.1  # one at a time must give so much more
CACHED_BYTES_A_SECOND = 500e6  # more than a reader gets from any drive that is worth a trial


class Streams:
    """Of one drive in one scan. ``one``: whether files are to be read one at a time from now on. Threads that read may
    ask and tell at once."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now, self._lock = now, threading.Lock()
        self.one, self._settled = False, False
        self._readers = 0  # that may read, as it was told last
        self._several = 0.0  # bytes a second that the drive gives to several readers, once one is tried
        self._start_over()

    def begin(self) -> float:
        """When a file was begun, for :meth:`note`."""
        return self._now()

    def note(self, began: float, size: int, waited: float, readers: int) -> None:
        """A file is read: its bytes that came from the drive, the seconds that its reader waited for them, and how many
        files may be read at a time."""
        with self._lock:
            if self._settled or began < self._since or not size:
                return
            if readers != self._readers:  # another drive has come or gone: what was seen is not to be compared
                self.one, self._readers = False, readers
                self._start_over()
            elif readers > 1 and self._first is None:  # from one end of a file to another: both leave some half read
                self._first = self._now()
            elif readers > 1:
                self._files, self._bytes, self._waited = self._files + 1, self._bytes + size, self._waited + waited
                if self._bytes >= TRIED_BYTES and self._files >= TRIED_FILES * (1 if self.one else readers):
                    self._judge(self._bytes / max(1e-9, self._now() - self._first))

    def _judge(self, rate: float) -> None:
        if self.one and self._bytes > CACHED_BYTES_A_SECOND * self._waited:
            self.one = False  # these came from the page cache, and say nothing of the drive
        elif self.one:
            self.one, self._settled = rate > GAIN * self._several, True
        elif self._bytes < SLOW_BYTES_A_SECOND * self._waited:
            self.one, self._several = True, rate
        self._start_over()

    def _start_over(self) -> None:
        """Files begun before now belong to what was before."""
        self._files, self._bytes, self._waited, self._since, self._first = 0, 0, 0.0, self._now(), None
