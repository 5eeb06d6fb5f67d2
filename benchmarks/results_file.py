"""One shape for every file in `benchmarks/results/`: what was measured, by which command, on what.

    {"command", "commit", "date", "machine", "seed", "figures": {flat name: number}, "rows": [...]}

`figures` are what the README quotes; `rows` hold the counts and intervals behind them.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results"


def written(path: Path) -> Path:
    """Where a file of this repository is written: in its place, or at the same place below the folder that
    `AUTOLORA_RESULTS` names (the tests', so that trying a benchmark changes nothing here). The folder is made."""
    root = os.environ.get("AUTOLORA_RESULTS")
    out = Path(root) / path.relative_to(REPO) if root and path.is_relative_to(REPO) else path
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def commit() -> str:
    """The commit measured, with `-dirty` when tracked code differs from it; outside a checkout what
    `AUTOLORA_COMMIT` says, or 'unknown'."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=REPO, capture_output=True, encoding="utf-8", check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout: a user's copy
        return os.environ.get("AUTOLORA_COMMIT", "unknown")


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def machine() -> str:
    """Processor, cores, system, Python and torch, in one line."""
    import torch

    parts = [f"{_cpu_name()}, {os.cpu_count()} cores", platform.system(), f"Python {platform.python_version()}"]
    return ", ".join([*parts, f"torch {torch.__version__}"])


def document(
    command: str, seed: int, figures: Mapping[str, float], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The whole file as a dict; refuses figures that are not finite numbers."""
    for name, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"figure {name} is {value!r}; a figure is a finite number")
    return {
        "command": command,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "seed": seed,
        "figures": dict(sorted(figures.items())),
        "rows": [dict(r) for r in rows],
    }


def write_results(
    name: str,
    command: str,
    seed: int,
    figures: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]] = (),
    folder: Path = RESULTS,
) -> Path:
    """Write `<folder>/<name>.json` in one move, a row a line so that diffs can be read."""
    data = document(command, seed, figures, rows)
    body = ",\n".join("  " + json.dumps(r, ensure_ascii=False) for r in data.pop("rows"))
    head = json.dumps(data, ensure_ascii=False, indent=1)[:-2]
    text = f'{head},\n "rows": [\n{body}\n ]\n}}\n'
    json.loads(text)
    path = written(folder / f"{name}.json")
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8", newline="\n"
    ) as handle:
        handle.write(text)
    os.chmod(handle.name, 0o644)
    os.replace(handle.name, path)
    return path


def read_results(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """An earlier results file, or None."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
