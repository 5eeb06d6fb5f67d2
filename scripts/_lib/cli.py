"""The frame around a script: signals, errors said in words, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .client import ClientError
from .install import NoComfyUI
from .interrupts import Interrupted, install_handlers
from .process import stop_all
from .server import ServerFailed
from .steps import StepFailed


class ScriptFailed(Exception):
    """Something a script found wrong; the message says what and what to do."""


def run(main: Callable[[list[str]], int]) -> int:
    """Call `main` with the command line and return the exit code; nothing it started is left when this returns."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # an old Windows console cannot show every character
    install_handlers()
    try:
        return main(sys.argv[1:])
    except Interrupted as stop:
        print("\nStopped. Nothing is left running; the same command goes on from here.", file=sys.stderr)
        return stop.exit_code
    except (StepFailed, NoComfyUI, ServerFailed, ClientError, ScriptFailed, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    finally:
        stop_all()
