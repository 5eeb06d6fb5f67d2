"""A safetensors file taken apart, so that it can lie in any part of it and still be whole elsewhere."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import dataclass, field
from typing import Any

from . import mutate

SIZES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U8": 1,
    "I8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "C64": 8,
    "F4": 1,
}
FLOATS = {"F32": struct.Struct("<f"), "F64": struct.Struct("<d"), "F16": struct.Struct("<e")}
VALUES = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-45, 3e38, -3e38, 65504.0, 1.0)


@dataclass
class Document:
    """``tensors``: (key, entry) in the order of the header, so that one key may stand there twice; ``head`` replaces
    the header's bytes when it is not None, ``length`` what the file says of their number."""

    tensors: list[tuple[str, Any]]
    metadata: Any
    data: bytearray
    head: bytes | None = None
    length: int | None = None
    more: list[tuple[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, data: bytes) -> Document | None:
        """The parts of a file that is whole enough; None for anything else."""
        length = int.from_bytes(data[:8], "little")
        header = mutate.loaded(data[8 : 8 + length]) if len(data) > 9 and length <= len(data) - 8 else None
        if not isinstance(header, dict):
            return None
        metadata = header.pop("__metadata__", None)
        return cls(list(header.items()), metadata, bytearray(data[8 + length :]))

    def write(self) -> bytes:
        pairs = [*([("__metadata__", self.metadata)] if self.metadata is not None else []), *self.tensors, *self.more]
        text = self.head
        if text is None:
            text = ("{" + ",".join(f"{json.dumps(key)}:{json.dumps(entry)}" for key, entry in pairs) + "}").encode()
        length = len(text) if self.length is None else self.length
        return (length % 2**64).to_bytes(8, "little") + text + self.data

    def repaired(self) -> Document:
        """Offsets and data as the shapes ask for, so that hostile names and values get past the header."""
        data, tensors = bytearray(), []
        for key, entry in self.tensors:
            if not _sound(entry):
                continue
            count = SIZES[entry["dtype"]]
            for size in entry["shape"]:
                count *= size
            if count > mutate.MOST_BYTES:
                continue
            start, stop = entry["data_offsets"] if _two(entry.get("data_offsets")) else (0, 0)
            own = bytes(self.data[start:stop])[:count]
            tensors.append((key, {**entry, "data_offsets": [len(data), len(data) + count]}))
            data += own + bytes(count - len(own))
        metadata = self.metadata
        if isinstance(metadata, dict):
            metadata = {key: entry if isinstance(entry, str) else json.dumps(entry) for key, entry in metadata.items()}
        return Document(list(dict(tensors).items()), metadata if isinstance(metadata, dict) else None, data)


def _two(offsets: Any) -> bool:
    return (
        isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(n, int) and 0 <= n < 2**40 for n in offsets)
    )


def _sound(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and entry["dtype"] in SIZES
        and isinstance(entry.get("shape"), list)
        and len(entry["shape"]) <= 8
        and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**20 for n in entry["shape"])
    )


