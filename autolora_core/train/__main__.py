"""Train a weight encoder on your own library.

    python -m autolora_core.train INDEX_FOLDER [--family sdxl] [--captions captions.csv] [--out FOLDER] [--minutes 20]

INDEX_FOLDER is what the report of Encode LoRA Library calls "Index". The encoder is saved in ComfyUI's
``models/autolora`` and the index is encoded with it. An interrupted training goes on when the command is run again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ..encode.towers import default_tower
from ..errors import AutoLoRAError, LibraryError
from ..library.encoders import find_encoders
from ..library.folders import PACK, models_folder
from ..library.index import Library
from ..library.store import DATABASE_NAME
from ..portable import plain_console
from .captions import read_table
from .outcome import EPOCHS, MINUTES, Options
from .own import families_of, train_library
from .report import training_report, where_to_put

log = logging.getLogger("autolora.train")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m autolora_core.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("index", type=Path, metavar="INDEX_FOLDER", help="the library's folder, with library.sqlite")
    parser.add_argument("--family", help="only this base family (default: all in the library)")
    parser.add_argument("--captions", type=Path, help="CSV, a file a line: file,caption[,caption...]")
    parser.add_argument("--out", type=Path, help="folder for the encoder, or its file (*.safetensors)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="about how long (default %(default)g)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="0 leaves the set transformer out")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> str:
    """Train, save, encode the index again; the report."""
    if not (args.index / DATABASE_NAME).is_file():
        raise LibraryError("there is no library", path=args.index, fix="give the folder that Encode LoRA Library names")
    home = models_folder()
    out, name = (args.out or home), ""
    if out is None:
        raise LibraryError("this pack does not lie in ComfyUI's custom_nodes", key="--out",
                           fix="say where to save with --out, for example --out ComfyUI/models/autolora")  # fmt: skip
    if out.suffix == ".safetensors":
        out, name = out.parent, out.name
    searched = list(dict.fromkeys(folder for folder in (home, out, PACK / "models") if folder is not None))
    tower = default_tower(searched)
    rows = read_table(args.captions) if args.captions else []
    with Library.open(args.index) as library:
        options = Options(tuple(rows), max(args.epochs, 0), args.minutes, name)
        families = families_of(library, args.family)
        outcomes, notes = train_library(
            library, tower, out, families, options, find_encoders(searched), progress=_progress(), searched=searched
        )
        report = training_report(outcomes, notes)
        if any(outcome.path for outcome in outcomes):
            fitted = library.fit(tower, shipped=find_encoders(searched, library.folder.name))
            report += "\n\nThe index uses, " + "; ".join(fitted.lines()) + "."
            if not _is_searched(out, home):
                report += "\n" + where_to_put(Path(next(o.path for o in outcomes if o.path)))
    return report


def _is_searched(out: Path, home: Path | None) -> bool:
    """Does Encode LoRA Library look there? In the ComfyUI around the pack, in the pack's own models, and, of a ComfyUI
    elsewhere, in what ends like its folder for encoders."""
    known = [folder.resolve() for folder in (home, PACK / "models") if folder is not None]
    return out.resolve() in known or out.resolve().parts[-2:] == ("models", "autolora")


def _progress():
    """Percents on standard error, each once."""
    shown = [-1]

    def progress(done: int, total: int, name: str) -> None:
        percent = int(100 * done / max(total, 1))
        if percent > shown[0]:
            shown[0] = percent
            sys.stderr.write(f"\r{percent:3d} % {name:<16}" + ("\n" if percent >= 100 else ""))
            sys.stderr.flush()

    return progress


def main() -> int:
    plain_console()
    args = parse()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        sys.stdout.write(run(args) + "\n")
    except AutoLoRAError as error:
        sys.stderr.write(f"\n{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
