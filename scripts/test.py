"""Runs every test in the same environment as the demo; ``--fast`` runs the unit tests alone.

Further arguments go to pytest as they are: ``python scripts/test.py --fast -k gate -x``. The exit code is pytest's.
"""

import argparse
import os
import subprocess
import sys

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FAST = ["-m", "not slow"]


def parse(arguments):
    """Our own options, and the rest for pytest."""
    # no abbreviations: pytest's --co is not our --comfyui
    parser = argparse.ArgumentParser(prog="test.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--fast", action="store_true", help="only the unit tests: no server, no browser")
    parser.add_argument("--comfyui", metavar="DIR", help="test against this ComfyUI; nothing is written into it")
    parser.add_argument("--python", metavar="FILE", help="the Python of that ComfyUI, when it is not in its folder")
    return parser.parse_known_args(arguments)


def prepare(comfyui, fast):
    """Make the environment. A machine without a browser can still run everything else."""
    from scripts._lib import browser, environment
    from scripts._lib.files import locked
    from scripts._lib.paths import cache_dir
    from scripts._lib.steps import StepFailed, run_steps

    with locked(cache_dir() / "install.lock", "Another run is installing; waiting for it …"):
        run_steps(environment.steps(comfyui, development=True))
        if not fast:
            try:
                run_steps([browser.step()])
            except StepFailed as error:
                print(f"\n{error}\nThe browser tests will say so; the rest goes on.\n", flush=True)


def main(arguments):
    """Prepare, then run pytest; its exit code."""
    from scripts._lib import install
    from scripts._lib.paths import cache_dir
    from scripts._lib.process import Child

    options, rest = parse(arguments)
    comfyui = install.find(options.comfyui, options.python)
    prepare(comfyui, options.fast)
    env = {**comfyui.env(), "AUTOLORA_CACHE": str(cache_dir())}
    env |= {"COMFYUI_PATH": str(comfyui.comfyui), "COMFYUI_PYTHON": str(comfyui.python)}
    command = [str(comfyui.python), "-m", "pytest", *(FAST if options.fast else []), *rest]
    # On Ctrl-C pytest gets a while to end the servers its tests started.
    with Child(command, grace=30.0, cwd=REPO, env=env, stdin=subprocess.DEVNULL) as child:
        return child.wait()


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 (whatever Python is there runs this file)
        sys.exit("This needs Python 3.10 or later; this is " + sys.version.split()[0] + ".")
    sys.path[0] = REPO  # the scripts are imported as scripts._lib
    from scripts._lib import cli

    sys.exit(cli.run(main))
