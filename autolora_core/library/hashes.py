"""Hashes by which others know a model file: SHA-256, AutoV2 (its first ten digits) and AutoV3 (the first twelve digits
of the SHA-256 of the tensors alone, which a changed header leaves as it is)."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

CHUNK = 4 << 20
LONGEST_HEADER = 100 << 20
MOST_KEPT = 512


@dataclass(frozen=True)
class FileHashes:
    """Hexadecimal digits, lower case. ``tensors``: SHA-256 of what stands behind a safetensors header, "" for other
    files."""

    sha256: str
    tensors: str = ""

    @property
    def autov2(self) -> str:
        return self.sha256[:10]

    @property
    def autov3(self) -> str:
        return self.tensors[:12]


def hash_file(path: str, tick: Callable[[int], None] | None = None) -> FileHashes:
    """Both hashes in one pass over the file; ``tick`` is told the bytes read every few megabytes, and may raise."""
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with open(path, "rb") as file:
        start = _tensors_start(file.read(9), os.fstat(file.fileno()).st_size)
        file.seek(0)
        position = 0
        while chunk := file.read(CHUNK):
            whole.update(chunk)
            position += len(chunk)
            if tick is not None:
                tick(position)
            if start is not None and position > start:
                tensors.update(chunk[max(0, start - (position - len(chunk))) :])
    return FileHashes(whole.hexdigest(), tensors.hexdigest() if start is not None else "")


def _tensors_start(head: bytes, size: int) -> int | None:
    """Where the tensors of a safetensors file begin, None for another file."""
    length = int.from_bytes(head[:8], "little")
    return length + 8 if head[8:] == b"{" and length <= LONGEST_HEADER and length + 8 <= size else None


class HashCache:
    """Hashes of the files asked for last, by path, time and size: each file is read once."""

    def __init__(self, most: int = MOST_KEPT):
        self._most, self._kept = most, OrderedDict()

    def of(self, path: str, tick: Callable[[int], None] | None = None) -> FileHashes:
        """Hashes of the file as it is now. Raises ``OSError`` where it cannot be read."""
        key = stamp(path)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = hash_file(path, tick)
        self._kept[key] = made
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return made


def stamp(path: str) -> tuple[str, int, int]:
    """Path, time of change in nanoseconds and size: another file, or the same one changed, has another."""
    state = os.stat(path)
    return os.path.abspath(path), state.st_mtime_ns, state.st_size
