"""Words that every report shares: counts with their plural, lists that stop in time, names any display can take."""

from __future__ import annotations

import ntpath
import re
from collections.abc import Iterable


def counted(number: int, word: str) -> str:
    """``counted(1, "layer")`` → ``"1 layer"``, ``counted(2, "layer")`` → ``"2 layers"``. Regular plurals only."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first ``most`` names in the order given, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def lines_apart(report: str) -> str:
    """The same text for Preview as Text, which shows Markdown and would run lines together: two spaces at a line's
    end keep the next one apart, and no plain display shows them."""
    return re.sub(r"(?<=\S)\n(?=[^\n])(?!- )", "  \n", report)


# Signs that move a terminal's cursor or show a text in another order than it has; lines and tabs stay.
_TRICKS = dict.fromkeys(
    [*(set(range(32)) - {9, 10, 13}), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"
)


def shown(name: str) -> str:
    """A file name that any display can take; bytes that are not text, and signs that play tricks, become �."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").translate(_TRICKS)


def last_name(folder: str) -> str:
    """The last part of a path as either system writes it: an index may have come from another machine."""
    return ntpath.basename(folder.rstrip("/\\"))
