"""What goes between a scan and the processes that read files for it: frames of JSON and plain arrays, never pickles.

A frame is two lengths (8 bytes each, little-endian), JSON in ASCII (any name of a file fits, half characters too), and
the bytes of the arrays that the JSON lists as ``[type, shape]``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from ..encode.features import ModuleFeatures
from ..encode.response_factors import ResponseFactors
from .content import Content
from .entries import EntryText
from .metadata import Reading
from .reading import Encoded, Read
from .walk import Found

_LENGTHS = struct.Struct("<QQ")
MOST_BYTES = 256 << 20  # an answer has a few megabytes: a larger one is none
_ARRAYS = "arrays"
_TYPES = {dtype.str: dtype for dtype in map(np.dtype, (np.float16, np.float32, np.float64))}


class BadFrame(Exception):
    """What came is no frame: the other end broke off, or something else wrote into the pipe."""


def write_frame(stream: BinaryIO, head: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write one frame whole. Raises OSError when the other end is gone."""
    listed = [[array.dtype.str, list(array.shape)] for array in arrays]
    text = json.dumps({**head, _ARRAYS: listed}).encode("ascii")
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    data = memoryview(_LENGTHS.pack(len(text), len(body)) + text + body)
    while data:
        data = data[stream.write(data) :]
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """The next frame; None at the end of the stream. Raises :class:`BadFrame`."""
    start = _exactly(stream, _LENGTHS.size, True)
    if not start:
        return None
    text, body = _LENGTHS.unpack(start)
    if text + body > MOST_BYTES:
        raise BadFrame(f"a frame of {text + body} bytes")
    try:
        head = json.loads(_exactly(stream, text))
        return head, list(_arrays(_exactly(stream, body), head.pop(_ARRAYS)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadFrame(str(error)) from error


def _exactly(stream: BinaryIO, count: int, may_end: bool = False) -> bytes:
    """``count`` bytes, or none where the stream ``may_end`` here."""
    parts, left = [], count
    while left:
        part = stream.read(left)
        if not part:
            if may_end and left == count:
                return b""
            raise BadFrame("it broke off")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _arrays(body: bytes, listed: Sequence[tuple[str, list[int]]]):
    at = 0
    for kind, shape in listed:
        # A type is looked up: NumPy reads what stands for one as a language of its own.
        if kind not in _TYPES or not all(type(side) is int and 0 <= side <= MOST_BYTES for side in shape):
            raise BadFrame(f"an array of {kind} {shape}")
        count = math.prod(shape)
        yield np.frombuffer(body, _TYPES[kind], count, at).reshape(shape)
        at += count * _TYPES[kind].itemsize
    if at != len(body):
        raise BadFrame(f"{len(body)} bytes of arrays that take {at}")


# -- a request ---------------------------------------------------------------------------------------------------------


def request(item: Found, encode: bool, known: Content | None) -> dict[str, Any]:
    """What to read, as :func:`.reading.read_file` takes it."""
    return {"item": {**asdict(item), "sidecars": dict(item.sidecars)}, "encode": encode,
            "known": asdict(known) if known is not None else None}  # fmt: skip


def requested(head: Mapping[str, Any]) -> tuple[Found, bool, Content | None]:
    """Inverse of :func:`request`."""
    return Found(**head["item"]), bool(head["encode"]), _content(head["known"])


def _content(said: Mapping[str, Any] | None) -> Content | None:
    """JSON has lists where a content has tuples."""
    if said is None:
        return None
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    return Content(**{**made, "modules": tuple(tuple(module) for module in said["modules"])})


# -- an answer ---------------------------------------------------------------------------------------------------------


def answer(read: Read, words: Reading | None) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Head and arrays of what was read. The header's own words stay behind: ``words`` is what came of them."""
    arrays: list[np.ndarray] = []
    head = {
        "digest": read.digest, "bytes_read": read.bytes_read, "cost": read.cost,
        "content": asdict(read.content) if read.content is not None else None,
        "encoded": _packed(read.encoded, arrays) if read.encoded is not None else None,
        "words": asdict(words) if words is not None else None,
    }  # fmt: skip
    return head, arrays


def answered(head: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> tuple[Read, Reading | None]:
    """Inverse of :func:`answer`. Raises :class:`BadFrame`."""
    try:
        encoded = _unpacked(head["encoded"], list(arrays)) if head["encoded"] is not None else None
        words = head["words"]
        if words is not None:
            words = Reading(**{**words, "text": EntryText.from_json(words["text"])})
        size, waited = head["cost"]
        read = Read(head["digest"], _content(head["content"]), None, encoded, head["bytes_read"], (size, waited))
        return read, words
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise BadFrame(f"{type(error).__name__}: {error}") from error


def _packed(encoded: Encoded, arrays: list[np.ndarray]) -> dict[str, Any]:
    made: dict[str, Any] = {"features_problem": encoded.features_problem, "response_problem": encoded.response_problem}
    if encoded.features is not None:
        made["modules"], made["skipped"] = list(encoded.features.modules), encoded.features.skipped
        arrays += [encoded.features.rows, encoded.features.log_norms]
    if encoded.response is not None:
        made["spaces"] = list(encoded.response.rows)
        arrays += encoded.response.rows.values()
    return made


def _unpacked(said: Mapping[str, Any], arrays: list[np.ndarray]) -> Encoded:
    made = Encoded(features_problem=said["features_problem"], response_problem=said["response_problem"])
    if "modules" in said:
        modules, rows, norms = tuple(said["modules"]), arrays.pop(0), arrays.pop(0)
        if rows.ndim != 2 or norms.ndim != 1 or not len(modules) == len(rows) == len(norms):
            raise BadFrame(f"features of {len(modules)} modules have the shapes {rows.shape} and {norms.shape}")
        made.features = ModuleFeatures(modules, rows, norms, dict(said["skipped"]))
    if "spaces" in said:
        made.response = ResponseFactors(dict(zip(said["spaces"], arrays, strict=True)))
        if any(rows.ndim != 2 for rows in arrays):
            raise BadFrame("response factors that are no rows")
    return made
