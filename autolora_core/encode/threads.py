"""Small matrix work on one thread.

A LoRA's update is hundreds of products of tall, thin matrices, each done in microseconds. Sharing one of those out
costs more than it saves, and on a machine that is busy with something else OpenMP's threads spin waiting for each
other: twelve demo LoRAs, scanned beside two busy processes on two cores, took 55 s with two threads and 1 s with one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

_outside = threading.local()


@contextmanager
def one_thread(share: bool = True) -> Iterator[None]:
    """PyTorch's own thread count set to one inside, and back afterwards whatever happens. Without ``share``
    :func:`halves` is done by one thread, too: the second one is left to those who wait for an answer.

    It covers what PyTorch runs (MKL and OpenMP), for this thread; NumPy's BLAS has a setting of its own and keeps it.
    May be nested, and may be used as a decorator.
    """
    before, outermost = torch.get_num_threads(), getattr(_outside, "count", None)
    _outside.count = (before if outermost is None else outermost) if share else 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _outside.count = outermost


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``left @ right`` by PyTorch, whose threads :func:`one_thread` bounds; NumPy's would spin. Both writable."""
    return (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()


@cache
def _second() -> ThreadPoolExecutor:
    """One thread beside the one that asks. OpenMP's would spin while the machine is busy with something else: a scan
    of two milliseconds took sixty."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="autolora-scan")
    pool.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(torch.get_num_threads())  # MKL has one setting for all
    return pool


def halves(work: Callable[[int, int], None], count: int, share: bool) -> None:
    """``work(start, stop)`` for 0 to ``count``: in two halves side by side where the work is worth it (``share``) and
    PyTorch was given more than one thread, else at once."""
    allowed = getattr(_outside, "count", None) or torch.get_num_threads()
    if not share or count < 2 or allowed < 2:
        work(0, count)
        return
    other = _second().submit(work, count // 2, count)
    try:
        work(0, count // 2)
    finally:
        other.result()
