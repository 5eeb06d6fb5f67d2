"""Where the zoo keeps what it builds, and how it writes files so that a killed run leaves no half-written one.

Folders come from the environment, not from arguments: training runs in processes of its own, and those inherit it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np  # not when the program runs: `python -m zoo` then says in words what is not installed

REPO = Path(__file__).resolve().parent.parent
FOLDER, MODELS = "AUTOLORA_ZOO", "AUTOLORA_ZOO_MODELS"  # environment variables; `python -m zoo build` sets them


def _chosen(variable: str, default: Path) -> Path:
    value = os.environ.get(variable, "").strip()
    return Path(value).expanduser().resolve() if value else default


def cache_dir() -> Path:
    """The cache root: $AUTOLORA_CACHE, else `.cache` in the repository; made if absent."""
    path = _chosen("AUTOLORA_CACHE", REPO / ".cache")
    path.mkdir(parents=True, exist_ok=True)
    return path


def zoo_dir(*parts: str) -> Path:
    """`<cache>/zoo/<parts>` ($AUTOLORA_ZOO replaces `<cache>/zoo`), a folder; made if absent."""
    path = _chosen(FOLDER, cache_dir() / "zoo").joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def models_dir() -> Path:
    """Where finished models are written and read again: $AUTOLORA_ZOO_MODELS, else `models/` of the repository."""
    return _chosen(MODELS, REPO / "models")


def shelf_table() -> Path:
    """What each LoRA of `models_dir()` shows: the committed `zoo/loras.json`, or beside models that lie elsewhere."""
    folder = models_dir()
    return (REPO / "zoo" if folder == REPO / "models" else folder) / "loras.json"


def write_atomic(path: Path, write: Callable[[Path], Any]) -> Path:
    """Call `write(tmp)` on a file beside `path`, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(tmp)
        tmp.chmod(0o644)  # safetensors makes files that only their owner reads; a server may run as somebody else
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    return path


def write_json(path: Path, value: Any, indent: int | None = None) -> Path:
    """Store `value` as UTF-8 JSON, atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return write_atomic(path, lambda tmp: tmp.write_text(text + "\n", encoding="utf-8", newline="\n"))


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_npy(path: Path, array: np.ndarray) -> Path:
    """Store an array as .npy (no pickles), atomically."""
    import numpy as np

    def write(tmp: Path) -> None:
        with tmp.open("wb") as handle:
            np.save(handle, array, allow_pickle=False)

    return write_atomic(path, write)
