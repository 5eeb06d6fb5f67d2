"""What SQLite says when a disk is full, read-only, gone or damaged: in words that name the file and say what to do.

Nothing that was committed is lost by any of it, so nothing here tells anybody to delete a library but damage does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import LibraryError

LONG_PATH = 230  # characters, from which the length may be why SQLite fails
_KEPT = "what was done so far is kept"
_LOCKED = "another program has it open: close it, or wait until it has finished"
_DAMAGED = "move the file away: encoding makes a library again from the LoRA files"
# What SQLite's message begins with or holds → what it means, and what to do.
_MEANS = (
    ("disk is full", "the disk is full", f"make room on this drive, then run it again: {_KEPT}"),
    ("disk I/O error", "the disk failed", f"check that the drive is there and has room, then run it again: {_KEPT}"),
    ("readonly database", "it cannot be written", "make the file and its folder writable"),
    ("unable to open", "it cannot be opened", "check that its folder exists, is writable and has room"),
    ("is locked", "it is in use", _LOCKED),
    ("malformed", "it is damaged", _DAMAGED),
    ("not a database", "it is no library", _DAMAGED),
)
# The disk's doing, not the file's: where it happens on opening, what is there can still be read.
_OF_THE_DISK = frozenset({"the disk is full", "the disk failed", "it cannot be written", "it cannot be opened"})


def meaning(error: Exception) -> tuple[str, str]:
    """What an error of SQLite or the system means, and what to do."""
    for said, means, fix in _MEANS:
        if said in str(error):
            return means, fix
    return "it cannot be used", "check that the folder is writable and the drive is connected"


def is_damage(error: Exception) -> bool:
    """Whether the file itself is broken: trying again, or making room, would not help."""
    return meaning(error)[1] == _DAMAGED


def is_of_the_disk(error: Exception) -> bool:
    """Whether it is about writing, so that reading may still do."""
    return isinstance(error, PermissionError) or meaning(error)[0] in _OF_THE_DISK


def library_error(error: Exception, path: Path) -> LibraryError:
    """``error`` of the library ``path`` as one of ours."""
    means, fix = meaning(error)
    room = ""
    if means in _OF_THE_DISK:
        with contextlib.suppress(OSError):
            room = f", {shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free"
    if means == "it cannot be opened" and len(str(path)) > LONG_PATH:
        fix = (
            f"its path has {len(str(path))} characters, more than SQLite takes (about 500, on Windows 250): "
            "move ComfyUI's user directory to a shorter path (--user-directory)"
        )
    return LibraryError(f"the library cannot be used: {means} ({error}{room})", path=path, fix=fix)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Errors of SQLite leave the ``with`` block as :class:`LibraryError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise library_error(error, path) from error


def open_to_read(path: Path) -> sqlite3.Connection | None:
    """``path`` where nothing can be written beside it, as on read-only shares and full disks; None when it cannot.

    SQLite is told that the file does not change meanwhile: where somebody who may write does so in these moments, this
    reader may find nonsense, an error at worst; the file is none the worse for it. Changes that wait beside it to be
    merged would be passed over in silence: then it is not opened.
    """
    with contextlib.suppress(OSError):
        if os.path.getsize(f"{path}-wal"):
            return None
    if not path.is_file():
        return None
    name = urllib.parse.quote(os.fsencode(path.absolute().as_posix()))
    try:
        db = sqlite3.connect(
            f"file://{'' if name.startswith('/') else '/'}{name}?mode=ro&immutable=1", uri=True, isolation_level=None,
            check_same_thread=False,
        )  # fmt: skip
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        return None
    return db
