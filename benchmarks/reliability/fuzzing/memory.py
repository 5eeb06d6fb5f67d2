"""How much memory one case took, at most: Linux's peak of the process, set back before each case."""

from __future__ import annotations

import mmap
import os
import re

MIB = 1 << 20
_TRIAL = 16 * MIB


class Peak:
    """``start()`` before a case, ``grown()`` after it: bytes above what the process had. 0 where nobody can tell."""

    def __init__(self) -> None:
        self._before = 0
        self._clear = self._status = None
        try:
            self._clear = os.open("/proc/self/clear_refs", os.O_WRONLY)
            self._status = os.open("/proc/self/status", os.O_RDONLY)
            works = self._works()
        except OSError:
            works = False
        if not works:
            self._clear = self._status = None

    def _works(self) -> bool:
        """Some sandboxes have both files and count nothing: believe them only when they see memory being taken."""
        self.start()
        take(_TRIAL)
        return self.grown() > _TRIAL // 2

    @property
    def known(self) -> bool:
        return self._status is not None

    def start(self) -> None:
        if self.known:
            os.pwrite(self._clear, b"5", 0)
            self._before = self._read("VmRSS")

    def grown(self) -> int:
        return max(0, self._read("VmHWM") - self._before) if self.known else 0

    def _read(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", os.pread(self._status, 8192, 0).decode())
        return 1024 * int(found[1]) if found else 0


def take(size: int) -> None:
    """Have ``size`` bytes for a moment, new ones: a big process's allocator may hand out what it never gave back."""
    with mmap.mmap(-1, size) as pages:
        for at in range(0, size, mmap.PAGESIZE):
            pages[at] = 1


def cap(gigabytes: int) -> None:
    """No more address space than this for the process: a bomb becomes a ``MemoryError`` and not the machine's end."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))
