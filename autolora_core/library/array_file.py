"""Arrays kept on disk to save work: a cache that is opened without being read into memory, and checked as it is opened.

A line that names the format, the SHA-256 of a header in JSON, the header, then the arrays, each at a multiple of 64
bytes. The header says of what state the arrays are, and has each array's SHA-256. Whatever is wrong with a file, it is
as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .. import portable
from ..portable import write_whole

log = logging.getLogger(__name__)
_MAGIC = b"AUTOLORA-ARRAYS-1\n"
_SIZE = struct.Struct("<q")
_HASH = hashlib.sha256().digest_size
_HEAD = len(_MAGIC) + _HASH + _SIZE.size
_ALIGN, _BLOCK, _LONGEST_HEADER = 64, 1 << 22, 64 << 20
# Smaller files are read whole: a map saves little, and a file that is cut off while it is mapped ends the program.
MAPPED_FROM = 32 << 20
# So many views of a library keep files of one name; those that were written first are given up.
MOST_VIEWS = 4


def kept_path(folder: Path, name: str, view: str) -> Path:
    """Where a view of the library in ``folder`` keeps ``name``; ``view`` says which part it shows."""
    return folder / f"{name}-{hashlib.sha256(view.encode(errors='backslashreplace')).hexdigest()[:12]}.arrays"


def save_arrays(path: Path, said: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bool:
    """Keep ``arrays`` (any shape; numbers or bool) under ``said``, plain JSON; False where nothing can be written."""
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    rows, at = {}, 0
    for name, array in plain.items():
        at = -(-at // _ALIGN) * _ALIGN
        rows[name] = [array.dtype.str, list(array.shape), at, _sha256(array).hex()]
        at += array.nbytes
    header = json.dumps({"said": said, "arrays": rows, "bytes": at}).encode()
    start = _start(len(header))

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(header).digest() + _SIZE.pack(len(header)) + header)
            for name, array in plain.items():
                file.seek(start + rows[name][2])
                file.write(memoryview(array).cast("B") if array.size else b"")
            file.truncate(start + at)

    try:
        write_whole(path, write)
    except OSError as error:
        log.info("%s could not be written (%s); what it holds is worked out anew when it is needed", path, error)
        return False
    _give_up_others(path)
    return True


def _give_up_others(path: Path) -> None:
    """Files of the same name that other views have kept, but for the newest."""
    name = path.stem.rpartition("-")[0]
    others = [other for other in path.parent.glob(f"{name}-*{path.suffix}") if len(other.stem) == len(path.stem)]
    try:
        for old in sorted(others, key=lambda other: -other.stat().st_mtime_ns)[MOST_VIEWS:]:
            portable.remove(old)
    except OSError as error:
        log.info("%s stays: %s", path.parent, error)


def open_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """What :func:`save_arrays` was given, the arrays the caller's own; None when the file is absent or damaged."""
    try:
        found = _opened(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s cannot be used (%s); making it again", path, error)
        return None
    if found is None:
        log.warning("%s is damaged or of another version; making it again", path)
    return found


def said_of(path: Path) -> dict[str, Any] | None:
    """What the header of a file says, its arrays unread; None as :func:`open_arrays`."""
    try:
        with open(path, "rb") as file:
            header = _header(file)
        return None if header is None else json.loads(header)["said"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    with open(path, "rb") as file:
        header = _header(file)
        size = file.seek(0, 2)
        if header is None:
            return None
        told, start = json.loads(header), _start(len(header))
        if start + told["bytes"] != size or not _whole(file, start, told["arrays"].values()):
            return None
        flat = mapped(file, np.uint8, start, (told["bytes"],))
    arrays = {}
    for name, (kind, shape, at, _) in told["arrays"].items():
        dtype = np.dtype(kind)
        if dtype.kind not in "biuf":
            return None
        arrays[name] = flat[at : at + _length(kind, shape)].view(dtype).reshape(shape)
    return told["said"], arrays


def mapped(file: BinaryIO, dtype: Any, start: int, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a file that was opened to be read: mapped where it is large, so that only what is used is read.
    Whoever writes into it changes his own memory."""
    count = int(np.prod(shape, dtype=np.int64))
    # Windows lets nobody replace a file that is mapped.
    if count * np.dtype(dtype).itemsize >= MAPPED_FROM and not portable.WINDOWS:
        return np.asarray(np.memmap(file, dtype, "c", start, shape))
    file.seek(start)
    return np.fromfile(file, dtype, count).reshape(shape)


def sha256_of(file: BinaryIO, start: int, length: int) -> str:
    """Of a part of a file, read in blocks: what is mapped and never used takes no memory."""
    file.seek(start)
    digest, block = hashlib.sha256(), memoryview(bytearray(min(_BLOCK, length)))
    while length > 0:
        read = file.readinto(block[: min(len(block), length)])
        if not read:
            return ""
        digest.update(block[:read])
        length -= read
    return digest.hexdigest()


def _whole(file: BinaryIO, start: int, arrays: Iterable[list]) -> bool:
    """Whether every array is as it was written."""
    return all(sha256_of(file, start + at, _length(kind, shape)) == digest for kind, shape, at, digest in arrays)


def _length(kind: str, shape: list[int]) -> int:
    return math.prod(shape) * np.dtype(kind).itemsize


def _header(file: BinaryIO) -> bytes | None:
    head = file.read(_HEAD)
    if len(head) != _HEAD or not head.startswith(_MAGIC):
        return None
    (length,) = _SIZE.unpack_from(head, _HEAD - _SIZE.size)
    if not 0 < length <= _LONGEST_HEADER:
        return None
    header = file.read(length)
    return header if hashlib.sha256(header).digest() == head[len(_MAGIC) : len(_MAGIC) + _HASH] else None


def _start(length: int) -> int:
    """Where the arrays begin behind a header of so many bytes."""
    return -(-(_HEAD + length) // _ALIGN) * _ALIGN


def _sha256(array: np.ndarray) -> bytes:
    return hashlib.sha256(memoryview(array).cast("B") if array.size else b"").digest()
