"""Files that are whole or absent, and a lock between two runs of these scripts."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what the two systems say of a lock that is held


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` such that a reader, or a crash, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _try_lock(descriptor: int) -> bool:
    """False when another process has it. Raises OSError where the file system has no locks at all."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    return True


@contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold a lock that the system frees when this process ends; prints `waiting` once if another run has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _try_lock(descriptor):
            print(waiting, flush=True)
            while not _try_lock(descriptor):
                time.sleep(0.3)
        yield
    finally:
        os.close(descriptor)
