"""The libraries of this process whose weights are read later, one reader each."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from ..autolora_core.library.encoders import find_encoders
from ..autolora_core.library.index import Library
from ..autolora_core.library.later import Later, unread
from .bridge_idle import prompts_waiting
from .tower import shared_tower

PACK_MODELS = Path(__file__).resolve().parents[1] / "models"
_readers: dict[str, Later] = {}
_lock = threading.Lock()


def read_later(library: Library) -> None:
    """Have the files of this view read by their weights whenever no prompt runs; nothing to do, and nothing happens."""
    if library.scope is not None and unread(library):
        _reader(library.folder).start(library.scope)


def wanted_first(library: Library, names: Iterable[str]) -> None:
    """These were picked, or nearly: their weights are read first."""
    with _lock:
        reader = _readers.get(str(library.folder))
    if reader is not None:
        reader.want(names)


def _reader(folder: Path) -> Later:
    with _lock:
        if str(folder) not in _readers:
            _readers[str(folder)] = Later(folder, prompts_waiting, _fit)
        return _readers[str(folder)]


def _fit(library: Library, should_stop: Callable[[], bool]) -> None:
    from .bridge_paths import model_folders

    shipped = find_encoders([*model_folders(), PACK_MODELS], library.folder.name)
    library.fit(shared_tower(model_folders()), should_stop=should_stop, shipped=shipped)


@atexit.register
def _stop() -> None:
    for reader in list(_readers.values()):
        reader.stop(0.0)
