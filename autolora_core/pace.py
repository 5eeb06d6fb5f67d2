"""How fast work of several steps goes, and how long it will take yet."""

from __future__ import annotations

from typing import Any

EARLY = 1.0  # seconds before a rate means anything


class Pace:
    """Asked at moments (seconds of a clock that never runs back), with what is done of the step and of the whole."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._step: tuple[str, float, int] | None = None

    def at(self, step: str, done: int, total: int, share: float, moment: float) -> dict[str, Any]:
        """``done``, ``total``, ``share`` of the whole in [0, 1]; ``rate`` in things a second of this step and
        ``seconds`` that the whole will take yet, None while nothing can be said."""
        if self._began is None:
            self._began = moment
        if self._step is None or self._step[0] != step:
            self._step = (step, moment, done)
        whole, (_, since, before) = moment - self._began, self._step
        own = moment - since
        rate = (done - before) / own if own >= EARLY and done > before else None
        left = whole * (1 - share) / share if whole >= EARLY and share > 0 else None
        return {
            "done": done,
            "total": total,
            "share": round(share, 4),
            "rate": None if rate is None else round(rate, 2),
            "seconds": None if left is None else round(left, 1),
        }
