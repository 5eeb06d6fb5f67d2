"""Reads safetensors headers, and the tensors they name, without trusting them.

The format: 8 bytes little-endian header length n, n bytes of JSON, then the tensor data. A header can lie in many ways
(https://github.com/huggingface/safetensors lists attacks), so every number is checked against the real file size
before anything is allocated, and the tensors must cover the data exactly: no overlap, no hole, no tail.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import torch

from ..errors import FileFormatError
from ..portable import openable
from .sniff import shown, what_is_it

MAX_HEADER_BYTES = 64 * 1024 * 1024
_SNIFF_BYTES = 512
_MAX_RANK = 16  # dimensions of a tensor; real files stay below 6
MAX_TENSORS = 100_000  # real LoRAs have up to about 5,000, whole checkpoints about 20,000
# Commas and brackets of a header outside its texts, or quotation marks: a tensor has some ten of either. Values take
# memory by their number, thirty times that of the text where they are small.
_MAX_SIGNS = 16 * MAX_TENSORS
_TEXTS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_SHOWN = 200  # characters of a key in a message

# dtype name -> (bits a value, torch dtype or None where torch cannot hold it)
DTYPES: dict[str, tuple[int, torch.dtype | None]] = {
    "BOOL": (8, torch.bool),
    "U8": (8, torch.uint8),
    "I8": (8, torch.int8),
    "F8_E4M3": (8, torch.float8_e4m3fn),
    "F8_E5M2": (8, torch.float8_e5m2),
    "F8_E8M0": (8, getattr(torch, "float8_e8m0fnu", None)),
    "F8_E4M3FNUZ": (8, getattr(torch, "float8_e4m3fnuz", None)),
    "F8_E5M2FNUZ": (8, getattr(torch, "float8_e5m2fnuz", None)),
    "I16": (16, torch.int16),
    "U16": (16, getattr(torch, "uint16", None)),
    "F16": (16, torch.float16),
    "BF16": (16, torch.bfloat16),
    "I32": (32, torch.int32),
    "U32": (32, getattr(torch, "uint32", None)),
    "F32": (32, torch.float32),
    "I64": (64, torch.int64),
    "U64": (64, getattr(torch, "uint64", None)),
    "F64": (64, torch.float64),
    "C64": (64, torch.complex64),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file. ``start`` and ``stop`` are byte offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A validated header. ``size`` is the file's size in bytes when it was read."""

    path: str
    size: int
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: info.shape for key, info in self.tensors.items()}


def read_header(path: str | os.PathLike) -> Header:
    """Reads and checks the header of a safetensors file; no tensor data is read.

    Raises FileFormatError, which names the file, the fault and what to do.
    """
    with _open_regular(path) as file:
        return header_of(file, os.fstat(file.fileno()).st_size, path)


def header_of(file: BinaryIO, size: int, path: str | os.PathLike) -> Header:
    """:func:`read_header` of an open file of ``size`` bytes, or of its beginning."""
    text = _header_text(file, size, path)
    entries = _parse_json(text, path)
    if len(entries) > MAX_TENSORS:
        raise _bad(path, f"the header names {len(entries):,} tensors; more than {MAX_TENSORS:,} is not believable")
    metadata = _metadata(entries.pop("__metadata__", {}), path)
    data_start = 8 + len(text)
    tensors = {key: _tensor_info(key, entry, data_start, size, path) for key, entry in entries.items()}
    _check_cover(tensors, data_start, size, path)
    return Header(os.fspath(path), size, tensors, metadata)


def read_tensors(header: Header, keys: Iterable[str]) -> dict[str, torch.Tensor]:
    """Reads the named tensors, each in its stored dtype, on the CPU, as copies of its own.

    Raises FileFormatError when the file has changed since its header was read, or for a dtype torch cannot hold.
    """
    with _open_regular(header.path) as file:
        if os.fstat(file.fileno()).st_size != header.size:
            raise _bad(header.path, "the file changed while it was being read", fix="try again.")
        return {key: _read_one(file, header, key) for key in keys}


def _read_one(file: BinaryIO, header: Header, key: str) -> torch.Tensor:
    info = header.tensors[key]
    dtype = torch_dtype(header, key)
    if info.start == info.stop:
        return torch.zeros(info.shape, dtype=dtype)
    file.seek(info.start)
    buffer = bytearray(info.stop - info.start)
    if file.readinto(buffer) != len(buffer):
        raise _bad(header.path, f"the data of {key!r} is cut short", fix="download it again.")
    return torch.frombuffer(buffer, dtype=dtype).reshape(info.shape)


def torch_dtype(header: Header, key: str) -> torch.dtype:
    """What torch calls the type of a tensor. Raises FileFormatError where it has none."""
    dtype = DTYPES[header.tensors[key].dtype][1]
    if dtype is None:
        fix = "convert the file to F16 or BF16."
        raise _bad(header.path, f"this PyTorch cannot hold values of type {header.tensors[key].dtype}", key, fix)
    return dtype


def _bad(path: str | os.PathLike, message: str, key: str | None = None, fix: str | None = None) -> FileFormatError:
    short = key if key is None or len(key) <= _MAX_SHOWN else key[:_MAX_SHOWN] + "…"
    return FileFormatError(message, path=shown(path), key=short, fix=fix or "download it again, or remove it.")


