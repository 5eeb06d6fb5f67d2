"""Tables of thousands of small objects made without Python's collector looking through all others meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No collection of cyclic garbage inside, and as before afterwards. For a fraction of a second: what is made inside
    is no garbage, and a full collection beside a loaded PyTorch takes 60 ms."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
