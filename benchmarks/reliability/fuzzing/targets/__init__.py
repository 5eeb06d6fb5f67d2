"""What is fuzzed: a module a reader.

Each has ``CASES`` (of a full run), ``bound(size) -> bytes`` (the memory that the reader may take for an input of
``size`` bytes; twice as much is a failure), ``seeds(folder) -> list[bytes]`` (valid inputs, to begin with),
``make(rng, parent) -> bytes`` (a hostile one from another) and ``run(data, folder)``, which reads it: returns when it
is read or nothing, raises one of the pack's errors when it is refused, :class:`.oracle.Wrong` when what came out is not
what the bytes say.
"""

from __future__ import annotations

import importlib
from types import ModuleType

# Shares of the 100,000 cases of a full run are in the modules; the order is that of the table.
NAMES = (
    "header", "lora", "metadata", "library", "caches", "encoders", "gates", "clip", "pictures", "captions",
    "selection", "handle", "texts", "names", "graph", "folder",
    "previews", "wires", "frames",
)  # fmt: skip


def load(name: str) -> ModuleType:
    """The target ``name``."""
    return importlib.import_module(f"{__name__}.{name}")
