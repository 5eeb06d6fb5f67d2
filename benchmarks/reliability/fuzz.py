"""Part ``fuzz``: 100,000 hostile inputs to everything that reads what somebody else wrote, and how many went wrong.

``python -m benchmarks.reliability.fuzz --target header --cases 2000`` tries one target and shows what failed.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from .fuzzing import runner, targets

SEED = 20
QUICK_SHARE = 33  # a quick run tries one case in so many


def measure(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures ``fuzz_cases``, ``fuzz_failures``, ``fuzz_targets``; a row a target."""
    rows = [_row(name, _cases(name, quick), SEED) for name in targets.NAMES]
    figures = {
        "fuzz_cases": sum(row["cases"] for row in rows),
        "fuzz_failures": sum(row["failures"] for row in rows),
        "fuzz_targets": len(rows),
        "fuzz_refused_share": sum(row["refused"] for row in rows) / max(1, sum(row["cases"] for row in rows)),
        "fuzz_cpu_minutes": sum(row["cpu_seconds"] for row in rows) / 60,
        "fuzz_worst_case_seconds": max(row["worst_seconds"] for row in rows),
        "fuzz_worst_memory_share": max(row["worst_memory"] for row in rows),
    }
    return figures, rows


def _cases(name: str, quick: bool) -> int:
    cases = targets.load(name).CASES
    return max(cases // QUICK_SHARE, 20) if quick else cases


def _row(name: str, cases: int, seed: int) -> dict[str, Any]:
    save = os.environ.get("AUTOLORA_FUZZ_SAVE")
    row = runner.run_target(name, cases, seed, Path(save) if save else None)
    kinds = row.pop("kinds")
    for kind, (count, words) in kinds.items():
        print(f"  {name}: {count} × {kind}: {words!a}", flush=True)
    print(f"  {json.dumps(row)}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=targets.NAMES)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    for name in options.target or targets.NAMES:
        _row(name, options.cases or _cases(name, False), options.seed)


if __name__ == "__main__":
    main()
