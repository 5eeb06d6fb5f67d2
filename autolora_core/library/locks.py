"""One writer at a time: an operating-system lock on a file in the library folder.

The kernel drops the lock when its holder dies, however it dies, so a killed scan never leaves a library locked.
Readers take no lock: SQLite's write-ahead log gives each of them the last committed state.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import LibraryError
from .store import Store
from .trouble import told

LOCK_NAME = "writer.lock"
POLL_SECONDS = 0.1
# What the system calls a lock that somebody else has (Windows: EACCES); anything else is that it cannot lock at all.
_HELD = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK})


def _try_lock(handle: IO[bytes], path: Path) -> bool:
    """Take the exclusive lock on ``handle`` without waiting; False when another holder has it.

    Raises :class:`LibraryError` where ``path`` cannot be locked at all, as on some network drives.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            # A byte far beyond the text, so that others can still read who holds the lock.
            handle.seek(1 << 20)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise LibraryError(
            f"this file cannot be locked ({error.strerror or error}): the drive does not seem to support locks",
            path=path,
            fix="move ComfyUI's user directory to a local drive (--user-directory)",
        ) from error
    return True


def _unlock(handle: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        handle.seek(1 << 20)
        msvcrt.locking(handle.fileno(), msvcrt.LK_UNLCK, 1)
    # elsewhere closing the file drops the lock


def _sign(handle: IO[bytes]) -> None:
    """Write down who holds the lock, for those who wait; a full disk, which they will hear of, is no reason not to."""
    with contextlib.suppress(OSError):
        handle.truncate(0)
        handle.seek(0)
        handle.write(f"process {os.getpid()}\n".encode("ascii"))
        handle.flush()


def _holder(path: Path) -> str:
    text = path.read_bytes()[:64].decode("ascii", "replace").strip()
    return text or "another process"


@contextmanager
def writer_lock(folder: Path, wait: float = 30.0, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the library's writer lock inside the ``with`` block.

    ``wait`` is how many seconds to wait for another writer; ``waiting()`` is called while waiting and may raise to
    give up (an interrupt). Raises :class:`LibraryError` naming the other process when the time is over, and naming the
    lock's file when it cannot be opened or locked at all.
    """
    path = folder / LOCK_NAME
    with _opened(path) as handle:
        _wait_for(handle, path, time.monotonic() + wait, waiting)
        try:
            _sign(handle)
            yield
        finally:
            _unlock(handle)


@contextmanager
def writing(store: Store, wait: float = 30.0, should_stop: Callable[[], bool] | None = None) -> Iterator[None]:
    """The writer's turn at a library; what SQLite says when a disk fails comes out in words.

    Raises :class:`LibraryError`: also where nothing can be written, and when told to stop while waiting.
    """

    def check() -> None:
        if should_stop is not None and should_stop():
            raise LibraryError("stopped while waiting for another process to finish writing")

    store.require_writable()
    with told(store.path), writer_lock(store.folder, wait, check):
        yield


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(path, "a+b")
    except OSError as error:
        raise LibraryError(
            f"the lock of this library cannot be opened for writing ({error.strerror or error})",
            path=path,
            fix="make the folder writable, or move ComfyUI's user directory to a drive that is",
        ) from error


def _wait_for(handle: IO[bytes], path: Path, deadline: float, waiting: Callable[[], None] | None) -> None:
    while not _try_lock(handle, path):
        if time.monotonic() >= deadline:
            raise LibraryError(
                f"another process is writing this library ({_holder(path)})",
                path=path.parent,
                fix="wait until it has finished, or give this one another library name",
            )
        if waiting is not None:
            waiting()
        time.sleep(POLL_SECONDS)
