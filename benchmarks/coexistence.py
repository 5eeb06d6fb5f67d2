"""Does our Apply leave every other node alone, and they it? The cases of ``tests/test_coexist_*.py``, counted.

    python -m benchmarks.coexistence [--also FOLDER]        writes benchmarks/results/coexistence.json

Every case is a test on a real ComfyUI server, after which the base model must be bit for bit what it was. They run on
the ComfyUI of ``scripts/test.py`` (or ``COMFYUI_PATH``) and, with ``--also``, on another one (``COMFYUI_PYTHON`` says
which interpreter runs it). A case that fails after it passed, because the base changed, counts as a failure. Skipped
cases, with their reasons, are those whose nodes a ComfyUI does not have, or whose pack or compiler is not there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import REPO, write_results
from scripts._lib.install import find

COMMAND = "python -m benchmarks.coexistence"
TESTS = "test_coexist_*.py"
_WORST = ("failed", "skipped", "passed")  # of a case that is told twice, by its call and by its teardown
Row = dict[str, Any]


def measure(also: Sequence[str] = ()) -> tuple[dict[str, int], list[Row]]:
    """Run all cases on the usual ComfyUI and on the folders of ``also``; (figures, rows).

    Figures: ``coexistence_cases`` (that ran), ``coexistence_failures``, ``coexistence_skipped``; a case counts once for
    each ComfyUI. Rows: ``case``, ``outcome`` (passed, failed, skipped), ``comfyui`` (its version), and ``why``.
    """
    rows: list[Row] = []
    for folder in (None, *also):
        environment = dict(os.environ) if folder is None else {**os.environ, "COMFYUI_PATH": folder}
        rows += run(sorted((REPO / "tests").glob(TESTS)), environment, find(folder).version)
    return figures_of(rows), rows


def run(files: Sequence[Path], environment: Mapping[str, str], version: str) -> list[Row]:
    """One row a test of ``files``. Raises ``RuntimeError`` with pytest's last lines when it did not get to the end."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += map(str, files)
        done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, encoding="utf-8")
        if done.returncode not in (0, 1) or not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return [{**row, "comfyui": version} for row in rows_of(report)]


def rows_of(report: Path) -> list[Row]:
    """The cases of a JUnit report, each once, with the worst that was told of it."""
    found: dict[str, Row] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad, skipped = next((part for part in case if part.tag in ("failure", "error")), None), case.find("skipped")
        outcome = "failed" if bad is not None else "skipped" if skipped is not None else "passed"
        why = bad if bad is not None else skipped
        row = {"case": _name(case), "outcome": outcome}
        if why is not None:
            row["why"] = str(why.get("message")).partition("\n")[0]
        known = found.get(row["case"])
        if known is None or _WORST.index(outcome) < _WORST.index(known["outcome"]):
            found[row["case"]] = row
    return list(found.values())


def _name(case: ElementTree.Element) -> str:
    """``compile: before and behind[eager]`` of ``tests.test_coexist_compile``, ``test_before_and_behind[eager]``."""
    module = case.get("classname", "").rpartition(".")[2].removeprefix("test_coexist_")
    name, bracket, parameters = case.get("name", "").removeprefix("test_").partition("[")
    return f"{module}: {name.replace('_', ' ')}{bracket}{parameters}"


def figures_of(rows: Sequence[Row]) -> dict[str, int]:
    """Counts by outcome; those skipped are no cases."""
    count = {kind: sum(row["outcome"] == kind for row in rows) for kind in _WORST}
    return {
        "coexistence_cases": count["passed"] + count["failed"],
        "coexistence_failures": count["failed"],
        "coexistence_skipped": count["skipped"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--also", action="append", default=[], help="one more ComfyUI folder; may be given again")
    given = parser.parse_args()
    figures, rows = measure(given.also)
    for row in rows:
        if row["outcome"] != "passed":
            print(f"{row['outcome']} on {row['comfyui']}: {row['case']}: {row['why']}")
    print(figures)
    command = " ".join([COMMAND, *(f"--also {Path(folder).name}" for folder in given.also)])
    print(write_results("coexistence", command, 0, figures, rows))


if __name__ == "__main__":
    main()
