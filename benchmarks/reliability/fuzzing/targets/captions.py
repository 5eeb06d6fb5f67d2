"""Tables of captions: as text, and as a file."""

from __future__ import annotations

import random
from pathlib import Path

from autolora_core.train import captions

from .. import mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 12_000
PARTS = (
    "file",
    "caption",
    "otter.safetensors",
    ",",
    ";",
    "\t",
    "\n",
    "\r\n",
    '"',
    '""',
    "an otter, wet",
    "\ufeff",
    " ",
    "flux/fox",
    "\0",
    "\r",
)


def bound(size: int) -> int:
    return 8 * MIB + 100 * size


def seeds(folder: Path) -> list[bytes]:
    return [
        b'file,caption\notter.safetensors,an otter\nfox,"a fox, running",a red fox\n',
        b"otter;an otter\n",
        b"a\tb\tc\n",
    ]


def make(rng: random.Random, parent: bytes) -> bytes:
    if rng.random() < 0.4:
        return mutate.bytes_of(rng, parent)
    text = mutate.lines(rng, PARTS) * (rng.choice((300, 3000)) if rng.random() < 0.02 else 1)
    return text.encode("utf-8", "replace" if rng.random() < 0.9 else "surrogatepass")


def run(data: bytes, folder: Path) -> None:
    path = folder / "captions.csv"
    path.write_bytes(data)
    from_file = captions.read_table(path)
    text = data.decode("utf-8", "replace")
    if captions.table_path(text) is None:
        captions.read_table(text)
    for row in from_file:
        if not row.file or not row.captions or any(not one or len(one) > captions.MAX_CAPTION for one in row.captions):
            raise Wrong(f"a row without file or caption, or with one too long: {row!r:.200}")
    captions.match(from_file, ())
