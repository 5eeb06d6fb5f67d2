"""What a query of the panel may hold. Queries come over HTTP: nothing is taken that is not of its kind and size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import SelectionError

MOST_ROWS = 200  # of one page
MAX_TEXT = 400  # letters of a search, and of any other value
MAX_OFFSET = 10**8


@dataclass(frozen=True)
class Asked:
    """One query: ``library`` by name, ``hash`` of a content, and what the rows are chosen by."""

    library: str = ""
    query: str = ""
    family: str = ""
    kind: str = ""
    hash: str = ""
    offset: int = 0
    limit: int = 100

    @classmethod
    def of(cls, said: Mapping[str, str]) -> Asked:
        """Raises :class:`SelectionError`, naming the value, for what no panel asks."""
        texts = {key: _text(said, key) for key in ("library", "query", "family", "kind", "hash")}
        offset, limit = _number(said, "offset", 0, MAX_OFFSET), _number(said, "limit", 100, MOST_ROWS)
        return cls(**texts, offset=offset, limit=limit)


def _text(said: Mapping[str, str], key: str) -> str:
    text = said.get(key, "")
    if len(text) > MAX_TEXT:
        raise SelectionError(f"{key} is longer than {MAX_TEXT} letters", key=key, fix="shorten it")
    return text


def _number(said: Mapping[str, str], key: str, usual: int, most: int) -> int:
    text = said.get(key, "")
    if not text:
        return usual
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) > most:
        raise SelectionError(f"{key} is no number from 0 to {most}", key=key, fix="ask for another page")
    return int(text)
