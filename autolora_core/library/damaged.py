"""A library that is not as any version of the pack wrote it: damaged on the disk, or made by somebody else.

What is stored is read as data. Views and triggers, which would run with every look at it, are refused, and a value that
is not what its column holds is an error that says so, whichever line stumbled over it.
"""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from ..errors import AutoLoRAError, LibraryError
from .trouble import library_error

log = logging.getLogger(__name__)
P, R = ParamSpec("P"), TypeVar("R")
FIX = "move the library's folder away: encoding makes it again from the LoRA files"
TELL = "should it happen again then, it is a fault of this pack: please report it with ComfyUI's log"
# What reading values of other types or forms than were written raises; RecursionError is JSON without a bottom.
_STUMBLES = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, zlib.error)


def refuse_strange(db: sqlite3.Connection, path: Path) -> None:
    """Raise :class:`LibraryError` for a database with views or triggers; functions in its schema are not run."""
    db.execute("PRAGMA trusted_schema=OFF")
    try:
        found = _strange(db)
    except UnicodeDecodeError as error:
        raise LibraryError(f"the library is damaged ({error})", path=path, fix=FIX) from error
    if found is not None:
        raise LibraryError(
            f"the library holds a {found[0]}, {str(found[1])[:80]!r}, which no version of this pack wrote",
            path=path,
            fix=FIX,
        )


def _strange(db: sqlite3.Connection) -> tuple | None:
    return db.execute("SELECT type, name FROM sqlite_master WHERE type IN ('view', 'trigger') LIMIT 1").fetchone()


def reads(method: Callable[P, R]) -> Callable[P, R]:
    """For methods of a library, ``self.store``: what a damaged database makes them raise becomes LibraryError."""

    @wraps(method)
    def reading(*args: P.args, **how: P.kwargs) -> R:
        try:
            return method(*args, **how)
        except AutoLoRAError:
            raise
        except sqlite3.Error as error:
            raise library_error(error, args[0].store.path) from error
        except _STUMBLES as error:
            # It may as well be a fault of ours: the log has all of it, and the advice ends with whom to tell.
            log.warning("%s stumbled over the library", method.__name__, exc_info=error)
            why = f"the library is damaged, or read wrongly: {type(error).__name__}: {str(error)[:200]}"
            raise LibraryError(why, path=args[0].store.path, fix=f"{FIX}; {TELL}") from error

    return reading
