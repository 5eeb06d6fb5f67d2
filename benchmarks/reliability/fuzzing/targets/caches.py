"""What lies beside a library: vectors, grid, texts, versions, map, encoder. Damaged, it changes no answer."""

from __future__ import annotations

import random
from pathlib import Path

from autolora_core.library.index import Library
from autolora_core.library.versions import list_versions
from autolora_core.panel.map import map_of

from .. import document, library_world, mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 300
_truth: dict[str, str] = {}


def bound(size: int) -> int:
    return 96 * MIB + 40 * size


def _names(folder: Path) -> list[str]:
    return sorted(
        path.name for path in (folder / "base").iterdir() if path.name not in ("library.sqlite", "writer.lock")
    )


def seeds(folder: Path) -> list[bytes]:
    library_world.build(folder)
    with Library.open(folder / "base") as library:
        list_versions(library, "emoji")
        map_of(library, "emoji")
    for path in (folder / "base").glob("*-wal"):
        path.unlink()
    return [
        f"{name}\n".encode() + (folder / "base" / name).read_bytes()
        for name in _names(folder)
        if not name.endswith("-shm")
    ]


def make(rng: random.Random, parent: bytes) -> bytes:
    name, _, content = parent.partition(b"\n")
    if name.endswith(b".safetensors") and rng.random() < 0.7:
        content = document.lie(
            rng,
            content,
            ("rows", "X", "dual", "places", "home"),
            ("hashes", "sha256", "version", "id", "schema", "texts", "state", "labels"),
        )
    elif name.endswith(b".json") and rng.random() < 0.7:
        content = mutate.as_json(rng, content, lambda: mutate.loaded(content) or {})
    else:
        content = mutate.bytes_of(rng, content)
    return name + b"\n" + content


def run(data: bytes, folder: Path) -> None:
    name, _, content = data.partition(b"\n")
    work = library_world.copy(folder)
    if name.decode("ascii", "replace") in _names(folder):
        (work / name.decode()).write_bytes(content)
    with Library.open(work) as library:
        found = library_world.ask(library)
        versions = list_versions(library, "emoji")
        drawn = map_of(library, "emoji")
    answer = repr([(pick.name, round(pick.score, 5), pick.role) for pick in (*found.picks, *found.misses)])
    answer += repr([(pair.a, pair.b, pair.relation.kind) for pair in versions.pairs])
    answer += repr((drawn.labels, drawn.home.tolist(), drawn.places.round(2).tolist(), drawn.hashes[:, 0].tolist()))
    lost = name.startswith(b"encoder-")  # without its file a library answers by words, and says so
    if answer != _truth.setdefault("lost" if lost and found.encoder is None else "whole", answer):
        raise Wrong(f"a damaged {name.decode('ascii', 'replace')} changes the answer to {answer:.200}")
