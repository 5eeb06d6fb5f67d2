"""``python -m benchmarks.conformance``: fill the matrix and write ``benchmarks/results/conformance.json`` and the page.

Each base runs in a process of its own, with the ComfyUI of ``scripts/test.py`` or ``COMFYUI_PATH``. What is done stays
in the cache; ``--keep`` goes on where an earlier run stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import in_comfy
from benchmarks.results_file import REPO

from .bases import BASES
from .updates import KINDS

REAL, LAYOUTS, TEXT = "real files", "real layouts", "text encoders"
UNETS = ("SD1.5", "SD2", "SDXL")  # the slowest, so they come last
PARTS = (*(base.name for base in BASES if base.name not in UNETS), TEXT, LAYOUTS, REAL, *UNETS)


def part_cells(name: str, folder: Path, kinds: Sequence[str] = ()) -> Iterator[dict]:
    """The rows of one part of the matrix, or of some kinds of adapter in it, measured in this process."""
    in_comfy.start()
    import logging

    import torch

    logging.disable(logging.ERROR)  # the stock loader logs what it cannot read; rows say it
    torch.set_num_threads(1)
    from . import cells, real

    makers: dict[str, Callable] = {REAL: real.real_cells, LAYOUTS: real.layout_cells}
    base = next((base for base in BASES if base.name == name), None)
    if base is not None and not base.available:
        return
    some = [kind for kind in KINDS if not kinds or kind.name in kinds]
    found = makers[name](folder) if base is None else cells.base_cells(base, folder, some)
    for cell in found:
        yield cell.row()


def cache_folder() -> Path:
    """Where parts are kept, apart for each ComfyUI."""
    sys.path.append(str(REPO / "tests"))
    from comfy_local import comfy_path

    cache = Path(os.environ.get("AUTOLORA_CACHE", REPO / ".cache"))
    return cache / "conformance" / comfy_path().name


def run_part(name: str, keep: bool, kinds: Sequence[str] = ()) -> list[dict]:
    """The rows of a part, from the cache or from a process of its own."""
    if kinds:
        with tempfile.TemporaryDirectory() as folder:
            return _measured(name, Path(folder) / "rows.json", kinds)
    out = cache_folder() / f"{name.replace(' ', '_')}.json"
    if keep and out.exists():
        return json.loads(out.read_text(encoding="utf-8"))
    return _measured(name, out, ())


def _measured(name: str, out: Path, kinds: Sequence[str]) -> list[dict]:
    out.parent.mkdir(parents=True, exist_ok=True)
    if name == TEXT:
        subprocess.run([sys.executable, "-m", "benchmarks.conformance_text", str(out)], cwd=REPO, check=True)
        rows = [_text_row(row) for row in json.loads(out.read_text(encoding="utf-8"))]
        out.write_text(json.dumps(rows), encoding="utf-8")
        return rows
    command = [sys.executable, "-m", "benchmarks.conformance", "--part", name, "--out", str(out)]
    command += [word for kind in kinds for word in ("--kind", kind)]
    subprocess.run(command, cwd=REPO, check=True)
    return json.loads(out.read_text(encoding="utf-8"))


def _text_row(row: dict) -> dict:
    """A row of ``benchmarks.conformance_text`` as one of the matrix."""
    same = {"outcome": row["outcome"], "error": row["max_rel_error"], "note": row["note"]}
    return {"base": f"{row['architecture']}, text encoders", "form": row["format"], "kind": row["adapter"], **same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep what an earlier run measured")
    parser.add_argument("--parts", nargs="*", default=PARTS, metavar="PART", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--kind", action="append", default=[], choices=[kind.name for kind in KINDS],
                        help="only this kind of adapter: nothing is written")  # fmt: skip
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        folder = cache_folder() / "loras" / str(os.getpid())
        rows = list(part_cells(given.part, folder, given.kind))
        given.out.write_text(json.dumps(rows), encoding="utf-8")
        return
    rows = []
    for name in given.parts:
        found = run_part(name, given.keep, given.kind)
        rows += found
        counts = {outcome: sum(row["outcome"] == outcome for row in found) for outcome in ("exact", "stock", "refused")}
        wrong = [row for row in found if row["outcome"] == "wrong"]
        print(f"{name}: {counts}, wrong {len(wrong)}", flush=True)
        for row in wrong:
            print(f"  {row['form']} / {row['kind']}: {row['error']} {row['note']}", flush=True)
    from .report import write

    write(rows, complete=set(given.parts) == set(PARTS) and not given.kind)


if __name__ == "__main__":
    main()
