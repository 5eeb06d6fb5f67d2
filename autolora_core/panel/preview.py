"""The picture of one LoRA: the preview beside its file, or the sample that was drawn for it in the index folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from ..library.entries import Entry
from ..library.index import Library
from ..previews.shelf import FOLDER, SUFFIXES
from .catalogue import catalogue_of

MAX_BYTES = 16 << 20
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_HEADS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"RIFF....WEBPVP8", re.DOTALL), "image/webp"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
)


def preview_of(library: Library, digest: str, roots: Iterable[str]) -> tuple[bytes, str] | None:
    """``(bytes, content type)`` of a content that the index knows, or None. ``roots``: ComfyUI's loras folders; a
    picture anywhere else is not read, whatever the index says."""
    catalogue, folders = catalogue_of(library), [_normal(root) for root in roots]
    for place in catalogue.by_hash.get(digest, ()):
        entry = catalogue.entries[place]
        found = read_picture_file(entry.preview) if _belongs(entry, folders) else None
        if found is not None:
            return found
    if digest in catalogue.by_hash and re.fullmatch(r"[0-9a-f]{64}", digest):
        drawn = (read_picture_file(str(library.folder / FOLDER / f"{digest}{end}")) for end in SUFFIXES)
        return next(filter(None, drawn), None)
    return None


def _belongs(entry: Entry, folders: list[str]) -> bool:
    """Whether the preview lies beside its LoRA below one of the loras folders."""
    path = _normal(entry.preview) if entry.preview else ""
    beside = bool(path) and os.path.dirname(path) == os.path.dirname(_normal(entry.path))
    ends = path.lower().endswith(ENDINGS)
    return beside and ends and any(path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def _normal(path: str) -> str:
    return os.path.normcase(os.path.abspath(path))


def read_picture_file(path: str) -> tuple[bytes, str] | None:
    """A picture's bytes and what they are by their first ones; None for anything else, or larger than 16 MB."""
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > MAX_BYTES:
            return None
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError):
        return None
    kind = next((kind for head, kind in _HEADS if head.match(data)), None)
    return (data, kind) if kind and len(data) <= MAX_BYTES else None
