"""Encode LoRA folders into a library without ComfyUI, on this machine or on a Ray cluster.

    python -m autolora_core.encode --library INDEX_FOLDER --loras FOLDER [--loras FOLDER ...] [--ray ADDRESS]

INDEX_FOLDER is what the report of Encode LoRA Library calls "Index" (``ComfyUI/user/autolora/default``); it is made
when it is not there. Only new and changed files are read; an interrupted run goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..encode.towers import TextTower, default_tower
from ..errors import AutoLoRAError, LibraryError
from ..library.encoders import find_encoders
from ..library.entries import ScanReport
from ..library.folders import PACK, models_folder
from ..library.index import Library
from ..library.report import Summary, encode_report
from ..library.walk import Scope
from ..portable import plain_console
from ..retrieve.prepare import warm
from .console import Bar, Stop
from .paths import PathMap

STOPPED = "Stopped. What was read is kept; give the same command again to go on."
STOPPED_CODE = 130  # what shells know an interrupted program by


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m autolora_core.encode", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--library", type=Path, required=True, metavar="INDEX_FOLDER", help="the library's folder")
    parser.add_argument("--loras", type=Path, action="append", required=True, metavar="FOLDER",
                        help="a folder of LoRA files; may be repeated, the first one wins a name")  # fmt: skip
    parser.add_argument("--names", default="", metavar="FILTER", help="only these files, as name_filter of the node")
    parser.add_argument("--force", action="store_true", help="read every file again")
    parser.add_argument("--models", type=Path, action="append", default=[], metavar="FOLDER",
                        help="more folders with encoders and the text tower: ComfyUI/models/autolora")  # fmt: skip
    parser.add_argument("--ray", metavar="ADDRESS", help="read the files on this Ray cluster: host:port, or auto")
    parser.add_argument("--map", action="append", default=[], metavar="HERE=THERE", dest="maps",
                        help="where a folder of this machine lies on the workers; may be repeated")  # fmt: skip
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, bar: Bar, stop: Stop) -> str:
    """Scan, fit, compare, prepare, as Encode LoRA Library does; its report. Raises KeyboardInterrupt when stopped."""
    for folder in args.loras:
        if not folder.is_dir():
            raise LibraryError("there is no such folder", path=folder, fix="give --loras a folder that exists")
    scope = Scope.of([os.path.abspath(folder) for folder in args.loras], "", args.names)
    searched = list(dict.fromkeys([*args.models, *filter(None, [models_folder()]), PACK / "models"]))
    with Library.open(args.library) as library:
        bar.begin("Reading")
        scan, notes = _scan(library, scope, args, bar, stop)
        if scan.stopped:
            raise KeyboardInterrupt
        report = _finish(library, scope, scan, default_tower(searched), searched, bar, stop)
    return "\n\n".join([report, *notes])


def _scan(library: Library, scope: Scope, args, bar: Bar, stop: Stop) -> tuple[ScanReport, list[str]]:
    if not args.ray:
        return library.scan(scope, force=args.force, progress=bar, should_stop=stop), []
    from .driver import cluster_lines, scan_on_cluster
    from .rays import RayCluster

    # What Ray has to say of its nodes goes beside the progress, not into the report.
    # It hears signals in its own way once it runs, so we listen anew.
    with contextlib.redirect_stdout(sys.stderr), RayCluster(args.ray) as cluster, stop.listening():
        how = {"paths": PathMap.parse(args.maps), "force": args.force, "progress": bar, "should_stop": stop}
        scan, workers = scan_on_cluster(library, scope, cluster, **how)
    return scan, ["\n".join(cluster_lines(workers))] if cluster_lines(workers) else []


def _finish(library: Library, scope: Scope, scan: ScanReport, tower: TextTower, searched, bar: Bar, stop: Stop) -> str:
    """All that follows the reading is done here: it takes a small part of the time."""

    def tick(done: int, total: int, name: str = "") -> None:
        stop.check()
        bar(done, total, name)

    bar.begin("Fitting")
    shipped = find_encoders(searched, library.folder.name)
    fitted = library.fit(tower, progress=tick, shipped=shipped)
    view = library.view(scope)
    families = sorted({entry.family for entry in view.entries()} - {"unknown"})
    bar.begin("Comparing")
    near = {family: view.compare_duplicates(family, tick) for family in families}
    bar.begin("Words")
    words = library.text_tower(tower)
    searches = {family: how for family in families if (how := warm(view, family, words, tick))}
    bar.end()
    entries, place = view.entries(), str(library.folder)
    return encode_report(Summary(scan, fitted, entries, view.exact_copies(), near, place, view.unencoded(), searches))


def main(arguments: Sequence[str] | None = None) -> int:
    plain_console()
    args = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    bar, stop = Bar(), Stop()
    try:
        with stop.listening():
            report = run(args, bar, stop)
    except (KeyboardInterrupt, AutoLoRAError) as error:
        bar.end()
        stopped = stop.asked or isinstance(error, KeyboardInterrupt)
        sys.stderr.write(f"{STOPPED if stopped else error}\n")
        return STOPPED_CODE if stopped else 2
    sys.stdout.write(report + "\n")
    return 0
