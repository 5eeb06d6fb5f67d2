"""Shows the pack at work in a real ComfyUI: prompts in, the LoRAs it picks and the pictures they make out.

Needs only Python 3.10 or later to start. It installs what it needs into a cache (``AUTOLORA_CACHE``, else ``.cache`` in
this repository), or uses a ComfyUI that is there already (``--comfyui DIR`` or ``COMFYUI_PATH``).
"""

import argparse
import os
import sys
import time

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOTHING_FITS = "a fox"  # the base model knows it, and no LoRA is for it
PROMPTS = (
    "a sunflower in blueprint style",
    "a castle in stained glass mosaic style",
    "a volcano in paper cut style",
    "a cupcake in watercolour style",
    NOTHING_FITS,
)


def parse(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(prog="demo.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="your own prompt; may be given several times")
    parser.add_argument("--seed", type=int, default=7, help="noise seed of every picture (default 7)")
    parser.add_argument("--out", metavar="DIR", help="where results go (default: demo in the cache)")
    parser.add_argument("--comfyui", metavar="DIR", help="use this ComfyUI; nothing is written into it")
    parser.add_argument("--python", metavar="FILE", help="the Python of that ComfyUI, when it is not in its folder")
    parser.add_argument("--base", metavar="DIR", help="what ComfyUI writes goes here (default: demo-base in the cache)")
    parser.add_argument("--serve", action="store_true", help="only start the server, for your browser, until Ctrl-C")
    return parser.parse_args(arguments)


def main(arguments):
    """Run the demo; the exit code."""
    from pathlib import Path

    from scripts._lib import environment, install, report, showcase
    from scripts._lib.files import locked
    from scripts._lib.paths import cache_dir
    from scripts._lib.progress import Progress
    from scripts._lib.server import DEMO_MODELS, ComfyServer, clear_output
    from scripts._lib.steps import run_steps

    options, started = parse(arguments), time.monotonic()
    cache = cache_dir()
    comfyui = install.find(options.comfyui, options.python)
    with locked(cache / "install.lock", "Another run is installing; waiting for it …"):
        run_steps(environment.steps(comfyui, development=False))
    if not options.serve:
        showcase.check_models(DEMO_MODELS)
    out = Path(options.out).absolute() if options.out else cache / "demo"
    out.mkdir(parents=True, exist_ok=True)
    base = Path(options.base).absolute() if options.base else cache / "demo-base"
    with locked(base / "demo.lock", "Another demo is running; waiting for it …"):
        line = Progress(f"Starting ComfyUI {comfyui.version}")
        server = ComfyServer(base, install=comfyui, on_wait=line.tick)
        clear_output(server.base)
        with server:
            line.done(f"{line.seconds:.1f} s, {server.url}, process {server.pid}, log: {server.log}")
            if options.serve:
                return serve(server)
            shown = showcase.run(server, options.prompt or PROMPTS, options.seed, out)
        sheet = report.draw_sheet(shown, out, comfyui)
    about = {"comfyui": comfyui.version, "seed": options.seed, "total_seconds": round(time.monotonic() - started, 1)}
    results = report.write_results(shown, out, about)
    print(f"\n{report.table(shown)}\nContact sheet: {sheet}\nResults:       {results}")
    print(f'All of it took {about["total_seconds"]:.0f} s. Try your own: python scripts/demo.py --prompt "…"')
    return 0


def serve(server):
    """Wait until Ctrl-C, or until the server ends by itself."""
    from scripts._lib.server import ServerFailed

    print(f"Open {server.url} in a browser. Ctrl-C stops the server.", flush=True)
    while server.running:
        time.sleep(0.5)
    raise ServerFailed("the ComfyUI server ended", server.log)


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 (whatever Python is there runs this file)
        sys.exit("This needs Python 3.10 or later; this is " + sys.version.split()[0] + ".")
    sys.path[0] = REPO  # the scripts are imported as scripts._lib
    from scripts._lib import cli

    sys.exit(cli.run(main))