def _open_regular(path: str | os.PathLike) -> BinaryIO:
    try:
        mode = os.stat(openable(path)).st_mode
        if stat.S_ISDIR(mode):
            raise _bad(path, "this is a folder, not a file", fix="give the path of the .safetensors file inside it.")
        if not stat.S_ISREG(mode):
            raise _bad(path, "this is a pipe, socket or device, not a file", fix="remove it from the folder.")
        return open(openable(path), "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise _bad(path, f"the file cannot be opened: {reason}", fix="check that it exists and may be read.") from error


def _header_text(file: BinaryIO, size: int, path: str | os.PathLike) -> bytes:
    if size == 0:
        raise _bad(path, "the file is empty (0 bytes)")
    head = file.read(_SNIFF_BYTES)
    length = int.from_bytes(head[:8], "little") if len(head) >= 8 else -1
    if len(head) < 9 or head[8:9] != b"{" or not 2 <= length <= size - 8:
        raise _not_safetensors(head, length, size, path)
    if length > MAX_HEADER_BYTES:
        raise _bad(path, f"the header claims {length:,} bytes; more than {MAX_HEADER_BYTES:,} is not believable")
    file.seek(8)
    text = file.read(length)
    texts = text.count(b'"') - text.count(b'\\"')
    if texts > _MAX_SIGNS or (_signs(text) > _MAX_SIGNS and _signs(_TEXTS.sub(b"", text)) > _MAX_SIGNS):
        raise _bad(path, f"the header of {length:,} bytes holds more values than {MAX_TENSORS:,} tensors have")
    return text


def _signs(text: bytes) -> int:
    return sum(text.count(sign) for sign in (b",", b"[", b"{"))


def _not_safetensors(head: bytes, length: int, size: int, path: str | os.PathLike) -> FileFormatError:
    found = what_is_it(head)
    if found is not None:
        return _bad(path, f"this is not a safetensors file but {found[0]}", fix=found[1])
    if size < 10:
        return _bad(path, f"the file has only {size} bytes; a safetensors file has at least 10")
    if head[8:9] == b"{" and length > size - 8:
        return _bad(path, f"the header claims {length:,} bytes but the file has {size:,}: it is truncated or it lies")
    return _bad(path, "this is not a safetensors file: it does not start with a header")


class _DuplicateKeyError(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise _DuplicateKeyError(key)
        result[key] = value
    return result


def _no_constants(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _parse_json(text: bytes, path: str | os.PathLike) -> dict[str, object]:
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
        if b"\\u" in text:  # half a character, as "\\ud800": text that no other reader takes, and none can print
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except _DuplicateKeyError as error:
        raise _bad(path, "the header names a key twice", key=str(error)) from error
    except UnicodeError as error:
        raise _bad(path, "the header is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"the header is not valid JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise _bad(path, "the header is not a JSON object")
    return parsed


def _metadata(value: object, path: str | os.PathLike) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _bad(path, "the metadata is not a table of texts", key="__metadata__")
    for key, entry in value.items():
        if not isinstance(entry, str):
            raise _bad(path, f"metadata {key!r} is a {type(entry).__name__}, not a text", key="__metadata__")
    return value


def _are_counts(values: list) -> bool:
    for value in values:
        if type(value) is not int or value < 0:  # not a bool either
            return False
    return True


def _tensor_info(key: str, entry: object, data_start: int, size: int, path: str | os.PathLike) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _bad(path, "a tensor must have exactly dtype, shape and data_offsets", key=key)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _bad(path, f"unknown dtype {dtype!r}", key=key)
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not _are_counts(shape):
        raise _bad(path, f"the shape {str(shape)[:80]} is not a list of at most {_MAX_RANK} sizes", key=key)
    if not isinstance(offsets, list) or len(offsets) != 2 or not _are_counts(offsets):
        raise _bad(path, f"the offsets {str(offsets)[:80]} are not two byte positions", key=key)
    start, stop = data_start + offsets[0], data_start + offsets[1]
    if start > stop or stop > size:
        raise _bad(path, f"bytes {offsets[0]} to {offsets[1]} lie outside the file of {size:,} bytes (truncated?)", key)
    bits = math.prod(shape) * DTYPES[dtype][0]
    if bits != 8 * (stop - start):
        need = f"{bits / 8:g} bytes" if bits < 2**80 else "more bytes than any file has"
        given = f"shape {str(shape)[:80]} of {dtype} needs {need}"
        raise _bad(path, f"{given}, the file gives {stop - start}", key=key)
    return TensorInfo(dtype, tuple(shape), start, stop)


def _check_cover(tensors: dict[str, TensorInfo], data_start: int, size: int, path: str | os.PathLike) -> None:
    end = data_start
    for key, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start < end:
            raise _bad(path, "this tensor overlaps another one", key=key)
        if info.start > end:
            raise _bad(path, f"{info.start - end} bytes before this tensor belong to nothing (a hole)", key=key)
        end = info.stop
    if end != size:
        raise _bad(path, f"{size - end} bytes at the end of the file belong to no tensor")
