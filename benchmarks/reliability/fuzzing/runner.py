"""Workers one after the other, each in a process of its own: who dies or hangs is named, and another goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .oracle import REPO
from .worker import digest, read_current

MEMORY_DISK = Path("/dev/shm")  # tens of thousands of files are written; Linux has room for them in memory
SILENT = 60.0  # seconds without a new case, on the clock: the process is stopped
MOST_DEATHS = 20


def run_target(name: str, cases: int, seed: int, save: Path | None = None) -> dict[str, Any]:
    """One row: ``cases`` of the target ``name``, with what went wrong. Inputs that failed are saved below ``save``."""
    start, total = time.monotonic(), {"failures": Counter(), "outcomes": Counter(), "words": {}, "examples": {}}
    worst, done, deaths = {"cpu_seconds": 0.0, "worst_seconds": 0.0, "worst_memory": 0.0, "kept": 0, "lines": 0}, 0, 0
    while done < cases and deaths < MOST_DEATHS:
        with tempfile.TemporaryDirectory(prefix="autolora-fuzz-", dir=_disk()) as folder:
            found = _work({"target": name, "cases": cases - done, "seed": seed + deaths, "folder": folder}, total)
        deaths += found is None or "died" in found
        done += found["cases"]
        for key in worst:
            worst[key] = max(worst[key], found.get(key, 0))
    _save(save, name, total["examples"])
    return {
        "target": name, "cases": done, "failures": sum(total["failures"].values()), "deaths": deaths,
        "accepted": total["outcomes"]["accepted"], "refused": total["outcomes"]["refused"],
        "kinds": {kind: [count, total["words"].get(kind, "")] for kind, count in total["failures"].most_common()},
        "seconds": round(time.monotonic() - start, 1), **{key: round(number, 3) for key, number in worst.items()},
    }  # fmt: skip


def _disk() -> Path | None:
    return MEMORY_DISK if MEMORY_DISK.is_dir() else None


def _work(job: dict[str, Any], total: dict[str, Any]) -> dict[str, Any]:
    """One worker until it ends, by itself or not."""
    command = [sys.executable, "-m", "benchmarks.reliability.fuzzing.worker", json.dumps(job)]
    current = Path(job["folder"]) / "current"
    with tempfile.TemporaryFile() as errors, subprocess.Popen(
        command, cwd=REPO, stderr=errors
    ) as process:  # fmt: skip
        hung = _watch(process, current)
        code = process.wait()
        errors.seek(0)
        words = errors.read().decode("utf-8", "replace")[-2000:]
    if code == 0 and not hung:
        found = json.loads((Path(job["folder"]) / "found.json").read_text(encoding="utf-8"))
        for key in ("failures", "outcomes"):
            total[key].update(found[key])
        total["words"] |= found["words"]
        total["examples"] |= found["examples"]
        return found
    if not current.exists() or code > 0:  # a signal ends a process with a number below 0
        raise RuntimeError(f"the worker of {job['target']} is broken:\n{words}")
    done, data = read_current(current)
    kind = f"no end in {SILENT:g} s" if hung else f"the process ended with {code}"
    total["failures"][kind] += 1
    total["outcomes"]["failed"] += 1
    total["words"].setdefault(kind, words[-500:])
    total["examples"].setdefault(kind, []).append(data.hex())
    return {"cases": done + 1, "died": True}


def _watch(process: subprocess.Popen, current: Path) -> bool:
    """Wait for the end; whether it had to be stopped because no new case began for long."""
    last, since = b"", time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        now = current.read_bytes()[:8] if current.exists() else b""
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > SILENT:
            process.kill()
            return True
    return False


def _save(folder: Path | None, name: str, examples: dict[str, list[str]]) -> None:
    """The smallest input of each kind of failure."""
    if folder is None:
        return
    for inputs in examples.values():
        data = min((bytes.fromhex(one) for one in inputs), key=len)
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / digest(data)).write_bytes(data)
