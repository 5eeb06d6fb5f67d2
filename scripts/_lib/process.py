"""Child processes that never outlive us: each leads a process group of its own, and the whole group is ended."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .interrupts import shielded

_WINDOWS = os.name == "nt"
TAIL_LINES, TAIL_BYTES = 25, 1 << 16
_ALIVE: set[Child] = set()


class CommandFailed(Exception):
    """A command ended with an error; `tail` holds the last lines it printed."""

    def __init__(self, command: Sequence[str], code: int, log: Path, tail: str) -> None:
        self.command, self.code, self.log, self.tail = list(command), code, log, tail
        super().__init__(f"exit code {code} from: {' '.join(self.command)}")


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a text file ('' when it is not there). Cheap: it is called while a tool still writes."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:]).rstrip()


class Child:
    """A running process and everything it starts. A context manager: leaving it ends the whole group."""

    def __init__(self, command: Sequence[str], *, grace: float = 10.0, **popen: object) -> None:
        """Start `command` as the leader of a new process group.

        Args:
            command: program and arguments; never a shell line.
            grace: seconds between asking the group to stop and ending it by force.
            popen: further arguments of `subprocess.Popen`.
        """
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if _WINDOWS else {"start_new_session": True}
        self.command, self.grace = list(command), grace
        with shielded():  # a signal must not fall between the start and our note of it
            self.process = subprocess.Popen(self.command, **group, **popen)
            _ALIVE.add(self)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def wait(self, on_tick: Callable[[], None] | None = None) -> int:
        """Wait for the end; the exit code. In short sleeps: Windows cannot interrupt a blocking wait by Ctrl-C."""
        while self.process.poll() is None:
            time.sleep(0.1)
            if on_tick is not None:
                on_tick()
        return self.process.returncode

    def stop(self) -> None:
        """Ask the group to stop, wait, then end by force whatever is left of it."""
        with shielded(deliver=False):
            if self.process.poll() is None:
                self._ask()
            self._force()
            _ALIVE.discard(self)

    def _ask(self) -> None:
        # SIGINT, not SIGTERM: Python programs (pip, pytest, ComfyUI) clean up on it
        self._signal(signal.CTRL_BREAK_EVENT if _WINDOWS else signal.SIGINT)
        try:
            self.process.wait(self.grace)
        except subprocess.TimeoutExpired:
            return  # _force is next

    def _force(self) -> None:
        if _WINDOWS:
            if self.process.poll() is None:
                kill = ["taskkill", "/F", "/T", "/PID", str(self.process.pid)]
                subprocess.run(kill, capture_output=True, check=False)
        else:
            self._signal(signal.SIGKILL)  # also grandchildren left in the group after the leader has gone
        self.process.wait(self.grace)

    def _signal(self, signum: int) -> None:
        try:
            if _WINDOWS:
                self.process.send_signal(signum)
            else:
                os.killpg(self.process.pid, signum)
        except OSError:  # the group has gone, or holds only a zombie; a live leader can still be ended by itself
            if self.process.poll() is None:
                self.process.kill()


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    on_tick: Callable[[], None] | None = None,
) -> None:
    """Run a command to its end with its output appended to `log`; `on_tick` is called some times a second.

    Raises:
        CommandFailed: a non-zero exit code.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        sink.write(f"$ {' '.join(command)}\n".encode())
        sink.flush()
        streams = {"stdin": subprocess.DEVNULL, "stdout": sink, "stderr": subprocess.STDOUT}
        with Child(command, cwd=cwd, env=env, **streams) as child:
            code = child.wait(on_tick)
    if code:
        raise CommandFailed(command, code, log, tail(log))


@atexit.register
def stop_all() -> None:
    """End every child that is still known: the net under the context managers."""
    for child in list(_ALIVE):
        child.stop()
