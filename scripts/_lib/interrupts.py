"""Ctrl-C and a polite kill become one exception, and never land between starting a process and remembering it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_WATCHED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """The user or the system asked this script to stop; ``signum`` says how."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")

    @property
    def exit_code(self) -> int:
        """The shell's convention for a process ended by a signal."""
        return 128 + self.signum


def install_handlers() -> None:
    """Raise `Interrupted` in the main thread on SIGINT, SIGTERM, SIGHUP (unless `nohup` has it ignored) and, on
    Windows, SIGBREAK.
    """

    def raise_interrupted(signum: int, _frame: object) -> None:
        raise Interrupted(signum)

    for signum in _WATCHED:
        if signum != getattr(signal, "SIGHUP", None) or signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, raise_interrupted)


@contextmanager
def shielded(*, deliver: bool = True) -> Iterator[None]:
    """Hold signals back for the length of the block, which must be short.

    Args:
        deliver: raise what came in when the block ends. False drops it: for cleaning up, when a second
            Ctrl-C would only leave a half-stopped process behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only: nothing to hold back here
        return
    pending: list[int] = []
    before = {signum: signal.signal(signum, lambda number, _frame: pending.append(number)) for signum in _WATCHED}
    try:
        yield
    finally:
        for signum, handler in before.items():
            # None is a handler that was not set from Python; the default is the nearest we can put back
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
    if deliver and pending:
        signal.raise_signal(pending[0])
