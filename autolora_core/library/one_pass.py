"""A file read once: every byte goes through one small buffer, is hashed there, and what is a LoRA's is encoded there.

What a module needs may lie far apart in a file; up to ``HELD_BYTES`` of tensors wait for their partners, the others
are read a second time at the end, module by module. Everything comes from one open file.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Set
from dataclasses import dataclass
from itertools import groupby
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..lora.file import LoraFile
from ..lora.header import MAX_HEADER_BYTES, Header, TensorInfo, header_of, torch_dtype
from ..lora.modules import sort_modules
from ..portable import openable

BLOCK = 1 << 20  # bytes read, hashed while they are in the cache, and looked up from to see whether to stop
PORTION = 16 << 20  # bytes of tensors that are encoded together
HELD_BYTES = 256 << 20
BEING_WRITTEN = "it is being written just now; scan again later"

# Types whose sums are cheap, by the header's names; numbers summed together, few enough for float16 not to overflow.
SUMMED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SUMMED_TOGETHER = 1 << 19

Tick = Callable[[int], None]
Take = Callable[[dict[str, Tensor]], None]


@dataclass(frozen=True)
class Stamp:
    """Size, time of change and, outside Windows, time of any change: a file put in its place has another one."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Pass:
    """One open file. :meth:`begin`, then :meth:`tensors`, then :meth:`rest`: in this order they read every byte once.

    ``tick(bytes)`` hears of every block and may raise. ``hashing`` off leaves :attr:`digest` empty. ``waited``: seconds
    that it took until the bytes were there.
    """

    def __init__(self, stream: BinaryIO, path: str, tick: Tick, hashing: bool = True):
        self.stream, self.path, self.tick = stream, path, tick
        self.before = os.fstat(stream.fileno())
        self.size, self.at, self.waited = self.before.st_size, 0, 0.0
        self._sum = hashlib.sha256() if hashing else None
        self._early = b""

    @property
    def digest(self) -> str:
        """SHA-256 of what was read so far, in hexadecimal digits."""
        return self._sum.hexdigest() if self._sum else ""

    def begin(self) -> None:
        """Read the header's bytes."""
        start = self._read(min(512, self.size))
        length = int.from_bytes(start[:8], "little")
        if start[8:9] == b"{" and len(start) < 8 + length <= min(self.size, 8 + MAX_HEADER_BYTES):
            start += self._read(8 + length - len(start))
        self._early = start

    def head(self) -> LoraFile:
        """The file by its header. Raises FileFormatError for what is no safetensors file."""
        header = header_of(io.BytesIO(self._early), self.size, self.path)
        return LoraFile(header, sort_modules(header))

    def tensors(self, header: Header, wanted: set[str], take: Take, glanced: Set[str] = frozenset()) -> list[str]:
        """Hand all ``wanted`` tensors to ``take``, some at a time in the order of the file; they are views of a buffer
        that is used again. The others are passed by.

        Returns those of ``glanced`` (of types in :data:`SUMMED`) that may hold NaN or Inf, and perhaps their
        neighbours.
        """
        space, odd = _room.space(), []
        for portion in _portions(header):
            start, stop = portion[0][1].start, portion[-1][1].stop
            if stop - start > len(space):
                space = bytearray(stop - start)
            buffer = memoryview(space)[: stop - start]
            self._fill(buffer, start)
            found = {key: _tensor(space, header, key, info, start) for key, info in portion if key in wanted}
            if found:
                take(found)
            odd += _not_finite(space, portion, glanced, start)
        return odd

    def rest(self) -> os.stat_result:
        """Read what is left to the end; what the file says of itself then. Raises OSError when it was written
        meanwhile."""
        self.stream.seek(self.at)
        while block := self._wait(self.stream.read, BLOCK):
            self._count(block)
        after = os.fstat(self.stream.fileno())
        if Stamp.of(after) != Stamp.of(self.before) or self.at != self.size:
            raise OSError(BEING_WRITTEN)
        return after

    def again(self, header: Header, key: str) -> Tensor:
        """One tensor, read a second time."""
        info = header.tensors[key]
        space = bytearray(max(1, info.stop - info.start))
        self.stream.seek(info.start)
        at, buffer = 0, memoryview(space)[: info.stop - info.start]
        while at < len(buffer) and (count := self.stream.readinto(buffer[at : at + BLOCK])):
            at += count
            self.tick(0)
        if at < len(buffer):
            raise OSError(BEING_WRITTEN)
        return _tensor(space, header, key, info, info.start)

    def _fill(self, buffer: memoryview, start: int) -> None:
        """The bytes from ``start`` on; the first of them may have come with the header's."""
        early = self._early[start:]
        buffer[: len(early[: len(buffer)])] = early[: len(buffer)]
        done = min(len(early), len(buffer))
        while done < len(buffer):
            count = self._wait(self.stream.readinto, buffer[done : done + BLOCK])
            if not count:
                raise OSError(BEING_WRITTEN)
            self._count(buffer[done : done + count])
            done += count

    def _read(self, count: int) -> bytes:
        parts = []
        while count and (block := self._wait(self.stream.read, count)):
            self._count(block)
            parts.append(block)
            count -= len(block)
        return b"".join(parts)

    def _wait(self, read: Callable[[Any], Any], what: Any) -> Any:
        begun = time.perf_counter()
        made = read(what)
        self.waited += time.perf_counter() - begun
        return made

    def _count(self, block: bytes | memoryview) -> None:
        if self._sum:
            self._sum.update(block)
        self.at += len(block)
        self.tick(len(block))


