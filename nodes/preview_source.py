"""The previews of an index as a part of the score: which are asked, and by which way to words."""

from __future__ import annotations

from typing import Any

from ..autolora_core.errors import TowerError
from ..autolora_core.previews.shelf import PreviewShelf, preview_vectors
from ..autolora_core.retrieve.picture_part import PictureSource

OFF, LEARNED = "off", "learned"


def picture_source(library: Any, choice: str) -> PictureSource | None:
    """``choice``: off, learned, or the name of a file with a whole CLIP. Raises ``TowerError`` for one without text."""
    if choice == OFF:
        return None
    shelf = PreviewShelf(library.folder)
    if choice == LEARNED:
        return PictureSource(preview_vectors(shelf))
    tower = clip_tower(choice, "previews")
    if tower.text is None:
        raise TowerError(
            f"{choice} has no text half, so it has no words for what pictures show",
            key="previews",
            fix=f"choose a whole CLIP model, or {LEARNED}",
        )
    return PictureSource(preview_vectors(shelf, tower.id), tower.text)


def clip_tower(choice: str, key: str) -> Any:
    """The image tower in a file of ``bridge_paths.clip_files``; ``key`` is the input that names it."""
    from .bridge_paths import clip_path
    from .find_similar import image_tower

    path = clip_path(choice)
    if path is None:
        raise TowerError(f"the CLIP file {choice} is gone", key=key, fix="press R and choose again")
    return image_tower(path)
