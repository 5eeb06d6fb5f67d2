"""The previews of an index as a part of the score: which are asked, and by which way to words."""

from __future__ import annotations

from typing import Any

from ..autolora_core.errors import TowerError
from ..autolora_core.previews.shelf import PreviewShelf, PreviewVectors, preview_vectors
from ..autolora_core.retrieve.picture_part import PictureSource

OFF, LEARNED = "off", "learned"
# Directions read last, by folder and tower: thousands of small files are read once.
_held: dict[tuple[str, str | None], tuple[str, PreviewVectors]] = {}
MOST_HELD = 4


def picture_source(library: Any, choice: str) -> PictureSource | None:
    """``choice``: off, learned, or the name of a file with a whole CLIP. Raises ``TowerError`` for one without text."""
    if choice == OFF:
        return None
    shelf = PreviewShelf(library.folder)
    if choice == LEARNED:
        return PictureSource(_vectors(shelf, None))
    tower = clip_tower(choice, "previews")
    if tower.text is None:
        raise TowerError(
            f"{choice} has no text half, so it has no words for what pictures show",
            key="previews",
            fix=f"choose a whole CLIP model, or {LEARNED}",
        )
    return PictureSource(_vectors(shelf, tower.id), tower.text)


def _vectors(shelf: PreviewShelf, tower: str | None) -> PreviewVectors:
    key, state = (str(shelf.folder), tower), shelf.state
    if key not in _held or _held[key][0] != state:
        _held.pop(key, None)
        while len(_held) >= MOST_HELD:
            del _held[next(iter(_held))]
        _held[key] = state, preview_vectors(shelf, tower)
    return _held[key][1]


def clip_tower(choice: str, key: str) -> Any:
    """The image tower in a file of ``bridge_paths.clip_files``; ``key`` is the input that names it."""
    from .bridge_paths import clip_path
    from .find_similar import image_tower

    path = clip_path(choice)
    if path is None:
        raise TowerError(f"the CLIP file {choice} is gone", key=key, fix="press R and choose again")
    return image_tower(path)
