"""What the library says about a file, and what a scan says about itself. Plain data, no database."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

from .names import meaningful_name

# Marks the id of a content that was not hashed: it belongs to one place, and is no hexadecimal number.
UNHASHED = "~"
_TEXT = frozenset({str})


def is_unhashed(digest: str | None) -> bool:
    """Whether an id stands for a file of which only the header was read."""
    return bool(digest) and digest.startswith(UNHASHED)


@dataclass(frozen=True)
class EntryText:
    """What words say about a LoRA, merged from its header, its sidecars and its file name (``source`` says which)."""

    title: str = ""
    tags: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    description: str = ""
    source: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        """What a text tower is given, one line a kind of words: title, tags, triggers of real words, description."""
        triggers = [trigger for trigger in self.triggers if meaningful_name(trigger)]
        lines = (self.title, ", ".join(self.tags[:12]), ", ".join(triggers[:3]), self.description[:200])
        return tuple(dict.fromkeys(line for line in (" ".join(line.split()) for line in lines) if line))

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> EntryText:
        """Inverse of :meth:`to_json`. Raises TypeError or AttributeError for what is none."""
        get = data.get  # a hundred thousand are read at a time
        title, description, source = get("title", ""), get("description", ""), get("source", "")
        tags, triggers = tuple(get("tags", ())), tuple(get("triggers", ()))
        if not _TEXT.issuperset(map(type, (title, description, source, *tags, *triggers))):
            raise TypeError("words that are no texts")
        return cls(title, tags, triggers, description, source)


@dataclass(frozen=True)
class Entry:
    """One LoRA file. ``name`` is relative to its loras root, with the system's separator, as ComfyUI's combo shows it.

    ``hash`` is the SHA-256 of the content ("" when the file could not be read), ``mtime`` seconds since 1970,
    ``rank`` the largest rank of its modules or None. ``base_model``: what sidecars and header call its base, the surest
    first, "; " between them.
    """

    name: str
    path: str
    hash: str
    size: int
    mtime: float
    family: str
    variant: str
    kind: str
    partial: str | None
    rank: int | None
    missing: bool
    problems: tuple[str, ...]
    text: EntryText
    root: str = ""
    halves: tuple[str, ...] = ()
    autov3: str = ""
    base_model: str = ""
    preview: str = ""
    shadowed: bool = False

    @property
    def by_header(self) -> bool:
        """Whether only its header was read so far: ``hash`` is an id of this place then, not of the content."""
        return is_unhashed(self.hash)

    @property
    def autov2(self) -> str:
        """Civitai's short hash: the first ten digits of the SHA-256; "" while that is not known."""
        return "" if self.by_header else self.hash[:10]


@dataclass
class ScanReport:
    """What a scan found. ``bytes_read`` counts the bytes hashed; ``stopped`` is True when it was told to stop."""

    added: int = 0
    changed: int = 0
    renamed: int = 0
    unchanged: int = 0
    returned: int = 0
    missing: int = 0
    shared: int = 0
    encoded: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    stopped: bool = False
    offline: list[str] = field(default_factory=list)
    families: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def files(self) -> int:
        """Files looked at and present."""
        return self.added + self.changed + self.renamed + self.unchanged + self.returned

    @property
    def bytes_per_second(self) -> float:
        return self.bytes_read / self.seconds if self.seconds > 0 else 0.0
