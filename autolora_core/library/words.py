"""What the files of a family are said to show, as an encoder is taught it: whoever learns from words takes these."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .entries import EntryText

FILE_NAME = "file name"  # the source of words that are nothing but a file's name
# What a file name says is worth less than what its maker wrote.
FILE_NAME_WEIGHT = 0.5
# A line under more than this share of the files, and under at least so many, tells none of them from the others.
COMMON_SHARE, COMMON_FILES = 0.25, 8


@dataclass(frozen=True)
class Words:
    """Captions of one content, best first; ``weight`` is how much they count; ``source`` where they come from."""

    lines: tuple[str, ...]
    weight: float
    source: str


def words_of(texts: Iterable[tuple[str, EntryText]]) -> dict[str, Words]:
    """Content → words, of ``(content, words of one of its places)``; of several places the one that says most counts.

    Contents of which nothing is said, or whose file could not be read, are left out.
    """
    best: dict[str, tuple[tuple, Words]] = {}
    for digest, text in texts:
        lines, named = text.captions, text.source == FILE_NAME
        if digest and lines:
            rank = (not named, len(lines), lines)
            if digest not in best or rank > best[digest][0]:
                best[digest] = rank, Words(lines, FILE_NAME_WEIGHT if named else 1.0, text.source)
    return {digest: words for digest, (_, words) in best.items()}


def plain(line: str) -> str:
    """A caption as it is compared with others: case, punctuation and spaces do not matter."""
    return " ".join(re.findall(r"\w+", line.casefold()))


def without_common(words: Mapping[str, Words]) -> tuple[dict[str, Words], list[str]]:
    """Leave out lines that stand under so many files that they tell none of them apart; the lines left out."""
    counts = Counter(form for said in words.values() for form in {plain(line) for line in said.lines})
    limit = max(COMMON_FILES - 1, COMMON_SHARE * len(words))
    common = {form for form, count in counts.items() if count > limit}
    kept = {}
    for digest, said in words.items():
        lines = tuple(line for line in said.lines if plain(line) not in common)
        if lines:
            kept[digest] = Words(lines, said.weight, said.source)
    return kept, sorted(common)
