"""What counts as a failure: any other error than the pack's own, a hang, too much memory, a look outside the sandbox,
and an input accepted for what it is not."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autolora_core.errors import AutoLoRAError

REPO = Path(__file__).resolve().parents[3]
CPU_SECONDS = 2.0  # a case may compute for so long; waiting counts in the runner
OWN = tuple(str(REPO / part) + os.sep for part in ("autolora_core", "nodes"))
# Anybody may read these: the interpreter and its packages, the pack itself, what the system tells about itself.
READABLE = tuple(
    dict.fromkeys((sys.prefix, sys.base_prefix, str(REPO), "/proc/", "/sys/", "/dev/null", "/dev/urandom", "/etc/mime",
                   "/usr/", "/lib"))
)  # fmt: skip
FORBIDDEN = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pickle.find_class",
    "sqlite3.enable_load_extension", "ctypes.dlopen", "urllib.", "ftplib.", "smtplib.", "winreg.",
)  # fmt: skip
PATHS = {
    "os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.utime": 1, "os.chmod": 1, "os.chown": 1, "os.listdir": 1, "os.scandir": 1, "shutil.rmtree": 1,
    "sqlite3.connect": 1, "tempfile.mkstemp": 1, "tempfile.mkdtemp": 1, "glob.glob": 0,
}  # fmt: skip


class Wrong(Exception):
    """An input was accepted, and what came out is not what it says."""


class Hang(BaseException):
    """A case computes for longer than :data:`CPU_SECONDS`. No ``Exception``: a reader that goes on after errors of a
    file must not swallow it."""


class Watch:
    """An audit hook for this process (it can never be taken away): what was touched outside ``sandbox`` while on."""

    def __init__(self, sandbox: Path):
        self.sandbox, self.on, self.seen = os.path.realpath(sandbox), False, []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        self.on = False  # what is done here is not to be watched
        try:
            why = self._judge(event, args)
            if why and why not in self.seen:
                self.seen.append(why)
        finally:
            self.on = True

    def _judge(self, event: str, args: tuple) -> str | None:
        if event == "open":
            return self._opened(*args[:3])
        if event in PATHS:
            paths = [_below(path, args) for path in args[: PATHS[event]]]
            return next((f"{event} of {path!r}" for path in paths if not self._inside(path)), None)
        if event in ("exec", "compile"):
            caller = sys._getframe(2).f_code.co_filename  # of this method, the hook, and who called
            return f"{event} called from {caller}" if caller.startswith(OWN) else None
        if event == "ctypes.dlopen" or event.startswith("import"):
            return None  # packages come with their libraries
        return f"{event} {args!r:.200}" if event.startswith(FORBIDDEN) else None

    def _opened(self, path: object, mode: object, flags: object) -> str | None:
        if isinstance(path, int) or self._inside(path):
            return None
        writing = any(sign in str(mode or "") for sign in "wax+") or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        readable = not writing and os.path.realpath(_text(path)).startswith(READABLE)
        return None if readable else f"open of {_text(path)!r} for {'writing' if writing else 'reading'}"

    def _inside(self, path: object) -> bool:
        if path is None or isinstance(path, int):
            return True
        real = os.path.realpath(_text(path))
        return real == self.sandbox or real.startswith(self.sandbox + os.sep)


def _below(path: object, args: tuple) -> object:
    """A path relative to an open folder, as ``shutil.rmtree`` gives it, as a whole one."""
    folder = args[-1]
    if isinstance(path, int) or not isinstance(folder, int) or folder < 0 or os.path.isabs(_text(path)):
        return path
    return os.path.join(os.path.realpath(f"/proc/self/fd/{folder}"), _text(path))


def _text(path: object) -> str:
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
    return text.replace("\0", "\ufffd")


@contextmanager
def deadline(seconds: float = CPU_SECONDS) -> Iterator[None]:
    """Raise :class:`Hang` in the block when it computes for longer; where the system has no such clock, the runner's
    own limit is all there is."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise Hang(f"still computing after {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judge(run: Callable[[], object], watch: Watch | None = None, seconds: float = CPU_SECONDS) -> tuple[str, str, str]:
    """``(outcome, what, where)`` of one case: outcome is accepted, refused or failed.

    ``what`` is the error in words, ``where`` the line of the pack that it came from.
    """
    if watch is not None:
        watch.seen.clear()
        watch.on = True
    try:
        with deadline(seconds):
            run()
        outcome = ("accepted", "", "")
    except AutoLoRAError as error:
        named = error.path is not None or error.key is not None
        outcome = ("refused", str(error), "") if named else ("failed", f"names nothing: {error}", _where(error))
    except (Exception, Hang) as error:
        outcome = ("failed", f"{type(error).__name__}: {error}"[:500], _where(error))
    finally:
        if watch is not None:
            watch.on = False
    if watch is not None and watch.seen:
        return "failed", f"outside: {watch.seen[0]}"[:500], outcome[2]
    return outcome


def _where(error: BaseException) -> str:
    """The innermost line of the pack's own."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(OWN)] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
