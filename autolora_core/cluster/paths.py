"""Where the driver's folders lie on the workers (``--map``)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import LibraryError


@dataclass(frozen=True)
class PathMap:
    """Pairs ``(prefix here, prefix on the workers)``; the first that fits counts. Other paths stay as they are."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> PathMap:
        """From ``HERE=THERE`` a text. Raises :class:`LibraryError` for anything else."""
        pairs = []
        for text in texts:
            here, equals, there = text.partition("=")
            if not (here and equals and there):
                raise LibraryError("this is not HERE=THERE", key=text, fix="for example --map /mnt/loras=/srv/loras")
            pairs.append((os.path.abspath(here), there.rstrip("/\\") or there))
        return cls(tuple(pairs))

    def there(self, path: str) -> str:
        """``path`` as the workers reach it."""
        for here, there in self.pairs:
            if path == here or path.startswith(here.rstrip(os.sep) + os.sep):
                return there + path[len(here.rstrip(os.sep)) :]
        return path
