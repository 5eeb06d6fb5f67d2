"""A plain progress bar on standard error, and a first Ctrl-C that stops in good order."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from ..wording import shown

WIDTH, NAME = 24, 40
EVERY, EVERY_LINE = 0.2, 30.0  # seconds: on a terminal, and in a log file


class Bar:
    """Called with ``(done, total, name)``; ``step`` says what is being done. In a log it is a line now and then."""

    def __init__(self, stream: IO[str] | None = None):
        self.stream = stream or sys.stderr
        self.step = ""
        self._shown, self._wide = 0.0, 0
        self._terminal = self.stream.isatty()

    def __call__(self, done: int, total: int, name: str = "") -> None:
        moment, pause = time.monotonic(), EVERY if self._terminal else EVERY_LINE
        if moment - self._shown < pause:
            return
        self._shown = moment
        filled = WIDTH * done // max(total, 1)
        bar = "#" * filled + "." * (WIDTH - filled)
        text = f"{self.step} [{bar}] {done} of {total}  {shown(name)[-NAME:]}"
        self._write(f"\r{text:<{self._wide}}" if self._terminal else f"{text}\n")
        self._wide = len(text)

    def begin(self, step: str) -> None:
        """The next thing to do, told at once."""
        self.end()
        self.step, self._shown = step, 0.0
        self(0, 1)

    def end(self) -> None:
        """Make room for other text."""
        if self._terminal and self._wide:
            self._write("\r" + " " * self._wide + "\r")
        self._wide = 0

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


class Stop:
    """Whether to stop. The first Ctrl-C (or SIGTERM) asks for it, the second is Python's own."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def check(self, *_: object) -> None:
        """For work that is told instead of asking."""
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Signals are heard inside the block."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def hear(number: int, _: object) -> None:
            self.asked = True
            signal.signal(number, before[number])

        for number in before:
            signal.signal(number, hear)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
