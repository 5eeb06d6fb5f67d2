"""One row per file content, read once per SHA-256; and the entries that files and contents make together."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import AutoLoRAError, LoraError
from ..lora.file import LoraFile
from .entries import Entry, EntryText
from .garbage import uncollected
from .store import now

# Raise when lora/ reads files differently, so that libraries read their contents again (without hashing anew).
READER = 1
MAX_PROBLEMS, MAX_PROBLEM = 12, 300
_TEXT, _NUMBER = frozenset({str}), frozenset({int})


@dataclass(frozen=True)
class Content:
    """What is known of one content. ``modules`` lists ``(base module, adapter kind, rank or None)``."""

    hash: str
    size: int
    family: str = "unknown"
    variant: str = ""
    evidence: tuple[str, ...] = ()
    kind: str = "not_a_lora"
    partial: str | None = None
    rank: int | None = None
    halves: tuple[str, ...] = ()
    keys: tuple[int, int, int] = (0, 0, 0)  # used, ignored, unknown
    problems: tuple[str, ...] = ()
    modules: tuple[tuple[str, str, int | None], ...] = ()
    reader: int = READER


def damaged(error: Exception, digest: str, size: int) -> Content:
    """The row of a file that cannot be used, with its problem."""
    if isinstance(error, AutoLoRAError):
        problem = f"{error.message}. What to do: {error.fix}" if error.fix else error.message
    else:
        problem = f"the reader failed ({type(error).__name__}: {error})"
    return Content(digest, size, problems=_short([problem]))


def describe(lora: LoraFile, digest: str, size: int, by_header: bool = False) -> Content:
    """The row of an open file, after :meth:`LoraFile.check_values`; why it cannot be applied, if so, is a problem.

    ``by_header``: what can be told without reading a tensor.
    """
    entries = lora.entries if by_header else lora.modules
    modules = tuple((name, str(entry.kind), entry.rank) for name, entry in entries.items())
    problems = list(lora.problems)
    try:
        lora.require_usable()
    except LoraError as error:
        problems.insert(0, f"{error.message}. What to do: {error.fix}" if error.fix else error.message)
    return Content(
        digest,
        size,
        lora.family.name,
        lora.family.variant or "",
        tuple(lora.family.evidence),
        lora.kind,
        _plain(lora.partial) if lora.partial else None,
        lora.rank,
        tuple(sorted(lora.halves)),
        (len(lora.keys.used), len(lora.keys.ignored), len(lora.keys.unknown)),
        _short(problems),
        modules,
    )


def _plain(text: str) -> str:
    """Text that any encoder takes: a header may smuggle in lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _short(problems: Iterable[object]) -> tuple[str, ...]:
    return tuple(_plain(str(problem))[:MAX_PROBLEM] for problem in list(problems)[:MAX_PROBLEMS])


def store_layout(db: sqlite3.Connection, modules: Sequence) -> str:
    """Store a module list once, whoever has it; returns its id."""
    packed = json.dumps(modules).encode()
    layout = hashlib.sha256(packed).hexdigest()[:32]
    db.execute("INSERT OR IGNORE INTO layouts VALUES (?, ?)", (layout, zlib.compress(packed)))
    return layout


def read_layout(db: sqlite3.Connection, layout: str | None) -> list:
    """The module list ``layout``, as JSON gave it; empty for None."""
    row = db.execute("SELECT modules FROM layouts WHERE id = ?", (layout,)).fetchone() if layout else None
    return json.loads(zlib.decompress(row[0])) if row else []


def store_content(db: sqlite3.Connection, content: Content) -> None:
    """Insert or replace the row, and the module list unless another file has the same one."""
    layout = store_layout(db, content.modules) if content.modules else None
    lists = [json.dumps(part) for part in (content.evidence, content.halves, content.keys, content.problems)]
    db.execute(
        "INSERT OR REPLACE INTO contents VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            content.hash, content.size, content.family, content.variant, lists[0], content.kind, content.partial,
            content.rank, lists[1], layout, lists[2], lists[3], content.reader, now(),
        ),
    )  # fmt: skip


