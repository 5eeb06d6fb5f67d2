"""The libraries of this process whose weights are read later, one reader each."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from ..autolora_core.encode.towers import LexicalTower, TextTower
from ..autolora_core.library.encoders import find_encoders
from ..autolora_core.library.index import Library
from ..autolora_core.library.later import Later, note_words, unread, words_wait
from ..autolora_core.retrieve.prepare import warm
from .bridge_idle import prompts_waiting
from .tower import shared_tower

BY_LETTERS = (
    "Words are compared by their letters for now, and by what they mean once they are encoded, which is done in the"
    " background."
)
PACK_MODELS = Path(__file__).resolve().parents[1] / "models"
_readers: dict[str, Later] = {}
_lock = threading.Lock()


def read_later(library: Library) -> None:
    """Have the words of this view encoded, and its files read by their weights, whenever no prompt runs; where there is
    nothing to do nothing happens."""
    if library.scope is not None and (unread(library) or words_wait(library, tower_id())):
        _reader(library.folder).start(library.scope)


def tower_id() -> str:
    """Of the text tower that the nodes share."""
    from .bridge_paths import model_folders

    return shared_tower(model_folders()).id


def quick_tower(library: Library) -> TextTower | None:
    """The tower to search by while the library's words wait for the shared one; None: no need of another."""
    return LexicalTower() if words_wait(library, tower_id()) else None


def wanted_first(library: Library, names: Iterable[str]) -> None:
    """These were picked, or nearly: their weights are read first."""
    with _lock:
        reader = _readers.get(str(library.folder))
    if reader is not None:
        reader.want(names)


def _reader(folder: Path) -> Later:
    with _lock:
        if str(folder) not in _readers:
            _readers[str(folder)] = Later(folder, prompts_waiting, _words, _fit)
        return _readers[str(folder)]


class _Stopped(Exception):
    """Raised inside the encoding of words when a prompt came; never leaves this module."""


def _words(library: Library, should_stop: Callable[[], bool]) -> bool:
    from .bridge_paths import model_folders

    tower = shared_tower(model_folders())

    def tick(*_: object) -> None:
        if should_stop():
            raise _Stopped

    if not words_wait(library, tower.id):
        return True
    words = library.text_tower(tower)
    try:
        for family in sorted({entry.family for entry in library.entries()} - {"unknown"}):
            warm(library, family, words, tick)
    except _Stopped:
        return False
    note_words(library, tower.id)
    return True


def _fit(library: Library, should_stop: Callable[[], bool]) -> bool:
    from .bridge_paths import model_folders

    shipped = find_encoders([*model_folders(), PACK_MODELS], library.folder.name)
    library.fit(shared_tower(model_folders()), should_stop=should_stop, shipped=shipped)
    return True


@atexit.register
def _stop() -> None:
    for reader in list(_readers.values()):
        reader.stop(0.0)
