"""Trains a fusion gate for your base model from your LoRAs: what the node Train Fusion Gate does, in a shell.

With nothing said it trains on the demo model and its LoRAs, as a trial of two minutes. For your own:

    python scripts/train_gate.py --models ComfyUI/models --checkpoint sdxl.safetensors --width 768 --height 768
    python scripts/train_gate.py --models ComfyUI/models --unet flux1-dev.safetensors --clip t5xxl_fp16.safetensors \
        --clip clip_l.safetensors --clip-type flux --vae ae.safetensors --cfg 1

Stop it with Ctrl-C; the same command goes on where it stopped.
"""

import argparse
import os
import shutil
import sys

A_WEEK = 7 * 24 * 3600.0  # seconds
REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def parse(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="train_gate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", metavar="DIR", help="your ComfyUI's models folder (default: the demo's)")
    parser.add_argument("--checkpoint", metavar="NAME", help="a checkpoint with model, text encoder and VAE")
    parser.add_argument("--unet", metavar="NAME", help="or a diffusion model with --clip, --clip-type, --vae")
    parser.add_argument("--clip", metavar="NAME", action="append", default=[], help="its text encoder, or one of two")
    parser.add_argument("--clip-type", default="stable_diffusion", help="as in ComfyUI: flux, sd3, wan …")
    parser.add_argument("--vae", metavar="NAME", help="its VAE")
    parser.add_argument("--loras", default="", metavar="FILTER", help="only LoRAs whose names match, as in the node")
    parser.add_argument("--most-loras", type=int, default=24, help="at most so many LoRAs (default 24)")
    parser.add_argument("--steps", type=int, default=200, help="steps of learning (default 200)")
    parser.add_argument("--most-together", type=int, default=3, help="at most so many at once (default 3)")
    parser.add_argument("--width", type=int, help="of the pictures it learns from (default 512; demo 128)")
    parser.add_argument("--height", type=int, help="likewise")
    parser.add_argument("--sampling-steps", type=int, default=20, help="of a LoRA's own picture (default 20)")
    parser.add_argument("--cfg", type=float, default=4.0, help="guidance of these pictures (default 4; FLUX 1)")
    parser.add_argument("--seed", type=int, default=0, help="noise of these pictures")
    parser.add_argument("--gate-name", default="", metavar="NAME", help="name of the gate's file")
    parser.add_argument("--out", metavar="DIR", help="where the gate goes (default: autolora in --models)")
    parser.add_argument("--gpu", action="store_true", help="use the graphics card")
    parser.add_argument("--comfyui", metavar="DIR", help="use this ComfyUI; nothing is written into it")
    parser.add_argument("--python", metavar="FILE", help="the Python of that ComfyUI, when it is not in its folder")
    options = parser.parse_args(arguments)
    if options.unet and not (options.clip and options.vae):
        parser.error("--unet needs --clip and --vae")
    if (options.unet or options.checkpoint) and not options.models:
        parser.error("--models says where your models are")
    side = 512 if options.models else 128
    options.width, options.height = options.width or side, options.height or options.width or side
    return options


def main(arguments):
    """Train; the exit code."""
    from pathlib import Path

    from scripts._lib import environment, gate_graph, graphs, install
    from scripts._lib.files import locked
    from scripts._lib.paths import cache_dir
    from scripts._lib.progress import Progress, RunProgress
    from scripts._lib.server import ComfyServer
    from scripts._lib.steps import run_steps

    options, cache = parse(arguments), cache_dir()
    comfyui = install.find(options.comfyui, options.python)
    with locked(cache / "install.lock", "Another run is installing; waiting for it …"):
        run_steps(environment.steps(comfyui, development=False))
    models, base = Path(options.models).absolute() if options.models else None, cache / "train-gate"
    with locked(base / "train.lock", "Another training is running; waiting for it …"):
        server = ComfyServer(base, install=comfyui, models=gate_graph.model_paths(models), cpu=not options.gpu)
        with server:
            graph, line = gate_graph.build(options), Progress("Training")
            result = server.run(graph, RunProgress(line, graphs.titles(graph)), timeout=A_WEEK)
            line.done(f"{result.seconds:.0f} s")
        print(result.text(gate_graph.REPORT))
        made = sorted((base / "models" / "autolora").glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        out = Path(options.out) if options.out else models / "autolora" if models else base / "models" / "autolora"
        if made and "saved as" in result.text(gate_graph.REPORT):
            out.mkdir(parents=True, exist_ok=True)
            if made[-1].parent != out:
                shutil.copyfile(made[-1], out / made[-1].name)
            print(f"Gate:     {out / made[-1].name}")
        print(f"Previews: {base / 'output'}")
    return 0


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 (whatever Python is there runs this file)
        sys.exit("This needs Python 3.10 or later; this is " + sys.version.split()[0] + ".")
    sys.path[0] = REPO  # the scripts are imported as scripts._lib
    from scripts._lib import cli

    sys.exit(cli.run(main))
