"""ComfyUI's progress bar for work of several steps, with a chance to cancel at every step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..autolora_core.pace import Pace
from .bridge_events import send


class Bar:
    """Called with ``(done, total, name)`` by whatever runs; raises ComfyUI's interrupt when the user pressed Cancel.

    ``shares`` says how much of the whole each step is likely to take; set ``step`` when the next one begins. With
    ``names`` of the steps the page is also told which one it is, how far it is, how fast and for how long yet.
    """

    INTERVAL = 0.1  # seconds; every message goes to the browser: ten a second are enough

    def __init__(self, shares: Sequence[float] = (1.0,), names: Sequence[str] = ()) -> None:
        from . import bridge_paths

        self._interrupt, self._update = bridge_paths.throw_if_interrupted, bridge_paths.progress_bar(1000)
        self._shares, self.step = tuple(shares), 0
        self._shown, self._share = -1.0, 0.0
        self._names, self._pace, self._node = tuple(names), Pace(), bridge_paths.running_node()

    def __call__(self, done: int, total: int, name: str = "") -> None:
        self._interrupt()
        share = sum(self._shares[: self.step]) + self._shares[self.step] * done / max(total, 1)
        self._share = max(self._share, share)  # a step may count twice, captions and then families: never run backwards
        moment = time.monotonic()
        if moment - self._shown >= self.INTERVAL or done == total:
            self._update(round(1000 * self._share), 1000)
            self._shown = moment
            self._tell(done, total, name, moment)

    def _tell(self, done: int, total: int, name: str, moment: float) -> None:
        if self._names and self._node is not None:
            step = self._names[self.step]
            told = self._pace.at(step, done, total, self._share, moment)
            send("progress", {"node": self._node, "step": step, "name": name, **told})

    def show(self, image: Any) -> None:
        """A PIL picture on the node while it works."""
        self._update(round(1000 * self._share), 1000, image)

    def finish(self) -> None:
        """Show the bar full, whatever was left to do."""
        self._share = 1.0
        self(1, 1)

    def stopped(self) -> bool:
        """For work that asks instead of being told: raises like a call does."""
        self._interrupt()
        return False
