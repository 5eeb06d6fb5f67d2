"""A process that reads files for a scan (:mod:`.readers` starts it): requests come by its input, answers go to its
output, and it ends as soon as its input does, whatever it is doing: so it never outlives who started it."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import torch

from .reader_wire import BadFrame, answer, read_frame, requested, write_frame
from .reading import read_file, words_of

NICE = 5  # of 19: whoever is at the machine comes first
_PACKAGE = __name__.partition(".")[0]


def main() -> None:
    """Serve until the input ends. The output is taken away from whatever else might write to it."""
    requests, answers = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    with suppress(OSError, AttributeError):  # Windows: who starts it says so
        os.nice(NICE)
    torch.set_num_threads(1)
    told = _Told()
    logging.getLogger(_PACKAGE).addHandler(told)
    logging.getLogger(_PACKAGE).propagate = False
    asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, asked), daemon=True).start()
    write_frame(answers, {"ready": os.getpid()})
    with suppress(OSError):  # nobody listens any more
        while True:
            head, arrays = serve(asked.get())
            write_frame(answers, {**head, "told": told.taken()}, arrays)
    os._exit(0)


def _listen(stream: BinaryIO, asked: queue.SimpleQueue) -> None:
    with suppress(BadFrame, OSError):
        while (frame := read_frame(stream)) is not None:
            asked.put(frame[0])
    os._exit(0)


def serve(asked: Mapping[str, Any]):
    """The answer to one request: what was read, ``trouble`` with the disk, or ``failed``."""
    if "precision" in asked:
        torch.set_float32_matmul_precision(asked["precision"])
    try:
        item, encode, known = requested(asked)
        read = read_file(item, lambda size: None, encode=encode, known=known)
        return answer(read, words_of(item, read, known))
    except OSError as error:
        return {"trouble": [error.errno, error.strerror or str(error)]}, []
    except Exception as error:  # whoever asked does it again by itself, and sees what it is
        return {"failed": f"{type(error).__name__}: {error}"}, []


class _Told(logging.Handler):
    """What is logged goes along with the answer, into the log of who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, self.format(record)))

    def taken(self) -> list[tuple[int, str]]:
        lines, self._lines = self._lines, []
        return lines
