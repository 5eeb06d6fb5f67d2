"""Build the embedded world from public packages: ``python -m zoo build``.

    python -m zoo build                                     every step; what is done is not done again
    python -m zoo build --until base --base-minutes 240     train the base for longer
    python -m zoo build --quick                             every step on few pictures with next to no training
    python -m zoo status                                    what is there

Every step resumes after a kill. Work goes into ``<cache>/zoo`` and what is shipped into ``models/``; a quick build
keeps to ``<cache>/zoo-quick`` and the folder ``models`` in it. The gate is not made here: it is found on the fusion
benchmark's validation pairs (``python -m benchmarks.fusion_shape``). Needs npm, and the environment that
``python scripts/demo.py`` makes. To have a step done again, delete what it made and what was made from that.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autolora_core.errors import AutoLoRAError
from zoo.budget import add_options, chosen, positive_int
from zoo.cache import FOLDER, MODELS, cache_dir, models_dir, read_json, zoo_dir

log = logging.getLogger("zoo")
AUTOENCODER_MINUTES, BASE_MINUTES, JUDGE_MINUTES = 15.0, 120.0, 25.0
QUICK = {"every": 4, "autoencoder_steps": 40, "base_steps": 40, "judge_steps": 40, "loras": 4}
QUICK["no_compile"] = True  # it would take longer than those few steps


@dataclass(frozen=True)
class Step:
    """Something to make.

    Attributes:
        name: one word.
        what: it is, for people.
        makes: files that are there when it has run.
        run: makes what is missing.
        kept: whether those files mean that it is done. Otherwise ``run`` knows by itself how much is left.
        trained: the state file of a training, for ``status``.
    """

    name: str
    what: str
    makes: Callable[[], list[Path]]
    run: Callable[[argparse.Namespace], object]
    kept: bool = False
    trained: str | None = None

    def missing(self) -> list[Path]:
        return [path for path in self.makes() if not path.exists()]


def _pictures(args: argparse.Namespace) -> None:
    from zoo.pictures import build

    build(every=args.every or 1)


def _autoencoder(args: argparse.Namespace) -> None:
    from zoo import autoencoder_train

    if not autoencoder_train.default_path().exists():
        autoencoder_train.train(chosen(args.autoencoder_minutes, args.autoencoder_steps, AUTOENCODER_MINUTES))
    autoencoder_train.export()


def _latents(_: argparse.Namespace) -> None:
    from zoo.autoencoder import precompute_latents

    precompute_latents()


def _base(args: argparse.Namespace) -> None:
    from zoo.train_base import export, train

    train(chosen(args.base_minutes, args.base_steps, BASE_MINUTES), not args.no_compile)
    export()


def _judge(args: argparse.Namespace) -> None:
    from zoo.judge_train import train

    train(chosen(args.judge_minutes, args.judge_steps, JUDGE_MINUTES))


def _loras(args: argparse.Namespace) -> None:
    from zoo.train_loras import export, train

    train(args.loras, not args.no_compile)
    export()


def _work(*names: str) -> Callable[[], list[Path]]:
    return lambda: [zoo_dir() / name for name in names]


def _shipped(*names: str) -> Callable[[], list[Path]]:
    return lambda: [models_dir() / name for name in names]


# In order: each needs the ones before it.
STEPS = (
    Step(
        "pictures",
        "icon sets from npm, rasterised at 128 px",
        _work("pictures.npy", "pictures.json"),
        _pictures,
        kept=True,
    ),
    Step(
        "autoencoder",
        "TAESD layout, 8x, 16 channels",
        _shipped("emoji_vae.safetensors"),
        _autoencoder,
        trained="autoencoder-train",
    ),
    Step("latents", "every picture through the encoder", _work("latents.npy"), _latents, kept=True),
    Step("base", "MMDiT, flow matching", _shipped("emoji_mmdit.safetensors"), _base, trained="base"),
    Step("judge", "open_clip, on real pictures only", _shipped("emoji_judge.safetensors"), _judge, trained="judge"),
    Step("loras", "subjects and styles the base does not know", _shipped("loras"), _loras),
)


def build(args: argparse.Namespace) -> None:
    """Run the steps up to ``args.until``."""
    for step in STEPS:
        if step.kept and not step.missing():
            log.info("%-12s there", step.name)
        else:
            began = time.time()
            log.info("%-12s %s", step.name, step.what)
            step.run(args)
            if step.missing():
                raise FileNotFoundError(f"step {step.name} did not make {', '.join(map(str, step.missing()))}")
            log.info("%-12s done in %.0f s", step.name, time.time() - began)
        if step.name == args.until:
            break


def status(_: argparse.Namespace) -> None:
    """Say of every step what is there."""
    log.info("working folder %s, models %s", zoo_dir(), models_dir())
    for step in STEPS:
        missing = step.missing()
        said = [f"missing: {', '.join(p.name for p in missing)}" if missing else "there"]
        state = zoo_dir() / (step.trained or "") / "state.json"
        if step.trained and state.exists():
            saved = read_json(state)
            steps, seconds = saved.get("steps", saved.get("step")), saved.get("spent", saved.get("seconds"))
            said.append(f"trained for {steps} steps, {seconds:.0f} s")
        log.info("%-12s %-45s %s", step.name, step.what, "; ".join(said))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; a quick build's settings fill what was not given."""
    folders = argparse.ArgumentParser(add_help=False)
    folders.add_argument("--quick", action="store_true", help="see that every step works, in folders of its own")
    folders.add_argument("--folder", type=Path, metavar="DIR", help="where it works (default: zoo in the cache)")
    folders.add_argument("--models", type=Path, metavar="DIR", help="where finished models go (default: models/ here)")
    parser = argparse.ArgumentParser(
        prog="python -m zoo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build", parents=[folders], help="make everything that is missing")
    command.add_argument("--every", type=positive_int, metavar="N", help="a world of every Nth subject only")
    add_options(command, AUTOENCODER_MINUTES, "--autoencoder-")
    add_options(command, BASE_MINUTES, "--base-")
    add_options(command, JUDGE_MINUTES, "--judge-")
    command.add_argument("--loras", type=positive_int, metavar="N", help="only N LoRAs; needs another --models")
    command.add_argument(
        "--no-compile", action="store_true", default=None, help="without torch.compile (no C++ compiler)"
    )
    command.add_argument("--until", choices=[s.name for s in STEPS], help="the last step to do")
    command.set_defaults(run=build)
    commands.add_parser("status", parents=[folders], help="say what is there").set_defaults(run=status)
    args = parser.parse_args(arguments)
    if args.quick:
        args.folder = args.folder or cache_dir() / "zoo-quick"
        args.models = args.models or args.folder / "models"
        vars(args).update({k: v for k, v in QUICK.items() if vars(args).get(k) is None})
    if vars(args).get("loras") and not args.models:
        parser.error("a part of the shelf must not replace the shipped one: give --models another folder")
    return args


def main() -> int:
    """Command line; the exit code."""
    args = parse()
    for variable, folder in ((FOLDER, args.folder), (MODELS, args.models)):
        if folder is not None:
            os.environ[variable] = str(folder.expanduser().resolve())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        args.run(args)
    except (AutoLoRAError, ConnectionError) as error:
        log.error("%s", error)
        return 1
    except ModuleNotFoundError as error:
        fix = "run `python scripts/demo.py` once, then this with the Python of its environment, venv in the cache"
        log.error("%s is not installed here: %s", error.name, fix)
        return 1
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.terminate()  # or Python would wait for the end of their training
        log.error("Stopped; the same command goes on from here.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
