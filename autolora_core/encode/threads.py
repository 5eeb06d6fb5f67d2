"""Small matrix work on one thread.

A LoRA's update is hundreds of products of tall, thin matrices, each done in microseconds. Sharing one of those out
costs more than it saves, and on a machine that is busy with something else OpenMP's threads spin waiting for each
other: twelve demo LoRAs, scanned beside two busy processes on two cores, took 55 s with two threads and 1 s with one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's own thread count set to one inside, and back afterwards whatever happens.

    It covers what PyTorch runs (MKL and OpenMP), for this thread; NumPy's BLAS has a setting of its own and keeps it.
    May be nested, and may be used as a decorator.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
