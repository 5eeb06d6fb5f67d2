"""Small matrix work on one thread.

A LoRA's update is hundreds of products of tall, thin matrices, each done in microseconds. Sharing one of those out
costs more than it saves, and on a machine that is busy with something else OpenMP's threads spin waiting for each
other: twelve demo LoRAs, scanned beside two busy processes on two cores, took 55 s with two threads and 1 s with one.

``torch.set_num_threads`` counts for the thread that calls it (OpenMP, and MKL since PyTorch 1.10), and for every thread
that uses PyTorch for the first time later: that one takes the number last set by anybody, and keeps it. ComfyUI's
sampling must not begin its life on one thread because a map was being drawn, so what was last set is always the number
that there would be without us.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache

import numpy as np
import torch

_outside = threading.local()


@contextmanager
def one_thread(share: bool = True) -> Iterator[None]:
    """PyTorch's own thread count set to one inside, and back afterwards whatever happens. Without ``share``
    :func:`halves` is done by one thread, too: the second one is left to those who wait for an answer.

    It covers what PyTorch runs (MKL and OpenMP), for this thread and no other; NumPy's BLAS has a setting of its own
    and keeps it. May be nested, and may be used as a decorator.
    """
    outermost = getattr(_outside, "count", None)
    before = only_one()
    _outside.count = (before if outermost is None else outermost) if share else 1
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)
        _outside.count = outermost


def only_one() -> int:
    """Set PyTorch's thread count of the calling thread to one, for good; returns what it was. Other threads keep
    theirs, those that are yet to begin get what they would have got."""
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
        other = threading.Thread(target=torch.set_num_threads, args=(before,), name="autolora-threads")
        with suppress(RuntimeError):  # Python is ending: no thread begins any more
            other.start()
            other.join()
    return before


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``left @ right`` by PyTorch, whose threads :func:`one_thread` bounds; NumPy's would spin. Both writable."""
    return (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()


@cache
def _second() -> ThreadPoolExecutor:
    """One thread beside the one that asks. OpenMP's would spin while the machine is busy with something else: a scan
    of two milliseconds took sixty."""
    return ThreadPoolExecutor(1, thread_name_prefix="autolora-scan", initializer=only_one)


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
