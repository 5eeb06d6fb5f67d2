"""LORA_INDEX handles as they may come over the API: any JSON, any folder."""

from __future__ import annotations

import random
from pathlib import Path

from autolora_core.library.index import Library
from autolora_core.library.walk import Scope

from .. import library_world, mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 3_000
HERE = "@"  # stands for the sandbox in an input


def bound(size: int) -> int:
    return 32 * MIB + 60 * size


def _fresh() -> dict:
    handle = {"format": "autolora-index/1", "folder": f"{HERE}/base", "generation": 1, "under": "", "names": ""}
    return handle | {"roots": {"loras": f"{HERE}/loras"}}


def seeds(folder: Path) -> list[bytes]:
    library_world.build(folder)
    return [mutate.dumped(_fresh())]


def make(rng: random.Random, parent: bytes) -> bytes:
    made = mutate.as_json(rng, parent, _fresh)
    return (
        made if HERE.encode() in made or rng.random() < 0.5 else mutate.dumped(_fresh() | {"names": mutate.text(rng)})
    )


def run(data: bytes, folder: Path) -> None:
    given = mutate.loaded(data.replace(HERE.encode(), str(folder).encode()))
    with Library.from_handle(given) as library:
        entries = library.entries()
        again = Library.from_handle(library.handle)
        with again:
            if [entry.name for entry in again.entries()] != [entry.name for entry in entries]:
                raise Wrong("a handle made of a handle shows something else")
        scope = library.scope
        if not isinstance(scope, Scope) or any(entry.root not in scope.roots.values() for entry in entries):
            raise Wrong("entries of folders that the handle does not name")
