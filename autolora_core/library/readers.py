"""Processes that read files for a large scan, each on one processor: threads of one Python wait for each other.

Two threads read SDXL files of rank 16 1.4 times as fast as one, two processes 1.97 times; more threads gain little. A
process costs a second or two to start and the memory of PyTorch, so there are some only for what takes long, and only
where there are more than two processors. None of them knows ComfyUI: each is a Python of its own that imports the part
of this pack that reads files (``subprocess``, not ``multiprocessing``, which would run ComfyUI's main file again), sees
no graphics card, and ends with its input. Whatever goes wrong with one, the scan goes on without it.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable
from contextlib import suppress
from pathlib import Path

import torch

from .content import Content
from .metadata import Reading
from .reader_wire import BadFrame, answered, read_frame, request, write_frame
from .reading import Read
from .walk import Found

log = logging.getLogger(__name__)
MOST_PROCESSES = 8
FEWEST_PROCESSORS = 3  # of two, threads use as much as is worth a process
MEMORY_EACH = 1 << 30  # free bytes wanted for each: 640 MB are held at most, more with files of an odd order
# Seconds that one processor takes, roughly: reading of fewer is done before the processes are of use.
SECONDS_A_FILE, SECONDS_A_BYTE, WORTH_SECONDS = 0.01, 1.0e-9, 12.0
START_SECONDS, END_SECONDS = 120.0, 5.0
MOST_THREADS = 4  # that read a drive here at a time, while there is no process to do it
STRIKES = 2  # processes that a file may cost

_PACK = Path(__file__).resolve().parents[2]
# The pack's folder first, whatever name ComfyUI imports it by, and no folder that happens to be the current one. Not
# "-m": a Python that is shipped with ComfyUI for Windows has no place for it in its fixed path.
_START = (
    "import sys; sys.path[:] = [sys.argv[1], *filter(None, sys.path)]; "
    "from autolora_core.library.reader_child import main; main()"
)


def wanted(files: Iterable[Found], workers: int | None) -> int:
    """How many processes a scan of ``files`` is worth; 0 for none. ``workers``: what the caller allows."""
    seconds = sum(SECONDS_A_FILE + SECONDS_A_BYTE * item.size for item in files if item.problem is None)
    most = workers or max(1, processors() - 1)
    if seconds < WORTH_SECONDS or processors() < FEWEST_PROCESSORS or most < 2:
        return 0
    count = min(most, MOST_PROCESSES, _room())
    return count if count > 1 else 0


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _room() -> int:
    """How many processes the free memory is enough for."""
    try:
        import psutil  # ComfyUI brings it
    except ImportError:
        return 4
    return int(psutil.virtual_memory().available // MEMORY_EACH)


class Lost(Exception):
    """A process ended, or said something that is no answer."""


class Readers:
    """``count`` processes. Use it in a ``with`` block: at its end they are gone.

    They come up one by one; whoever asks meanwhile is told to read by itself, inside :attr:`here`.
    """

    def __init__(self, count: int):
        self._here: defaultdict[Hashable, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(MOST_THREADS))
        self._starting: list[threading.Thread] = []
        self._idle: queue.LifoQueue[_Reader] = queue.LifoQueue()
        self._all: list[_Reader] = []
        self._lock, self._over, self._said = threading.Lock(), False, False
        for _ in range(count):
            if not self._start():
                break

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        end = time.monotonic() + END_SECONDS
        for thread in self._starting:
            thread.join(max(0.0, end - time.monotonic()))
        for reader in self._all:
            reader.close(end)

    def here(self, drive: Hashable) -> threading.Semaphore:
        """A turn to read a file of ``drive`` in this process; one that hangs takes no turns of another."""
        with self._lock:
            return self._here[drive]

    def wait_ready(self) -> list[int]:
        """Wait until all have come up; their process numbers."""
        for thread in self._starting:
            thread.join()
        return [reader.pid for reader in self._all]

    def stop(self) -> None:
        """End all of them now; whoever waits for an answer gets none."""
        with self._lock:
            self._over = True
            for reader in self._all:
                reader.end()

    def read(self, item: Found, encode: bool, known: Content | None) -> tuple[Read, Reading | None] | None:
        """One file read by a process that has nothing to do; None when there is none: read it here.

        Raises OSError for what is wrong with the file's disk, and for a file that ended two processes.
        """
        try:
            reader = self._idle.get_nowait()
        except queue.Empty:
            return None
        for _ in range(STRIKES):
            try:
                made = reader.read(item, encode, known)
            except Lost as error:
                if self._over:
                    raise OSError("the scan has ended") from error
                log.warning("the process that read %r was lost: %s", item.path, error)
                reader = self._start(at_once=True)
                if reader is None:
                    return None
            except OSError:
                self._idle.put(reader)
                raise
            else:
                self._idle.put(reader)
                return made
        self._idle.put(reader)
        raise OSError(f"{STRIKES} processes ended while they read it; the next scan tries again")

    def _start(self, at_once: bool = False) -> _Reader | None:
        """One more process, idle once it is ready; with ``at_once`` it is waited for, and the caller's."""
        with self._lock:
            if self._over:
                return None
            try:
                reader = _Reader(_command())
            except (OSError, ValueError) as error:
                self._say(error)
                return None
            self._all.append(reader)
        if at_once:
            return reader if self._ready(reader) else None
        self._starting.append(threading.Thread(target=self._greet, args=(reader,), name="autolora-start", daemon=True))
        self._starting[-1].start()
        return reader

    def _greet(self, reader: _Reader) -> None:
        if self._ready(reader):
            self._idle.put(reader)

    def _ready(self, reader: _Reader) -> bool:
        try:
            reader.greet()
        except Lost as error:
            reader.end()
            self._say(error)
            return False
        return True

    def _say(self, error: Exception) -> None:
        if not (self._said or self._over):
            self._said = True
            log.warning("no process could be started to read files side by side (%s): threads read them", error)


