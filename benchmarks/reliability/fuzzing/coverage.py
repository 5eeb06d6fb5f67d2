"""Which lines of the pack ran: an input that reaches a new one is kept, and others are made from it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType

from .oracle import OWN


class Lines:
    """Lines of the pack seen so far. Tracing is slow, so only some cases run under :meth:`traced`."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int]] = set()
        self._whole: dict[CodeType, bool] = {}  # is this code the pack's own?

    def traced(self, run: Callable[[], object]) -> bool:
        """Run; whether a line ran that none before had."""
        before = len(self.seen)
        sys.settrace(self._call)
        try:
            run()
        finally:
            sys.settrace(None)
        return len(self.seen) > before

    def _call(self, frame: FrameType, event: str, arg: object):
        code = frame.f_code
        own = self._whole.get(code)
        if own is None:
            own = self._whole[code] = code.co_filename.startswith(OWN)
        return self._line if own else None

    def _line(self, frame: FrameType, event: str, arg: object):
        if event == "line":
            self.seen.add((frame.f_code, frame.f_lineno))
        return self._line
