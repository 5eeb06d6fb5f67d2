"""Which way of fusing LoRAs keeps what was asked for? Against real pictures of the combinations.

    python -m benchmarks.fusion [--part test] [--pairs 200] [--seeds 4] [--k 2,3,5,8] [--methods sum,ssr,…]

draws pairs of the demo world that nothing was trained on (``fusion_cases``), fuses their LoRAs and as many distractors
in every mode of the Apply node (``fusion_methods``), lets the judge name the pictures (``fusion_judge``), keeps every
verdict in the cache (``fusion_store``) and writes ``benchmarks/results/fusion.json`` from all that is there
(``fusion_table``). Stop it and start it again at will; ``--table`` only writes. ``--part validation`` is for choosing
constants, its results stay in the cache. Two processes of one thread: ``--shard 0/2`` and ``--shard 1/2``.
"""

from __future__ import annotations

import argparse
import logging
import os
import time

import torch

from benchmarks.fusion_cases import Case, draw_cases, zoo_answers
from benchmarks.fusion_entries import Entry, entries
from benchmarks.fusion_run import Runner, Scope
from benchmarks.fusion_shelf import SAMPLE, SCALE, TEST, VALIDATION, Shelf, open_shelf
from benchmarks.fusion_store import Verdicts
from benchmarks.fusion_table import write_table
from benchmarks.zoo_needed import zoo_needed
from zoo.budget import positive_int
from zoo.cache import zoo_dir
from zoo.pictures import Pictures
from zoo.splits import DEFAULT_STYLE
from zoo.transforms import TRANSFORMS

log = logging.getLogger("benchmarks.fusion")
STEPS = 12


def all_cases(shelf: Shelf, part: str, limit: int | None = None) -> list[Case]:
    """The first ``limit`` cases of a part whose real picture exists."""
    pictures = Pictures.load()

    def exists(subject: str, style: str) -> bool:
        return (subject, DEFAULT_STYLE if style in TRANSFORMS else style) in pictures.index

    return draw_cases(shelf, part, exists, None if shelf.name == "shipped" else zoo_answers(), limit)


def chosen(names: str | None, known: dict[str, Entry]) -> dict[str, Entry]:
    if not names:
        return {name: entry for name, entry in known.items() if not entry.asked}
    return {name: known[name] for name in names.split(",")}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def run(args: argparse.Namespace, command: str) -> None:
    """Draw what is missing, then write the table."""
    shelf, known = open_shelf(args.shelf), entries()
    every = all_cases(shelf, args.part, args.pairs)
    there = [(i, case) for i, case in enumerate(every) if all(map(shelf.ready, case.wanted))]
    log.info("%d pairs, both LoRAs of %d are trained", len(every), len(there))
    name = f"{args.shelf}-{args.part}-{args.steps}"
    if not args.table:
        mine, of = args.shard
        until = time.time() + 60 * args.minutes if args.minutes else float("inf")
        runner = Runner(shelf, Verdicts.open(name), args.steps, not args.no_compile)
        runner.run(there[mine::of], Scope(chosen(args.methods, known), args.k, args.seeds, until))
    if args.sheet:
        from benchmarks.fusion_sheet import write_sheet

        log.info("wrote %s", write_sheet(shelf, [c for _, c in there], chosen(args.methods, known), args))
    keys = {name: entry.key for name, entry in known.items()}
    ours = [name for name, entry in known.items() if entry.ours]
    path = write_table(Verdicts.open(name), [c for _, c in there], keys, ours, command, args)
    log.info("wrote %s", path)


def shard(text: str) -> tuple[int, int]:
    mine, of = text.split("/")
    return int(mine), int(of)


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shelf", choices=(SAMPLE, SCALE, "shipped"), default=SAMPLE)
    parser.add_argument("--part", choices=(VALIDATION, TEST), default=TEST)
    parser.add_argument("--pairs", type=positive_int, default=200)
    parser.add_argument("--seeds", type=positive_int, default=4)
    parser.add_argument("--k", type=numbers, default=[2, 3, 5, 8], help="numbers of LoRAs, as 2,3,5,8")
    parser.add_argument("--methods", help="names, as sum,ssr,gate; default all but gates in training")
    parser.add_argument("--steps", type=positive_int, default=STEPS)
    parser.add_argument("--minutes", type=float, help="begin no new pair after this long")
    parser.add_argument("--shard", type=shard, default=(0, 1), help="as 0/2 and 1/2, for two processes")
    parser.add_argument("--table", action="store_true", help="draw nothing, write the results")
    parser.add_argument("--sheet", action="store_true", help="draw the sheet of pictures too")
    parser.add_argument("--no-compile", action="store_true", help="gates and energy without compiling, much slower")
    args = parser.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(zoo_dir("inductor")))
    torch.set_num_threads(1)
    ks = ",".join(map(str, args.k))
    run(args, f"python -m benchmarks.fusion --part {args.part} --pairs {args.pairs} --seeds {args.seeds} --k {ks}")


if __name__ == "__main__":
    with zoo_needed():
        main()
