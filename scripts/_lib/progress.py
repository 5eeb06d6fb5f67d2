"""One line of progress on a terminal, and plain lines where there is none."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

_BAR_WIDTH = 24
_REFRESH = 0.1  # seconds between redraws


class Progress:
    """A line that is redrawn in place; on a pipe or in CI only its last state is printed."""

    def __init__(self, label: str, out: TextIO | None = None) -> None:
        self.label = label
        self.out = out or sys.stdout
        self.started = time.monotonic()
        self._live = self.out.isatty()
        self._drawn = 0.0
        self._width = 0  # of what stands on the line now

    @property
    def seconds(self) -> float:
        """Seconds since this line began."""
        return time.monotonic() - self.started

    def bar(self, fraction: float, detail: str = "") -> None:
        """Show a bar, `fraction` in 0..1, with a word on what is happening."""
        full = round(min(max(fraction, 0.0), 1.0) * _BAR_WIDTH)
        self._draw(f"[{'#' * full}{'.' * (_BAR_WIDTH - full)}] {fraction:4.0%} {detail}")

    def tick(self, detail: str = "") -> None:
        """Show that something of unknown length goes on."""
        self._draw(f"… {self.seconds:.0f} s {detail}")

    def done(self, outcome: str) -> None:
        """End the line with its outcome."""
        self._write(f"{self.label} {outcome}", "\n")

    @property
    def live(self) -> bool:
        """Whether the line is redrawn in place."""
        return self._live

    def done_above(self, words: str) -> None:
        """Print ``words`` as a line that stays; the bar is drawn below it next time."""
        self._write(words, "\n")
        self._width = 0

    def _draw(self, text: str) -> None:
        now = time.monotonic()
        if not self._live or now - self._drawn < _REFRESH:
            return
        self._drawn = now
        width = shutil.get_terminal_size().columns - 1
        self._write(f"{self.label} {text}"[:width], "")

    def _write(self, text: str, end: str) -> None:
        # spaces, not an escape sequence, take the old words away: an old Windows console prints those as they are
        self.out.write(("\r" if self._live else "") + text.ljust(self._width) + end)
        self.out.flush()
        self._width = len(text)


class RunProgress:
    """Turns a graph's websocket events into a `Progress` bar: a node counts one, its own progress a part of one."""

    def __init__(self, progress: Progress, titles: dict[str, str]) -> None:
        """`titles`: node id → the words to show while it runs; its length is the whole."""
        self.progress, self.titles = progress, titles
        self.finished: set[str] = set()
        self.current = ""

    def __call__(self, kind: str, data: dict) -> None:
        """Take one websocket event."""
        within = 0.0
        if kind == "execution_cached":
            self.finished |= set(data.get("nodes", []))
        elif kind == "executing":
            self._move_to(data.get("node") or "")
        elif kind == "progress":
            self._move_to(data.get("node") or self.current)
            within = data["value"] / max(data["max"], 1)
        elif kind == "execution_success":
            self.finished |= set(self.titles)
        self.progress.bar(self.fraction(within), self.titles.get(self.current, ""))

    def fraction(self, within: float = 0.0) -> float:
        """How much is done, 0..1, when the current node is `within` of the way through."""
        done = len(self.finished & set(self.titles)) + (within if self.current not in self.finished else 0.0)
        return min(done / max(len(self.titles), 1), 1.0)

    def _move_to(self, node: str) -> None:
        if self.current and node != self.current:
            self.finished.add(self.current)
        self.current = node