def lie(rng: random.Random, data: bytes, keys: tuple[str, ...] = (), metadata: tuple[str, ...] = ()) -> bytes:
    """Another safetensors file, or nearly one. ``keys`` and ``metadata`` are names the reader knows."""
    document = Document.read(data)
    if document is None or rng.random() < 0.06:
        return mutate.bytes_of(rng, data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        rng.choice(_LIES)(rng, document, keys, metadata)
    if rng.random() < 0.45:
        document = document.repaired()
    made = document.write()
    return made if len(made) <= mutate.MOST_BYTES else data[: mutate.MOST_BYTES // 2]


def _entry(rng: random.Random, document: Document, *_: Any) -> None:
    """A field of a tensor's entry is something else."""
    if document.tensors:
        at = rng.randrange(len(document.tensors))
        key, entry = document.tensors[at]
        document.tensors[at] = key, mutate.changed(rng, entry, 1)


def _shape(rng: random.Random, document: Document, *_: Any) -> None:
    if document.tensors:
        at = rng.randrange(len(document.tensors))
        key, entry = document.tensors[at]
        if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
            shape = list(entry["shape"])
            sizes = (0, 1, 2, 3, 4, 8, 64, 320, 768, 2**31, 2**62, -1)
            kind = rng.randrange(4)
            if kind == 0:
                shape.append(rng.choice(sizes))
            elif kind == 1 and shape:
                shape[rng.randrange(len(shape))] = rng.choice(sizes)
            elif kind == 2:
                shape = shape[::-1]
            else:
                shape = [rng.choice(sizes) for _ in range(rng.randrange(5))]
            document.tensors[at] = key, {**entry, "shape": shape}


def _dtype(rng: random.Random, document: Document, *_: Any) -> None:
    if document.tensors:
        at = rng.randrange(len(document.tensors))
        key, entry = document.tensors[at]
        if isinstance(entry, dict):
            document.tensors[at] = key, {**entry, "dtype": rng.choice((*SIZES, "f32", "", "F8_E8M0", "X"))}


def _key(rng: random.Random, document: Document, keys: tuple[str, ...], *_: Any) -> None:
    """A tensor under another name: a known one, a hostile one, or a part of its own replaced."""
    if document.tensors:
        at = rng.randrange(len(document.tensors))
        key, entry = document.tensors[at]
        name, kind = str(key), rng.randrange(4)
        if kind == 0 and keys:
            name = rng.choice(keys)
        elif kind == 1:
            name = mutate.text(rng) + name
        elif kind == 2:
            parts = name.split(".")
            parts[rng.randrange(len(parts))] = (
                mutate.text(rng) if rng.random() < 0.5 else str(rng.choice(mutate.NUMBERS))
            )
            name = ".".join(parts)
        else:
            cut = rng.randrange(len(name) + 1)
            name = name[:cut] + mutate.text(rng) + name[cut:]
        document.tensors[at] = name, entry


def _twice(rng: random.Random, document: Document, *_: Any) -> None:
    if document.tensors:
        key, entry = rng.choice(document.tensors)
        again = key if rng.random() < 0.5 else str(key) + rng.choice(("", "2", " "))
        document.tensors.insert(rng.randrange(len(document.tensors) + 1), (again, entry))


def _gone(rng: random.Random, document: Document, *_: Any) -> None:
    if document.tensors:
        del document.tensors[rng.randrange(len(document.tensors))]


def _order(rng: random.Random, document: Document, *_: Any) -> None:
    rng.shuffle(document.tensors)


def _says(rng: random.Random, document: Document, keys: tuple[str, ...], metadata: tuple[str, ...]) -> None:
    """The metadata say something else."""
    if rng.random() < 0.2 or not isinstance(document.metadata, dict):
        document.metadata = mutate.value(rng)
        return
    name = rng.choice(metadata) if metadata and rng.random() < 0.8 else mutate.text(rng)
    old = document.metadata.get(name)
    kind, inner = rng.randrange(4), mutate.loaded(old.encode("utf-8", "replace")) if isinstance(old, str) else None
    if kind == 0 and inner is not None:
        document.metadata[name] = json.dumps(mutate.changed(rng, inner))
    elif kind == 1:
        document.metadata[name] = mutate.value(rng)
    elif kind == 2:
        document.metadata[name] = "[" * 60_000 if rng.random() < 0.1 else json.dumps(mutate.value(rng))
    else:
        document.metadata[name] = mutate.text(rng)


def _numbers(rng: random.Random, document: Document, *_: Any) -> None:
    """Values of a tensor are NaN, infinite, enormous, tiny or zero."""
    found = [entry for _, entry in document.tensors if _sound(entry) and entry["dtype"] in FLOATS]
    if not found:
        return
    entry = rng.choice(found)
    packer, offsets = FLOATS[entry["dtype"]], entry.get("data_offsets")
    if not _two(offsets) or not offsets[0] <= offsets[1] <= len(document.data):
        return
    count = (offsets[1] - offsets[0]) // packer.size
    number = rng.choice(VALUES)
    number = max(-65504.0, min(65504.0, number)) if packer.size == 2 and abs(number) < 1e39 else number
    for at in range(count) if rng.random() < 0.3 else [rng.randrange(max(count, 1))] * bool(count):
        packer.pack_into(document.data, offsets[0] + at * packer.size, number)


def _length(rng: random.Random, document: Document, *_: Any) -> None:
    """What the file says of its header's length."""
    document.length = rng.choice((0, 1, 2, 7, 8, 100 << 20, 64 << 20, 2**31, 2**63, 2**64 - 1, len(document.data)))


def _tail(rng: random.Random, document: Document, *_: Any) -> None:
    if rng.random() < 0.5:
        del document.data[len(document.data) - rng.choice((1, 2, 7, 64)) :]
    else:
        document.data += rng.randbytes(rng.choice((1, 8, 64)))


def _head(rng: random.Random, document: Document, *_: Any) -> None:
    """The header's text is broken as text."""
    whole = document.write()
    text = whole[8 : 8 + int.from_bytes(whole[:8], "little")] if document.length is None else b"{}"
    cases = (
        lambda: mutate.bytes_of(rng, text),
        lambda: text + b" " * rng.choice((1, 7, 4096)),
        lambda: b"\xef\xbb\xbf" + text,
        lambda: b'{"a":' + b"[" * rng.choice((100, 5000, 200_000)),
        lambda: text.replace(b'"F32"', b'"F32\\ud800"'),
        lambda: text.replace(b"[0,", b"[" + b"9" * rng.choice((20, 5000)) + b",", 1),
        lambda: text.replace(b"0", b"NaN", 1),
        lambda: text.replace(b"0", b"1e999", 1),
        lambda: text.decode("utf-8", "replace").encode("utf-16"),
        lambda: b"{" + b'"a":{},' * 20_000 + b'"b":{}}',
        lambda: b'{"a":[' + b"[]," * 60_000 + b"[]]}",
        lambda: b"{}" + text,
        lambda: text.replace(b"{", b"{\x00", 1),
        lambda: text.replace(b":", b" : ", 3),
        lambda: text[:-1],
    )
    document.head = rng.choice(cases)()


_LIES = (
    _entry,
    _entry,
    _entry,
    _shape,
    _shape,
    _dtype,
    _key,
    _key,
    _key,
    _twice,
    _gone,
    _order,
    _says,
    _says,
    _numbers,
    _numbers,
    _length,
    _tail,
    _head,
)
