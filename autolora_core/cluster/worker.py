"""One shard on a worker: files → the rows they give, by the same scan that one machine does, as plain bytes.

A request is JSON. The answer is a length (8 bytes, little-endian), JSON, and the SQLite file of a small library that
holds nothing but these files. Ray, which carries both, pickles what it sends inside its cluster; we pickle nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from ..errors import LibraryError
from ..library.index import Library
from ..library.places import Known
from ..library.scan import Scanner
from ..library.store import DATABASE_NAME
from ..library.walk import Found, Scope
from ..portable import openable

_LENGTH = struct.Struct("<Q")
PREFIX = "autolora-shard-"
STALE_SECONDS = 24 * 3600.0
PACKAGE = Path(__file__).resolve().parents[1]


@cache
def code_id() -> str:
    """Hex digest of this package's sources: driver and workers must have the same, or rows would differ."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: path.relative_to(PACKAGE).as_posix()):
        source = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"\0{path.relative_to(PACKAGE).as_posix()}\0{len(source)}\0".encode())
        digest.update(source)
    return digest.hexdigest()


def machine() -> str:
    """What the last digits of a worker's numbers may depend on."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}"


def request(files: Sequence[Found], roots: Sequence[str], force: bool) -> bytes:
    """What :func:`read_shard` is given. ``files`` and ``roots`` carry the paths that the worker opens."""
    listed = [{**asdict(item), "sidecars": dict(item.sidecars)} for item in files]
    return json.dumps({"code": code_id(), "roots": list(roots), "force": force, "files": listed}).encode("ascii")


def read_shard(asked: bytes) -> bytes:
    """Read the files of a :func:`request` into a small library of their own; its bytes, for :func:`answer`.

    Raises :class:`LibraryError` for what is wrong with the worker; what is wrong with a file is in the file's row.
    """
    wanted = json.loads(asked)
    if wanted["code"] != code_id():
        raise LibraryError(
            f"the worker {platform.node()} has another version of this pack",
            path=PACKAGE,
            fix="give all machines the same version, or remove the pack from the worker: it is sent along",
        )
    for root in wanted["roots"]:
        if not os.path.isdir(root):
            raise LibraryError(
                f"the worker {platform.node()} does not see this folder",
                path=root,
                fix="mount the drive there too, or say with --map where it lies on the workers",
            )
    files = [_seen(Found(**file)) for file in wanted["files"]]
    _sweep()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        with Library.open(folder) as library:
            report = library.scan(Scope({}), force=wanted["force"], kind=partial(_ListScanner, files))
        rows = Path(folder, DATABASE_NAME).read_bytes()
    head = {"bytes_read": report.bytes_read, "host": platform.node(), "machine": machine()}
    packed = json.dumps(head).encode("ascii")
    return _LENGTH.pack(len(packed)) + packed + rows


def _sweep() -> None:
    """Remove what workers that were killed left here."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


class _ListScanner(Scanner):
    """A scan of files that somebody else listed; what is not among them is none of its business."""

    def __init__(self, files: list[Found], *what: Any, **how: Any):
        super().__init__(*what, **how)
        self._files = files
        self.workers = 1  # the cluster gives a shard one processor

    def _arrivals(self, known: dict[tuple[str, str], Known]) -> Iterator[list[Found]]:
        yield self._files

    def _places(self, seen: set[tuple[str, str]], known: dict[tuple[str, str], Known]) -> None:
        pass


def _seen(item: Found) -> Found:
    """``item`` with the times that this machine sees, or with what keeps it from reading it."""
    try:
        status = os.stat(openable(item.path))
    except OSError as error:
        return replace(item, problem=f"the worker {platform.node()} cannot read it: {error.strerror or error}")
    if status.st_size != item.size:
        why = f"it had {item.size} bytes when it was listed and {status.st_size} on the worker {platform.node()}"
        return replace(item, problem=f"{why}: it is being written just now; scan again later")
    return replace(item, mtime_ns=status.st_mtime_ns)


def answer(data: bytes) -> tuple[dict, bytes]:
    """``(head, SQLite file)`` of what :func:`read_shard` gave. Raises ValueError when it is not that."""
    if len(data) < _LENGTH.size:
        raise ValueError("it is too short")
    (length,) = _LENGTH.unpack_from(data)
    head = json.loads(data[_LENGTH.size : _LENGTH.size + length])
    return head, data[_LENGTH.size + length :]