def open_pass(path: str, tick: Tick, hashing: bool = True) -> Pass:
    """Open ``path`` for one reading; close ``.stream`` at the end."""
    return Pass(open(openable(path), "rb", buffering=0), path, tick, hashing)


def _portions(header: Header) -> Iterator[list[tuple[str, TensorInfo]]]:
    """The tensors in the order of the file, in runs of at most :data:`PORTION` bytes (or one larger tensor)."""
    run: list[tuple[str, TensorInfo]] = []
    for key, info in sorted(header.tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if run and info.stop - run[0][1].start > PORTION:
            yield run
            run = []
        run.append((key, info))
    if run:
        yield run


def _tensor(space: bytearray, header: Header, key: str, info: TensorInfo, base: int) -> Tensor:
    """A view of ``space``, which begins at ``base``."""
    return _numbers(space, torch_dtype(header, key), info.start - base, info.stop - base).view(info.shape)


def _numbers(space: bytearray, dtype: torch.dtype, at: int, stop: int) -> Tensor:
    """The bytes from ``at`` to ``stop`` as numbers: a view, or a copy where they do not begin at a multiple of their
    size, as torch's views do."""
    if at == stop:
        return torch.zeros(0, dtype=dtype)
    count = (stop - at) // dtype.itemsize
    if at % dtype.itemsize:
        space, at = space[at:stop], 0
    return torch.frombuffer(space, dtype=dtype, count=count, offset=at)


def _not_finite(space: bytearray, portion: list[tuple[str, TensorInfo]], glanced: Set[str], base: int) -> Iterator[str]:
    """Of ``glanced`` in a portion those in a run of one type whose sum is no number: cheaper than every value, and
    NaN and Inf stay in a sum."""
    for dtype, alike in groupby(portion, key=lambda item: item[1].dtype):
        keys, places = zip(*alike, strict=True)
        at, stop = places[0].start - base, places[-1].stop - base
        if dtype not in SUMMED or glanced.isdisjoint(keys):
            continue
        run = _numbers(space, SUMMED[dtype], at, stop)
        if not all(math.isfinite(part.sum()) for part in run.split(SUMMED_TOGETHER)):
            yield from glanced & set(keys)


class _Room(threading.local):
    """The buffer of one thread, kept for its next file."""

    def __init__(self):
        self._space = bytearray()

    def space(self) -> bytearray:
        if len(self._space) < PORTION:
            self._space = bytearray(PORTION)
        return self._space


_room = _Room()


class Gathering:
    """Tensors of ``modules`` that wait for their partners, at most ``HELD_BYTES`` of them."""

    def __init__(self, lora: LoraFile, modules: Collection[str]):
        self.lora = lora
        self._module = {key: name for name in modules for key in lora.entries[name].keys.values()}
        self._held: dict[str, dict[str, Tensor]] = {}
        self._late: set[str] = set()
        self._bytes = 0

    @property
    def wanted(self) -> set[str]:
        """Keys of every tensor that a module uses."""
        return set(self._module)

    def complete(self, found: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Module → role → tensor of the modules that ``found`` completes; the rest is copied and waits."""
        touched = dict.fromkeys(self._module[key] for key in found)
        ready = {}
        for name in touched:
            keys = self.lora.entries[name].keys
            held = self._held.get(name, {})
            if name in self._late:
                continue
            have = {key: (held if key in held else found)[key] for key in keys.values() if key in held or key in found}
            if len(have) == len(set(keys.values())):
                self._bytes -= sum(tensor.nbytes for tensor in self._held.pop(name, {}).values())
                ready[name] = {role: have[key] for role, key in keys.items()}
            else:
                self._wait(name, {key: tensor for key, tensor in found.items() if self._module[key] == name})
        return ready

    def _wait(self, name: str, tensors: dict[str, Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._bytes + size > HELD_BYTES:
            self._late.add(name)
            self._bytes -= sum(tensor.nbytes for tensor in self._held.pop(name, {}).values())
            return
        self._bytes += size
        self._held.setdefault(name, {}).update({key: tensor.clone() for key, tensor in tensors.items()})

    def late(self, again: Callable[[str], Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The modules for which there was no room, one at a time, read again."""
        for name, entry in self.lora.entries.items():
            if name in self._late:
                yield name, {role: again(key) for role, key in entry.keys.items()}
