"""What a batch keeps on disk: the manifest of what is finished, and the outbox of what was sent and is not back yet.

Both are JSON lines that are only appended to, each line on the disk before the next step is taken.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from ..cli import ScriptFailed
from ..files import write_atomic

MANIFEST, OUTBOX = "manifest.jsonl", "outbox.jsonl"
FORMAT = "autolora-batch/1"


class Lines:
    """A file of JSON lines. What a cut of power left half written at its end is taken away when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.read = self._mend()

    def append(self, line: dict[str, Any]) -> None:
        """Write a line and wait until it is on the disk."""
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock, self.path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, lines: list[dict[str, Any]]) -> None:
        """Replace all lines at once."""
        data = b"".join(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for line in lines)
        with self._lock:
            write_atomic(self.path, data)

    def _mend(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole, torn = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
        if torn:
            with self.path.open("rb+") as file:
                file.truncate(len(whole))
        return [self._parsed(number, line) for number, line in enumerate(whole.split(b"\n"), 1) if line.strip()]

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ScriptFailed(f"{self.path}, line {number}: this is not a line of ours. Delete it and start again")
        return value


class Books:
    """Manifest and outbox of one folder.

    ``done``: job id → its last line in the manifest. ``out``: prompt id → what was sent, of jobs without such a line.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest, self.outbox = Lines(folder / MANIFEST), Lines(folder / OUTBOX)
        self.done: dict[str, dict[str, Any]] = {line["id"]: line for line in self.manifest.read if "id" in line}
        self.out: dict[str, dict[str, Any]] = {}
        for line in self.outbox.read:
            if line.get("event") == "sent":
                self.out[line["prompt_id"]] = line
            else:
                self.out.pop(line.get("prompt_id", ""), None)
        finished = {line.get("prompt_id") for line in self.manifest.read}
        self.out = {prompt_id: line for prompt_id, line in self.out.items() if prompt_id not in finished}
        self.outbox.rewrite(list(self.out.values()))

    def sent(self, job_id: str, server: str, prompt_id: str, at: float) -> None:
        """Before a job is posted: whatever happens now, the next run knows under which id to look for it."""
        self.outbox.append({"event": "sent", "id": job_id, "server": server, "prompt_id": prompt_id, "at": at})

    def back(self, prompt_id: str, why: str) -> None:
        """A sent job is no longer out: ``lost``, ``refused``, ``withdrawn`` or ``duplicate``."""
        self.outbox.append({"event": why, "prompt_id": prompt_id})

    def finish(self, line: dict[str, Any]) -> None:
        """A job's line in the manifest: nothing can make it again."""
        self.manifest.append({"format": FORMAT, **line})
        self.done[line["id"]] = line
