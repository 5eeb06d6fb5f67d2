"""Benchmarks of several long parts: each runs in a process of its own and is kept, so a run can be taken up again.

A part is a module with ``measure(quick: bool) -> (figures, rows)``; run by itself (``python -m benchmarks.scale --part
query``) it is measured anew and the others are taken from the cache, or on another machine from the results file as it
is. Every row says its part, and the commit that it was measured at; one of another machine says that, too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import REPO, commit, machine, read_results, write_results


def kept(benchmark: str, part: str) -> Path:
    """Where a part's figures and rows lie until the results file is written."""
    cache = Path(os.environ.get("AUTOLORA_CACHE", REPO / ".cache"))
    return cache / "benchmarks" / benchmark / f"{part}.json"


def measure_part(benchmark: str, module: str, part: str, quick: bool) -> None:
    """Measure in this process and keep what came out, but of a quick run, which is only shown."""
    figures, rows = importlib.import_module(module).measure(quick)
    if quick:
        print(json.dumps({"figures": dict(figures), "rows": [dict(row) for row in rows]}, indent=1))
        return
    path = kept(benchmark, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"commit": commit(), "figures": dict(figures), "rows": [dict(row) for row in rows]}
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def run(
    benchmark: str, parts: Mapping[str, str], arguments: Sequence[str], seed: int = 0, results: str | None = None
) -> None:
    """Measure ``parts`` (name → module), or those asked for, and write ``benchmarks/results/<results>.json``, by
    default under the benchmark's own name."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}")
    parser.add_argument("--part", action="append", choices=list(parts), help="measure this part anew; may be repeated")
    parser.add_argument("--keep", action="store_true", help="measure only the parts that were not measured yet")
    parser.add_argument("--quick", action="store_true", help="a small run that writes no results file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the process of one part
    options = parser.parse_args(arguments)
    if options.here:
        measure_part(benchmark, parts[options.part[0]], options.part[0], options.quick)
        return
    asked = options.part or [part for part in parts if not (options.keep and kept(benchmark, part).exists())]
    for part in asked:
        print(f"{benchmark}: {part} …", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--here", "--part", part]
        if subprocess.run([*command, *(["--quick"] if options.quick else [])], cwd=REPO).returncode:
            raise SystemExit(f"{benchmark}: {part} did not come to its end, as said above")
    if not options.quick:
        write(benchmark, parts, seed, results)


def write(benchmark: str, parts: Mapping[str, str], seed: int, results: str | None = None) -> None:
    """The results file: every part that was measured here, and of the others what the file says already."""
    name = results or benchmark
    before = read_results(name) or {"machine": machine(), "figures": {}, "rows": []}
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    elsewhere = False
    for part in parts:
        path = kept(benchmark, part)
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            figures |= found["figures"]
            rows += [{"part": part, "commit": found["commit"], **row} for row in found["rows"]]
            continue
        old = [row for row in before["rows"] if row.get("part") == part]
        print(f"{benchmark}: {part} was never measured here; " + ("what the results file says of it stays"
              if old else "the results file is without it"))  # fmt: skip
        other = {} if before["machine"] == machine() else {"machine": before["machine"]}
        rows += [{**other, **row} for row in old]
        elsewhere |= bool(old)
    # Which part a figure came from the file does not say: what no part that was measured here makes is kept.
    figures = {**(before["figures"] if elsewhere else {}), **figures}
    print(write_results(name, f"python -m benchmarks.{benchmark}", seed, figures, rows))
