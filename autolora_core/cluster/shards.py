"""Which files are read together by one worker, and what becomes of them when a worker is lost. No file is read here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A lost worker costs what it had in hand: at most so many files and so many bytes, a minute or two of reading.
MAX_FILES, MAX_BYTES = 64, 16 << 30
SHARDS_A_WORKER = 4  # at least, where there are files for it: the last shards decide how long all take
PARTS = 8  # a lost shard is tried again in so many parts, to find the file that did it, if one did
ALONE = 2  # workers that a file may cost when it is read alone


@dataclass(frozen=True)
class Shard:
    """Files (numbers in the list of those to read) for one worker; ``lost``: workers they cost as just this shard."""

    files: tuple[int, ...]
    lost: int = 0


def plan(sizes: Sequence[int], workers: int) -> list[Shard]:
    """Every file in one shard, in order. ``sizes`` in bytes; ``workers`` is how many are at work at a time."""
    most = max(1, min(MAX_FILES, len(sizes) // max(1, SHARDS_A_WORKER * workers)))
    shards: list[Shard] = []
    files: list[int] = []
    held = 0
    for number, size in enumerate(sizes):
        if files and (len(files) >= most or held + size > MAX_BYTES):
            shards.append(Shard(tuple(files)))
            files, held = [], 0
        files.append(number)
        held += size
    return [*shards, Shard(tuple(files))] if files else shards


class Ledger:
    """What is still to do. A shard whose worker was lost comes back in parts; a single file comes back :data:`ALONE`
    times less one and is then given up, so that a file that ends every process that opens it does not do so for ever.
    """

    def __init__(self, shards: Iterable[Shard]):
        self._waiting = deque(shards)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self) -> Shard:
        """The next shard, which is the caller's until it tells that it is lost."""
        return self._waiting.popleft()

    def lost(self, shard: Shard) -> int | None:
        """Try again what the worker had in hand, after everything else; the number of a file that is given up."""
        if len(shard.files) > 1:
            step = -(-len(shard.files) // PARTS)
            parts = (shard.files[at : at + step] for at in range(0, len(shard.files), step))
            self._waiting.extend(Shard(part) for part in parts)
            return None
        if shard.lost + 1 >= ALONE:
            return shard.files[0]
        self._waiting.append(Shard(shard.files, shard.lost + 1))
        return None