_COLUMNS = "hash, size, family, variant, evidence, kind, partial, rank, halves, keys, problems, reader"


def content_row(db: sqlite3.Connection, digest: str) -> Content | None:
    """The stored content, without its modules (see :func:`modules_of`)."""
    row = db.execute(f"SELECT {_COLUMNS} FROM contents WHERE hash = ?", (digest,)).fetchone()
    if row is None:
        return None
    evidence, halves, keys, problems = (tuple(json.loads(row[i])) for i in (4, 8, 9, 10))
    return Content(*row[:4], evidence, *row[5:8], halves, keys, problems, reader=row[11])


def modules_of(db: sqlite3.Connection, digest: str) -> tuple[tuple[str, str, int | None], ...]:
    """``(base module, adapter kind, rank)`` of every module of a content; empty when it has none."""
    row = db.execute("SELECT layout FROM contents WHERE hash = ?", (digest,)).fetchone()
    return tuple(tuple(module) for module in read_layout(db, row[0] if row else None))


def read_entries(db: sqlite3.Connection) -> list[Entry]:
    """Every row of the files table as an :class:`Entry`, sorted by name, then root."""
    with uncollected():
        return list(_entries(db))


def _entries(db: sqlite3.Connection) -> Iterator[Entry]:
    rows = db.execute(
        "SELECT name, path, f.hash, f.size, mtime_ns, family, variant, kind, partial, rank, missing, f.problems,"
        " c.problems, text, root, halves, autov3, base_model, preview, shadowed"
        " FROM files f LEFT JOIN contents c ON c.hash = f.hash ORDER BY name, root"
    )
    for (
        name, path, digest, size, mtime_ns, family, variant, kind, partial, rank, missing, problems, more, text, root,
        halves, autov3, base_model, preview, shadowed,
    ) in rows:  # fmt: skip
        yield _checked(Entry(
            name=os.fsdecode(name),
            path=os.fsdecode(path),
            hash=digest or "",
            size=size,
            mtime=mtime_ns / 1e9,
            family=family or "unknown",
            variant=variant or "",
            kind=kind or "not_a_lora",
            partial=partial,
            rank=rank,
            missing=bool(missing),
            problems=(*_listed(problems), *_listed(more)),
            text=EntryText.from_json(json.loads(text)),
            root=os.fsdecode(root),
            halves=_listed(halves),
            autov3=autov3,
            base_model=base_model,
            preview=os.fsdecode(preview),
            shadowed=bool(shadowed),
        ))  # fmt: skip


@lru_cache(1024)
def _listed(packed: str | None) -> tuple:
    """A list in JSON; most files have the same few."""
    return tuple(json.loads(packed or "[]"))


def _checked(entry: Entry) -> Entry:
    """The entry itself. Raises ValueError for one of wrong types, or whose file or preview lies outside its root: rows
    lead to files, and whoever wrote these was not this pack."""
    texts = (entry.hash, entry.family, entry.variant, entry.kind, entry.autov3, entry.base_model, *entry.problems,
             *entry.halves)  # fmt: skip
    numbers = (entry.size, *(() if entry.rank is None else (entry.rank,)))
    if not _TEXT.issuperset(map(type, texts)) or not _NUMBER.issuperset(map(type, numbers)):
        raise ValueError(f"the row of {entry.name[:80]!r} holds values of other types than were written")
    for place in filter(None, (entry.path, entry.preview)):
        inside = place.startswith(entry.root)
        if not inside or (".." in place and ".." in place[len(entry.root) :].replace("\\", "/").split("/")):
            raise ValueError(f"the row of {entry.name[:80]!r} leads out of its folder {entry.root[:80]!r}")
    return entry
