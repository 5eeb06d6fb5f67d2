"""Runs ComfyUI's main.py in this process, and ends it when the script that started it is gone.

Started as ``python serve.py <main.py> [arguments]`` with a pipe on standard input that its parent holds open. When the
parent dies, however it dies, the operating system closes the pipe and this process stops: no server is left behind.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

_GRACE = 5.0


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(_GRACE)
    os._exit(1)


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True, name="end-with-parent").start()
    script = os.path.abspath(sys.argv[1])
    sys.argv[:] = [script, *sys.argv[2:]]
    here, site = os.path.dirname(os.path.abspath(__file__)), os.environ.get("AUTOLORA_SITE")
    # as `python main.py` would have it: its folder first, and not ours, whose module names might hide others
    others = [entry for entry in sys.path if os.path.abspath(entry) != here]
    # an embedded Python does not read PYTHONPATH
    sys.path[:] = [os.path.dirname(script), *([site] if site and site not in others else []), *others]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
