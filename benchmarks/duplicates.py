"""Precision and recall of Find LoRAs Like This on copies, cuts, merges and other epochs of the shipped LoRAs.

    python -m benchmarks.duplicates [--sources 24]

writes `benchmarks/results/duplicates.json`. Half of the shipped LoRAs are for choosing thresholds ("dev"): the rows of
kind `threshold` say how far each threshold stays from both sides there. Files made from the other half ("test") are
scanned into one library with all shipped LoRAs, and every one of them is searched for; then the library is listed. What
is there is never told: relations are judged by `duplicate_files.truth`. Epochs come from runs trained for this
(`duplicate_epochs`); without their cache they are left out, and the rows say so.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from autolora_core.library.grid import WIDTH, Grid, open_grid
from autolora_core.library.index import Library
from autolora_core.library.similar import find_like
from autolora_core.library.versions import list_versions
from benchmarks import duplicate_epochs
from benchmarks.duplicate_counts import Count, Figures, Rows, describe, judge, merge_is_true
from benchmarks.duplicate_files import Origin, build, write
from benchmarks.duplicate_margins import margins
from benchmarks.results_file import REPO, write_results
from zoo.cache import read_json

log = logging.getLogger("benchmarks.duplicates")
SHELF = REPO / "models" / "loras"
CHANGES = ("resaved", "rescaled", "refactorised", "part", "part", "refactorised", "part")  # of zoo.lora_variants


def shipped() -> dict[str, Origin]:
    """File name → origin of everything in models/loras. The last seven of the table are copies of earlier files."""
    rows = read_json(REPO / "zoo" / "loras.json")
    out: dict[str, Origin] = {}
    first: dict[tuple[str, str], str] = {}
    copies = iter(CHANGES)
    for row in rows:
        key = (row["label"], row["creator"])
        if key not in first:
            first[key] = row["file"]
            out[row["file"]] = Origin(row["file"])
        else:
            out[row["file"]] = _copy(first[key], next(copies), len(rows))
    return out


def _hash(text: str) -> str:
    return hashlib.sha256(f"duplicates {text}".encode()).hexdigest()


def labels() -> dict[str, str]:
    """File name → what it shows."""
    return {row["file"]: row["label"] for row in read_json(REPO / "zoo" / "loras.json")}


def _copy(run: str, kind: str, number: int) -> Origin:
    how = {
        "rescaled": {"scale": 1.3},
        "refactorised": {"form": f"zoo {number}"},
        "part": {"part": f"zoo {number}"},
    }
    return Origin(run, kind, **how.get(kind, {}))


def halves(origins: dict[str, Origin], count: int) -> tuple[list[str], list[str]]:
    """``count`` runs for choosing and ``count`` for testing, by hash of what they show: twins stay on one side."""
    shows = labels()
    runs = sorted({o.run for o in origins.values()}, key=lambda run: (_hash(shows[run]), run))
    return runs[:count], runs[len(runs) // 2 :][:count]


def epochs(folder: Path, part: str) -> dict[str, Origin]:
    """Checkpoints of one part's runs written as files; empty when they are not in the cache."""
    if duplicate_epochs.missing():
        return {}
    out = {}
    for spec in duplicate_epochs.specs():
        if spec.id.startswith(part):
            for step in duplicate_epochs.marks(spec):
                name = f"{spec.id}-{step:06d}.safetensors"
                write(folder / name, duplicate_epochs.factors(spec.id, step), "kohya", "float16")
                out[name] = Origin(spec.id, "epoch", step)
    return out