class _Reader:
    """One process, and the pipe to it. Raises OSError when it cannot be started."""

    def __init__(self, command: list[str]):
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=_environment(), **_flags()
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def greet(self) -> None:
        """Wait until it is ready. Raises :class:`Lost`."""
        late = threading.Timer(START_SECONDS, self.end)
        late.daemon = True
        late.start()
        try:
            if "ready" not in self._frame()[0]:
                raise Lost("it said something else than that it is ready")
        finally:
            late.cancel()

    def read(self, item: Found, encode: bool, known: Content | None) -> tuple[Read, Reading | None] | None:
        """Raises :class:`Lost`, and OSError as :func:`.reading.read_file` does; None when it failed otherwise."""
        try:
            asked = request(item, encode, known)
            write_frame(self._process.stdin, {**asked, "precision": torch.get_float32_matmul_precision()})
        except OSError as error:
            raise Lost(f"it does not listen ({error})") from error
        head, arrays = self._frame()
        for level, line in head.get("told", ()):
            log.log(level, "%s", line)
        if "trouble" in head:
            number, text = head["trouble"]
            raise OSError(number, text) if number is not None else OSError(text)
        if "failed" in head:
            return None
        try:
            return answered(head, arrays)
        except BadFrame as error:
            raise Lost(f"its answer is none ({error})") from error

    def _frame(self):
        try:
            frame = read_frame(self._process.stdout)
        except (BadFrame, OSError) as error:
            self.end()
            raise Lost(f"its answer is none ({error})") from error
        if frame is None:
            self.end()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            raise Lost(f"it ended with {self._process.returncode}")
        return frame

    def end(self) -> None:
        """It holds nothing that is worth keeping."""
        with suppress(OSError):
            self._process.kill()

    def close(self, by: float) -> None:
        try:
            self._process.wait(max(0.0, by - time.monotonic()))
        except subprocess.TimeoutExpired:  # it hangs in a drive, is gone when that lets it go, and may still be read
            return
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()


def _command() -> list[str]:
    """This Python, in the mode that it runs in. Raises ValueError where the program that runs is no Python to start."""
    program = sys.executable or ""
    if getattr(sys, "frozen", False) or not os.path.basename(program).lower().startswith(("python", "pypy")):
        raise ValueError(f"{program or 'this program'} is no Python")
    flags = sys.flags
    how = ["-s"] * bool(flags.no_user_site) + ["-E"] * bool(flags.ignore_environment) + ["-I"] * bool(flags.isolated)
    return [program, *how, "-X", f"utf8={flags.utf8_mode}", "-W", "ignore", "-c", _START, os.fspath(_PACK)]


def _environment() -> dict[str, str]:
    """This process's, with one thread and no graphics card."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    return {**os.environ, **one, **hidden}


def _flags() -> dict:
    """Apart from the terminal's Ctrl-C, which is for the scan; no window; behind what the user does."""
    if os.name != "nt":
        return {"start_new_session": True}
    names = ("CREATE_NEW_PROCESS_GROUP", "CREATE_NO_WINDOW", "BELOW_NORMAL_PRIORITY_CLASS")
    return {"creationflags": sum(getattr(subprocess, name, 0) for name in names)}
