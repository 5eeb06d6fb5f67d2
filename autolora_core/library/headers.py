"""A file by its header alone: base, kind and words within a millisecond or so; its weights and its hash come later.

Files of one trainer and one set of options differ in their metadata and their values, not in the table of tensors in
their headers: what such a table says is worked out once, and checked once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

from ..errors import AutoLoRAError
from ..lora.file import LoraFile
from ..lora.header import MAX_HEADER_BYTES, header_of
from ..lora.modules import sort_modules
from ..lora.stated_base import stated_family
from ..portable import openable
from .content import Content, damaged, describe
from .entries import UNHASHED
from .one_pass import BEING_WRITTEN
from .reading import Read
from .walk import Found

MAX_TABLES = 256
MAX_ENDS = 16  # places looked at where the metadata may end
_START = b'{"__metadata__":'


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands there twice")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def unhashed_id(item: Found) -> str:
    """The id of a file's content until it is hashed; another one when the file changes."""
    place = f"{item.root}\0{item.name}\0{item.size}\0{item.mtime_ns}".encode("utf-8", "surrogateescape")
    return UNHASHED + hashlib.sha256(place).hexdigest()[:40]


class _Tables:
    """Table of tensors (digest), and what the metadata say of the base → what follows for the content, and how many
    bytes of tensors it speaks of."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple, tuple[Content, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple) -> tuple[Content, int] | None:
        with self._lock:
            return self._kept.get(key)

    def put(self, key: tuple, made: tuple[Content, int]) -> None:
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > MAX_TABLES:
                self._kept.popitem(last=False)


_tables = _Tables()


def read_headers(item: Found) -> Read:
    """What the header of a file says; ``bytes_read`` is 0, as nothing was hashed. Raises OSError where it cannot be
    had."""
    digest = unhashed_id(item)
    with open(openable(item.path), "rb", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        if not item.steady(before, before):
            raise OSError(BEING_WRITTEN)
        text = _text(stream, before.st_size)
    content, metadata = _content(text, item.path, before.st_size)
    return Read(digest, replace(content, hash=digest), metadata, None, 0)


def _text(stream, size: int) -> bytes:
    """The beginning of a file, header included where it has one."""
    start = stream.read(512)
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{" or length > min(size - 8, MAX_HEADER_BYTES):
        return start
    parts, left = [start], 8 + length - len(start)
    while left > 0 and (block := stream.read(left)):
        parts.append(block)
        left -= len(block)
    return b"".join(parts)[: 8 + length]


def _content(text: bytes, path: str, size: int) -> tuple[Content, Mapping[str, str] | None]:
    split = _split(text)
    key = None
    if split is not None:
        metadata, table = split
        key = (table, stated_family(metadata))
        known = _tables.get(key)
        if known is not None and len(text) + known[1] == size:
            return replace(known[0], size=size), metadata
    try:
        header = header_of(io.BytesIO(text), size, path)
        lora = LoraFile(header, sort_modules(header))
        content = describe(lora, "", size, by_header=True)
    except AutoLoRAError as error:
        return damaged(error, "", size), None
    except Exception as error:  # a file may be broken in a way nobody thought of; the scan has others to read
        return damaged(error, "", size), None
    if content.kind == "not_a_lora":
        return content, None
    if key is not None:
        _tables.put(key, (content, size - len(text)))
    return content, lora.metadata


def _split(text: bytes) -> tuple[dict[str, str], bytes] | None:
    """Metadata, and a digest of the table of tensors behind them; None where they do not come first or are odd."""
    if text[8 : 8 + len(_START)] != _START:
        return None
    start, end = 8 + len(_START), 0
    for _ in range(MAX_ENDS):
        end = text.find(b'},"', max(start, end)) + 1
        if not end:
            return None
        try:
            metadata = _DECODER.decode(text[start:end].decode("utf-8"))
            json.dumps(metadata, ensure_ascii=False).encode("utf-8")  # half characters are for the careful reader
        except (ValueError, RecursionError):
            continue  # this was in the middle of it, or it is odd
        if isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()):
            return metadata, hashlib.sha256(memoryview(text)[end:]).digest()
        return None
    return None
