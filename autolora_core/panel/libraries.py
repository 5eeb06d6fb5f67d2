"""Which libraries there are below ComfyUI's user directory, by name. A name that is not listed leads nowhere."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import LibraryError
from ..library.store import DATABASE_NAME

MOST = 200


def folders(user_directory: str | os.PathLike) -> dict[str, Path]:
    """Name → folder of every library, sorted."""
    base = Path(user_directory) / "autolora"
    try:
        with os.scandir(base) as listed:
            names = sorted(entry.name for entry in listed if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return {}
    return {name: base / name for name in names if (base / name / DATABASE_NAME).is_file()}


def folder_of(user_directory: str | os.PathLike, name: str) -> Path:
    """The folder of the library ``name``. Raises LibraryError for one that is not listed: names are compared with those
    that are there, and never become a path."""
    found = folders(user_directory).get(name)
    if found is None:
        raise LibraryError("there is no such library", key="library", fix="run Encode LoRA Library")
    return found
