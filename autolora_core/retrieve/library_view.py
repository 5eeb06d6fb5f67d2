"""The pack's own library, seen as the retriever wants it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..encode.encoder import WeightEncoder
from ..encode.text_cache import CachedTower
from ..encode.towers import TextTower
from ..library import fit
from ..library.index import INDEX_FORMAT, Library
from .text_store import TextStore
from .view import EntryLike, VectorsLike


class LibraryAdapter:
    """A :class:`~.view.LibraryView` over an open :class:`Library`."""

    def __init__(self, library: Library):
        self.library = library
        if library.scope is not None:
            self.handle = library.handle(library.scope)
        else:
            self.handle = {
                "format": INDEX_FORMAT,
                "folder": str(library.folder),
                "generation": library.generation,
                "roots": {},
            }

    def entries(self, family: str | None = None, include_missing: bool = False) -> Sequence[EntryLike]:
        """See :class:`~.view.LibraryView`."""
        return self.library.entries(family, include_missing)

    def encoder(self, family: str, tower_id: str) -> WeightEncoder | None:
        """See :class:`~.view.LibraryView`."""
        return fit.current_encoder(self.library.store, family, tower_id)

    def vectors(self, family: str, encoder_id: str) -> VectorsLike:
        """See :class:`~.view.LibraryView`."""
        return self.library.vectors(family, encoder_id)

    def near_duplicates(self, family: str) -> Iterable[tuple[str, str]]:
        """See :class:`~.view.LibraryView`."""
        return [(pair.hash_a, pair.hash_b) for pair in self.library.near_duplicates(family)]

    def text_tower(self, tower: TextTower) -> CachedTower:
        """See :class:`~.view.LibraryView`; text vectors are kept in ``texts.sqlite`` beside the library."""
        return CachedTower(tower, TextStore(self.library.folder / "texts.sqlite"))