def fill(folder: Path, origins: dict[str, Origin]) -> None:
    """The shipped files, linked into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in origins:
        os.symlink(SHELF / name, folder / name)


def search(
    library: Library, asked: Iterable[tuple[Path, Origin]], origin: dict[str, Origin]
) -> tuple[Count, Rows, Figures]:
    """Search for every file of ``asked``; the counts, rows of errors in factors, and times."""
    count, seconds, opened, factors, weights = Count(), [], [], [], []
    for path, mine in asked:
        began = time.perf_counter()
        found = find_like(library, path, top_k=5)
        seconds.append(time.perf_counter() - began)
        opened.append(found.opened)
        judge(count, found, mine, origin, factors, weights)
    figures = {
        "query_seconds_median": float(np.median(seconds)),
        "query_seconds_max": max(seconds),
        "query_files_opened_median": float(np.median(opened)),
        "rescale_factor_error_max": max(factors, default=0.0),
        "merge_weight_error_max": max(weights, default=0.0),
    }
    return count, count.rows("search"), figures


def listing(library: Library, origin: dict[str, Origin], made: dict[str, Origin]) -> tuple[Count, Figures]:
    """The list of the whole library: every pair said, and how many made files are tied to their source by it."""
    began = time.perf_counter()
    found = list_versions(library, "emoji")
    seconds = time.perf_counter() - began
    count, tied = Count(), set()
    for pair in found.pairs:
        a, b = origin[pair.a], origin[pair.b]
        count.pair(pair.relation.kind, a, b, pair.relation.measured.cosine)
        if a.run == b.run:
            tied |= {(pair.a, pair.relation.kind), (pair.b, pair.relation.kind)}
    wholes = set()
    for one in found.merges:
        count.said["merged"] += 1
        good = merge_is_true(one, origin)
        count.right["merged"] += good
        wholes |= {one.whole} if good else set()
        if not good:
            parts = [describe(origin[d]) for d in (one.whole, one.first, one.second)]
            count.wrong.append(
                {"kind": "wrong", "said": f"merged {one.merge}", "a": parts[0], "b": " + ".join(parts[1:])}
            )
    for digest, mine in made.items():
        count.wanted[mine.kind] += 1
        count.found[mine.kind] += digest in wholes if mine.kind == "merged" else (digest, mine.kind) in tied
    return count, {"list_seconds": seconds, "list_pairs": float(len(found.pairs))}


def second_editions(library: Library, origins: dict[str, Origin]) -> tuple[Figures, Rows]:
    """LoRAs of one subject or style by two creators: found as most alike, never called versions."""
    labels = {row["file"]: (row["label"], row["creator"]) for row in read_json(REPO / "zoo" / "loras.json")}
    rows, first, called = [], 0, 0
    for name, (label, creator) in labels.items():
        twins = {n for n, (other, who) in labels.items() if other == label and who != creator}
        if not twins or origins[name].kind != "original":
            continue
        found = find_like(library, SHELF / name, top_k=3)
        others = [hit for hit in found.hits if not hit.is_version and hit.relation.kind != "merged"]
        first += bool(others) and others[0].entry.name.split("/")[-1] in twins
        called += any(hit.is_version and hit.entry.name.split("/")[-1] in twins for hit in found.hits)
        rows.append({"kind": "second edition", "file": name, "cosine": round(others[0].cosine, 4) if others else None})
    return {
        "second_editions_first": first / len(rows),
        "second_editions_called_versions": float(called),
        "second_editions": float(len(rows)),
    }, rows


def time_of_ten_thousand(grid: Grid, seed: int = 0) -> float:
    """Seconds to search a grid of 10,000 rows (the library's own and random ones) for one row."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((10_000, WIDTH)).astype(np.float32)
    rows[: len(grid.rows)] = grid.rows
    large = Grid(grid.family, tuple(f"{i:05d}" for i in range(len(rows))), rows)
    large.cosines(rows[0])
    began = time.perf_counter()
    for i in range(5):
        np.argsort(-np.abs(large.cosines(rows[i])), kind="stable")
    return (time.perf_counter() - began) / 5


def run(sources: int, base: Path) -> tuple[Figures, Rows]:
    """Build, scan, search, list."""
    origins = shipped()
    dev, test = halves(origins, sources)
    originals = {name: SHELF / name for name, origin in origins.items() if origin.kind == "original"}
    rows = margins(base / "dev", dev, originals, epochs(base / "dev" / "epochs", "dev"), labels())
    log.info("dev margins measured")
    folder = base / "test"
    fill(folder, origins)
    made = build(folder / "made", originals, test) | {}
    made |= epochs(folder / "made", "test")
    log.info("%d files made from %d LoRAs", len(made), len(test))
    with Library.open(base / "library") as library:
        began = time.perf_counter()
        library.scan({"loras": folder})
        scanned = time.perf_counter() - began
        log.info("scanned in %.0f s", scanned)
        known = origins | {f"made/{name}": origin for name, origin in made.items()}
        origin = {e.hash: known[e.name.replace(os.sep, "/")] for e in library.entries() if e.hash}
        grid = open_grid(library, "emoji")
        count, more, figures = search(library, [(folder / "made" / n, o) for n, o in made.items()], origin)
        log.info("searched: %s", count.figures("search_"))
        listed, timing = listing(library, origin, {d: o for d, o in origin.items() if o.kind != "original"})
        editions, seconds = second_editions(library, origins)
    figures |= count.figures("search_") | listed.figures("list_") | timing | editions
    figures |= {"files": float(len(known)), "scan_seconds": scanned, "grid_seconds_10000": time_of_ten_thousand(grid)}
    if not any(o.kind == "epoch" for o in made.values()):
        rows.append(
            {"kind": "note", "text": "no epochs: their runs are not in the cache (benchmarks.duplicate_epochs)"}
        )
    return figures, [*rows, *more, *listed.rows("list"), *seconds]


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sources", type=int, default=24, help="LoRAs of each half that copies are made of")
    parser.add_argument("--train-epochs", action="store_true", help="train the runs for other epochs first (2 minutes)")
    parser.add_argument("--out", type=Path, help="another folder for the results")
    args = parser.parse_args()
    if args.train_epochs:
        duplicate_epochs.train()
    with tempfile.TemporaryDirectory() as folder:
        figures, rows = run(args.sources, Path(folder))
    named = {f"duplicates.{name}": value for name, value in figures.items()}
    where = {"folder": args.out} if args.out else {}
    path = write_results(
        "duplicates", f"python -m benchmarks.duplicates --sources {args.sources}", 0, named, rows, **where
    )
    log.info("wrote %s: %s", path, named)


if __name__ == "__main__":
    main()
