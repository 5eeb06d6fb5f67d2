"""What the tests of scripts/batch.py share: a table of prompts, the command, and what a folder must hold at its end."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts._lib.paths import REPO
from scripts._lib.png import pixels

SUBJECTS = ("otter", "castle", "volcano", "sunflower", "tractor", "rocket")
STYLES = ("pixel art style", "watercolour style")


def write_table(path: Path, count: int = 12) -> Path:
    """A CSV of ``count`` prompts that pick LoRAs of the stand-in world, each with its seed."""
    pairs = [(subject, style) for subject in SUBJECTS for style in STYLES]
    rows = [f'"the {s}, {t}",{number}' for number, (s, t) in enumerate((pairs * count)[:count], 1)]
    path.write_text("\n".join(["prompt,seed", *rows]) + "\n", encoding="utf-8")
    return path


def start(table: Path, out: Path, servers: list[str], *more: str) -> subprocess.Popen[str]:
    """The command as a user types it, in a process of its own."""
    named = [word for server in servers for word in ("--server", server)]
    command = [sys.executable, str(REPO / "scripts" / "batch.py"), str(table), *named, "--out", str(out), *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, encoding="utf-8", env={**os.environ, "PYTHONIOENCODING": "utf-8"}, **pipes)


def finished(process: subprocess.Popen[str], limit: float = 300.0) -> str:
    """Wait for the command; what it printed. It must have said that all went well."""
    said, _ = process.communicate(timeout=limit)
    assert process.returncode == 0, said
    return said


def manifest(out: Path) -> list[dict[str, Any]]:
    """Whole lines of the manifest, so far."""
    path = out / "manifest.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str] | None = None, limit: float = 120.0) -> None:
    """Until ``what()`` is true. Fails when the time or the process has ended before."""
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(0.01)


def check(out: Path, count: int) -> list[dict[str, Any]]:
    """Each picture exactly once, every file as the manifest says, nothing else in the folder; the manifest's lines."""
    lines = manifest(out)
    assert len(lines) == len({line["id"] for line in lines}) == count
    assert [line["status"] for line in lines] == ["done"] * count
    assert sorted(line["row"] for line in lines) == list(range(1, count + 1))
    files = [file for line in lines for file in line["files"]]
    assert {path.name for path in out.glob("*.png")} == {file["name"] for file in files}
    for file in files:
        data = (out / file["name"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (file["sha256"], file["bytes"])
    assert not list(out.glob("*.part"))
    return sorted(lines, key=lambda line: line["row"])


def pictures(out: Path, lines: list[dict[str, Any]]) -> list[list[tuple[bytes, bytes]]]:
    """The pixels of every row's files. (The graph in a PNG holds ComfyUI's own marks of when a file was looked at.)"""
    return [[pixels((out / file["name"]).read_bytes()) for file in line["files"]] for line in lines]


def saved_on(*bases: Path) -> int:
    """How many pictures servers have saved in their own output folders."""
    return sum(len(list((base / "output" / "autolora").glob("*.png"))) for base in bases)
