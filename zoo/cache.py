"""Where the zoo keeps what it builds, and how it writes files so that a killed run leaves no half-written one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """The cache root: $AUTOLORA_CACHE, else `.cache` in the repository; made if absent."""
    path = Path(os.environ.get("AUTOLORA_CACHE") or REPO / ".cache")
    path.mkdir(parents=True, exist_ok=True)
    return path


def zoo_dir(*parts: str) -> Path:
    """`<cache>/zoo/<parts>`, a folder; made if absent."""
    path = cache_dir().joinpath("zoo", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomic(path: Path, write: Callable[[Path], Any]) -> Path:
    """Call `write(tmp)` on a file beside `path`, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(tmp)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    return path


def write_json(path: Path, value: Any, indent: int | None = None) -> Path:
    """Store `value` as UTF-8 JSON, atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return write_atomic(path, lambda tmp: tmp.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_npy(path: Path, array: np.ndarray) -> Path:
    """Store an array as .npy (no pickles), atomically."""

    def write(tmp: Path) -> None:
        with tmp.open("wb") as handle:
            np.save(handle, array, allow_pickle=False)

    return write_atomic(path, write)
