"""Which LoRA a name means that somebody wrote: in pinned, banned, or in the choices of cards.

The page has the same rules (web/cards/choices.js), so that a card shows what the node does; tests compare the two.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

ENDING = ".safetensors"
MOST_BESIDE = 16  # names that a card is told of
# What JavaScript's trim() takes off, and not what str.strip() does.
_BLANKS = "\t\n\v\f\r \xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000\ufeff"


def lines_of(text: str) -> tuple[str, ...]:
    """Lines that hold something, without blanks around them. Only \\n, \\r and both end a line: file names may hold the
    other signs that ``str.splitlines`` splits at."""
    return tuple(line.strip(_BLANKS) for line in re.split(r"\r\n|\n|\r", text) if line.strip(_BLANKS))


def spelled(name: str) -> str:
    """Separators of any system alike, and letters with marks as one sign: a Mac's disks keep the two apart."""
    name = name.replace("\\", "/")
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def lowered(name: str) -> str:
    """:func:`spelled`, whatever the case. By ``lower``, which JavaScript has too, and not by ``casefold``."""
    return spelled(name).lower()


def plain(name: str) -> str:
    """:func:`lowered`, without the ending."""
    return lowered(name).removesuffix(ENDING)


def closest(asked: str, known: Sequence[str], whole: bool = False) -> list[str]:
    """The entries of ``known`` that ``asked`` may mean, by the first of these rules that finds any: the name itself,
    the name without ending, the same in other case; unless ``whole``, the end of a longer path, the same in other
    case. Some disks keep names apart that differ by case alone, so more than one entry means that none is sure."""
    rules: list[tuple[Callable[[str], str], bool]] = [(spelled, False), (_bare, False), (plain, False)]
    for form, ends in rules if whole else [*rules, (_bare, True), (plain, True)]:
        wanted = form(asked)
        found = [name for name in known if (form(name).endswith("/" + wanted) if ends else form(name) == wanted)]
        if found:
            return found
    return []


def _bare(name: str) -> str:
    name = spelled(name)
    return name[: -len(ENDING)] if name.lower().endswith(ENDING) else name


def last(name: str) -> str:
    """:func:`plain`, without folders."""
    return plain(name).rpartition("/")[2]


class Names:
    """The names of a library, to be asked for one of them."""

    def __init__(self, names: Iterable[str]):
        self._by_last: dict[str, list[str]] = {}
        for name in dict.fromkeys(names):
            self._by_last.setdefault(last(name), []).append(name)

    def meant(self, asked: str, whole: bool = False) -> list[str]:
        """As :func:`closest`."""
        return closest(asked, self.namesakes(asked), whole)

    def namesakes(self, asked: str) -> list[str]:
        """Files of that name in any folder and case."""
        return self._by_last.get(last(asked), [])

    def beside(self, name: str, own: Names) -> list[str]:
        """Other files that a line for this one may mean, at most :data:`MOST_BESIDE`: those that differ by case alone,
        then those of other folders among the names of the same base (``own``), which pinning goes by."""
        twins = [other for other in self.namesakes(name) if other != name and plain(other) == plain(name)]
        rest = [other for other in own.namesakes(name) if plain(other) != plain(name)]
        return [*twins, *sorted(rest, key=lambda other: (other.count("/"), other))][:MOST_BESIDE]
