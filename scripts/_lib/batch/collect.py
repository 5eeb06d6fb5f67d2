"""A run that has ended, made into files in the folder and a line of the manifest."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

from ..client import HttpError, Image, PromptRejected
from ..files import write_atomic
from ..png import pixels
from .jobs import Job
from .remote import Remote, Unreachable
from .workflow import PICKS

_KEPT = ("name", "role", "strength", "score", "hash", "triggers")  # of a pick


class Gone(Exception):
    """The server ended the run well and no longer has its file."""


def files_of(record: dict[str, Any]) -> list[Image]:
    """What the run saved, in the order of the nodes; previews only when nothing was saved."""
    found = []
    for node in sorted(record.get("outputs", {}), key=lambda n: (len(n), n)):
        for shown in record["outputs"][node].values():
            found += (
                [one for one in shown if isinstance(one, dict) and "filename" in one] if isinstance(shown, list) else []
            )
    saved = [one for one in found if one.get("type", "output") == "output"]
    chosen = {(o["filename"], o.get("subfolder", ""), o.get("type", "output")): None for o in saved or found}
    return [Image(*key) for key in chosen]


def picks_of(record: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The LoRAs that Retrieve picked, best first; None where no node told."""
    told = [shown for node, shown in record.get("outputs", {}).items() if node.startswith(PICKS)]
    picks: list[dict[str, Any]] = []
    for shown in told:
        try:
            selection = json.loads("".join(shown["text"]))
            picks += [{key: pick[key] for key in _KEPT if key in pick} for pick in selection["picks"]]
        except (KeyError, TypeError, ValueError):
            return None
    return picks if told else None


def fault_of(record: dict[str, Any]) -> dict[str, Any] | None:
    """What went wrong, as {"node", "type", "message"}; None when the run ended well."""
    status = record.get("status") or {}
    if status.get("status_str", "success") == "success":
        return None
    messages = {kind: data for kind, data in status.get("messages", [])}
    failed = messages.get("execution_error", {})
    if failed:
        words = f"{failed.get('exception_type', '').rpartition('.')[2]}: {failed.get('exception_message', '')}".strip()
        return {"node": failed.get("node_id"), "type": failed.get("node_type"), "message": words}
    stopped = messages.get("execution_interrupted", {})
    words = "interrupted on the server" if stopped else "the server says that it failed and not why"
    return {"node": stopped.get("node_id"), "type": stopped.get("node_type"), "message": words}


def refusal(error: PromptRejected) -> dict[str, Any]:
    """A graph that a server would not run, in the form of `fault_of`."""
    node = next(iter(error.node_errors), None)
    kind = error.node_errors[node].get("class_type") if node else None
    return {"node": node, "type": kind, "message": str(error)}


def seconds_of(record: dict[str, Any]) -> float | None:
    """From the run's start to its end by the server's clock."""
    times = [data["timestamp"] for _, data in (record.get("status") or {}).get("messages", []) if "timestamp" in data]
    return round((max(times) - min(times)) / 1000, 3) if times else None


def download(remote: Remote, job: Job, record: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Fetch every file of a run into ``folder``: whole, checked, under the job's own names.

    Raises:
        Gone: the server no longer has one of them.
        Unreachable: it did not come through whole.
    """
    files = []
    for number, image in enumerate(files_of(record)):
        try:
            data = remote.fetch(image)
        except HttpError as error:
            raise Gone(f"the server no longer has {image.filename} ({error.status})") from error
        name = f"{job.stem}{f'_{number + 1}' if number else ''}.{_ending(image.filename)}"
        _check(remote, image.filename, data)
        write_atomic(folder / name, data)
        files.append({"name": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
    return files


def line_of(job: Job, remote: str, prompt_id: str, **more: Any) -> dict[str, Any]:
    """A job's line in the manifest."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        "id": job.id, "row": job.row.number, "line": job.row.line, "copy": job.copy, "prompt": job.prompt,
        "seed": job.seed, "columns": job.row.values, "server": remote, "prompt_id": prompt_id, "finished": at, **more,
    }  # fmt: skip


def _ending(filename: str) -> str:
    ending = filename.rpartition(".")[2].lower()
    return ending if re.fullmatch(r"[a-z0-9]{1,5}", ending) else "bin"


def _check(remote: Remote, filename: str, data: bytes) -> None:
    """A server that goes away may end a file early and still count as having answered."""
    try:
        if not data:
            raise ValueError("it is empty")
        if filename.lower().endswith(".png"):
            pixels(data)
    except Exception as error:  # noqa: BLE001 zlib and struct have errors of their own
        raise Unreachable(f"{remote.name}: {filename} did not come through whole: {error}") from error
