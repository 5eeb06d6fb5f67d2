"""One writer at a time: an operating-system lock on a file in the library folder.

The kernel drops the lock when its holder dies, however it dies, so a killed scan never leaves a library locked.
Readers take no lock: SQLite's write-ahead log gives each of them the last committed state.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import LibraryError

LOCK_NAME = "writer.lock"
POLL_SECONDS = 0.1


def _try_lock(handle: IO[bytes]) -> bool:
    """Take the exclusive lock on ``handle`` without waiting; False when another holder has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # A byte far beyond the text, so that others can still read who holds the lock.
            handle.seek(1 << 20)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(handle: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        handle.seek(1 << 20)
        msvcrt.locking(handle.fileno(), msvcrt.LK_UNLCK, 1)
    # elsewhere closing the file drops the lock


def _holder(path: Path) -> str:
    text = path.read_bytes()[:64].decode("ascii", "replace").strip()
    return text or "another process"


@contextmanager
def writer_lock(folder: Path, wait: float = 30.0, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the library's writer lock inside the ``with`` block.

    ``wait`` is how many seconds to wait for another writer; ``waiting()`` is called while waiting and may raise to
    give up (an interrupt). Raises :class:`LibraryError` naming the other process when the time is over.
    """
    path = folder / LOCK_NAME
    deadline = time.monotonic() + wait
    with open(path, "a+b") as handle:
        while not _try_lock(handle):
            if time.monotonic() >= deadline:
                raise LibraryError(
                    f"another process is writing this library ({_holder(path)})",
                    path=folder,
                    fix="wait until it has finished, or give this one another library name",
                )
            if waiting is not None:
                waiting()
            time.sleep(POLL_SECONDS)
        try:
            handle.truncate(0)
            handle.seek(0)
            handle.write(f"process {os.getpid()}\n".encode("ascii"))
            handle.flush()
            yield
        finally:
            _unlock(handle)
