"""Build the embedded world from public packages: ``python -m zoo build``.

    python -m zoo build [--base-minutes 120] [--until loras]     every step; what is done is not done again
    python -m zoo status                                         what is there

Every step resumes after a kill and writes into ``<cache>/zoo``; what is shipped goes to ``models/``.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zoo.cache import REPO, write_atomic, zoo_dir

log = logging.getLogger("zoo")


@dataclass(frozen=True)
class Step:
    """``done`` is cheap; ``run`` does what is missing."""

    name: str
    what: str
    done: Callable[[], bool]
    run: Callable[[argparse.Namespace], None]


def _pictures(_: argparse.Namespace) -> None:
    from zoo.pictures import build

    build()


def _autoencoder(args: argparse.Namespace) -> None:
    from zoo.autoencoder import default_path
    from zoo.autoencoder_train import train

    train(args.autoencoder_minutes)
    shipped = REPO / "models" / "emoji_vae.safetensors"
    write_atomic(shipped, lambda tmp: tmp.write_bytes(default_path().read_bytes()))


def _latents(_: argparse.Namespace) -> None:
    from zoo.autoencoder import precompute_latents

    precompute_latents()


def _base(args: argparse.Namespace) -> None:
    from zoo.train_base import export, train

    train(args.base_minutes)
    export()


def _judge(args: argparse.Namespace) -> None:
    from zoo.judge_train import train

    train(args.judge_minutes)


def _loras(_: argparse.Namespace) -> None:
    from zoo.train_loras import export, train

    train()
    export()


def _gate(args: argparse.Namespace) -> None:
    from zoo.train_gate import train

    train(args.gate_steps)


def _exists(*paths: Path) -> Callable[[], bool]:
    return lambda: all(p.exists() for p in paths)


def steps() -> list[Step]:
    """In order; each needs the ones before it."""
    zoo = zoo_dir()
    return [
        Step(
            "pictures",
            "icon sets from npm, rasterised at 128 px",
            _exists(zoo / "pictures.npy", zoo / "pictures.json"),
            _pictures,
        ),
        Step("autoencoder", "TAESD layout, 8x, 16 channels", _exists(zoo / "autoencoder.safetensors"), _autoencoder),
        Step("latents", "every picture through the encoder", _exists(zoo / "latents.npy"), _latents),
        Step("base", "MMDiT, flow matching", lambda: False, _base),
        Step("judge", "open_clip, on real pictures only", lambda: False, _judge),
        Step("loras", "subjects and styles the base does not know", lambda: False, _loras),
        Step("gate", "gate vectors on true composites", lambda: False, _gate),
    ]


def build(args: argparse.Namespace) -> None:
    """Run the steps up to ``args.until``. Base, judge, LoRAs and gate know themselves how much is done."""
    for step in steps():
        if step.done():
            log.info("%-12s there", step.name)
        else:
            began = time.time()
            log.info("%-12s %s", step.name, step.what)
            step.run(args)
            log.info("%-12s done in %.0f s", step.name, time.time() - began)
        if step.name == args.until:
            break


def status(_: argparse.Namespace) -> None:
    for step in steps():
        log.info("%-12s %-45s %s", step.name, step.what, "there" if step.done() else "missing or decided at build")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m zoo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build", help="make everything that is missing")
    command.add_argument("--autoencoder-minutes", type=float, default=15)
    command.add_argument("--base-minutes", type=float, default=120)
    command.add_argument("--judge-minutes", type=float, default=25)
    command.add_argument("--gate-steps", type=int, default=600)
    command.add_argument("--until", choices=[s.name for s in steps()])
    command.set_defaults(run=build)
    commands.add_parser("status", help="say what is there").set_defaults(run=status)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.run(args)


if __name__ == "__main__":
    main()
