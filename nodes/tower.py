"""The text tower that the nodes share: read once, kept while its file stays the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

from ..autolora_core.encode.towers import LexicalTower, MiniLMTower, TextTower

_held: dict[str, TextTower] = {}
_lock = threading.Lock()


def tower_state(folders: Iterable[str] = ()) -> str:
    """Which tower :func:`shared_tower` would give, by place, size and time of its file; nothing is read."""
    found = MiniLMTower.find(folders)
    if found is None:
        return "lexical"
    status = os.stat(found.folder / "model.safetensors")
    return f"{found.folder}|{status.st_size}|{status.st_mtime_ns}"


def shared_tower(folders: Iterable[str] = ()) -> TextTower:
    """MiniLM where it is installed, else the lexical tower; the same object as long as the file does not change."""
    folders = tuple(folders)
    state = tower_state(folders)
    with _lock:  # nodes, the reader in the background and the panel ask from threads of their own
        if state not in _held:
            _held.clear()  # 90 MB: only the one in use
            _held[state] = MiniLMTower.find(folders) or LexicalTower()
        return _held[state]
