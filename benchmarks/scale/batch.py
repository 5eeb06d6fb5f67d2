"""scripts/batch.py on two real servers while everything is killed: is each picture there, once, and the right one?

    python -m benchmarks.scale --part batch        (quick: 16 jobs)

The demo model at few steps. First all jobs on one server, undisturbed: the pictures to compare with, and how much of
the time the server was at work. Then again on two servers: the command is killed twice (SIGKILL), one server is killed
and started again, and then stopped (SIGSTOP: it holds its connections and says nothing) until its jobs were given away,
and let go on. Counted: lines of the manifest, files, and what the servers' own output folders hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.reliability.soak_graphs import SAMPLER, asks, picture
from benchmarks.results_file import REPO
from scripts._lib.png import same_picture
from scripts._lib.server import ComfyServer, free_port

JOBS, QUICK, STEPS, LIMIT, SILENCE = 40, 24, 8, 3000.0, 8.0
WORKFLOW, TABLE, SAID = "workflow.json", "prompts.jsonl", "said.txt"


class Client:
    """The command, started again and again on one folder."""

    def __init__(self, root: Path, out: str, servers: list[ComfyServer]) -> None:
        self.root, self.out, self.servers = root, root / out, servers
        self.out.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it; what it prints goes on at the end of a file."""
        named = [word for server in self.servers for word in ("--server", server.url)]
        command = [sys.executable, str(REPO / "scripts" / "batch.py"), str(self.root / TABLE), *named]
        command += ["--workflow", str(self.root / WORKFLOW), "--out", str(self.out), "--gone-after", str(SILENCE)]
        with (self.out / SAID).open("ab") as sink:
            self.process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        """Without a word."""
        self.process.kill()
        self.process.wait()

    def lines(self) -> list[dict[str, Any]]:
        """The manifest so far."""
        path = self.out / "manifest.jsonl"
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []

    def said(self) -> str:
        """What all starts have printed."""
        return (self.out / SAID).read_text(encoding="utf-8", errors="replace")

    def until(self, what: Callable[[], bool]) -> None:
        """Wait for something while the command runs."""
        deadline = time.monotonic() + LIMIT
        while not what():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"the batch ended, or did not get on, before it was disturbed:\n{self.said()}")
            time.sleep(0.02)

    def until_lines(self, count: int) -> None:
        """Wait for so many finished jobs."""
        self.until(lambda: len(self.lines()) >= count)

    def finish(self) -> float:
        """Wait for the end; seconds since this was called."""
        began = time.monotonic()
        if self.process.wait(LIMIT):
            raise RuntimeError(f"the batch failed:\n{self.said()}")
        return time.monotonic() - began


def measure(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures and rows for ``benchmarks.scale``."""
    count = QUICK if quick else JOBS
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_work(root, count)
        with _server(root / "one") as one:
            alone = Client(root, "alone", [one])
            alone.start()
            wall = alone.finish()
            before = saved(one)
            with _server(root / "two", free_port()) as two:
                two.run(picture(asks(1)[0]))  # reads the library, as the first one has
                before += saved(two)
                both = Client(root, "both", [one, two])
                disturb(both, two, count)
                again = saved(one) + saved(two) - before - count
        return figures(alone, both, count, wall, again), rows(both)


def write_work(root: Path, count: int) -> None:
    """The workflow, and a table of ``count`` prompts with picks, strengths and seeds of their own."""
    graph = picture(asks(1)[0])
    del graph["picks"]  # the command adds its own
    graph[SAMPLER]["inputs"]["steps"] = STEPS
    (root / WORKFLOW).write_text(json.dumps(graph), encoding="utf-8")
    draw = random.Random(0)
    table = [{"prompt": a.prompt, "seed": a.seed, "top_k": draw.randint(1, 3)} for a in asks(count)]
    (root / TABLE).write_text("".join(json.dumps(line) + "\n" for line in table), encoding="utf-8")


def disturb(client: Client, server: ComfyServer, count: int) -> None:
    """The whole run: client killed, server killed and started again, server silent for a while, client killed."""
    client.start()
    client.until_lines(count // 8)
    client.kill()
    client.start()
    client.until_lines(count // 4)
    os.killpg(server.pid, signal.SIGKILL)
    client.until(lambda: "gone. Its" in client.said())
    server.stop()
    server.start()
    client.until(lambda: "is back" in client.said())
    silence(client, server)
    client.until(lambda: client.said().count("is back") > 1)
    client.until_lines(len(client.lines()) + 1)
    client.kill()
    client.start()
    client.finish()


def silence(client: Client, server: ComfyServer) -> None:
    """Stop the server's process in the middle of its work until its jobs were given away."""
    gone = client.said().count("gone. Its")
    client.until(lambda: server.client.get("/queue")["queue_running"])
    os.killpg(server.pid, signal.SIGSTOP)
    try:
        client.until(lambda: client.said().count("gone. Its") > gone)
    finally:
        os.killpg(server.pid, signal.SIGCONT)


def saved(server: ComfyServer) -> int:
    """Pictures in a server's own output folder."""
    return len(list((server.base / "output" / "autolora").glob("*.png")))


def figures(alone: Client, both: Client, count: int, wall: float, again: int) -> dict[str, float]:
    """``twice``: jobs with two lines or files; ``made_again``: pictures that a server lost with its life, or was
    making while it was taken for gone."""
    lines = both.lines()
    first = {line["id"]: line for line in alone.lines()}
    files = [file["name"] for line in lines for file in line["files"]]
    equal = [_same(alone, first[line["id"]], both, line) for line in lines]
    here = {path.name for path in both.out.glob("*.png")}
    return {
        "batch_jobs": count,
        "batch_servers": 2,
        "batch_client_kills": 2,
        "batch_server_kills": 1,
        "batch_server_silences": 1,
        "batch_missing": count - len({line["id"] for line in lines if set(_names(line)) <= here}),
        "batch_twice": len(lines) - len({line["id"] for line in lines}) + len(here) - len(set(files)),
        "batch_made_again": again,
        "batch_failed": sum(line["status"] != "done" for line in lines),
        "batch_with_picks": sum(bool(line.get("picks")) for line in lines) / count,
        "batch_equal_to_one_server": sum(equal) / count,
        "batch_busy_share": sum(line["seconds"] for line in first.values()) / wall,
    }


def rows(client: Client) -> list[dict[str, Any]]:
    """How many jobs each server made, and what the command said of servers."""
    servers = {line["server"] for line in client.lines()}
    made = [
        {"server": n, "jobs": sum(line["server"] == s for line in client.lines())}
        for n, s in enumerate(sorted(servers))
    ]
    told = [
        line for line in client.said().splitlines() if "gone. Its" in line or "is back" in line or "made twice" in line
    ]
    return made + [{"said": line} for line in told]


def _names(line: dict[str, Any]) -> list[str]:
    return [file["name"] for file in line["files"]]


def _same(one: Client, first: dict[str, Any], other: Client, line: dict[str, Any]) -> bool:
    pairs = zip(_names(first), _names(line), strict=True)
    picks = [[pick["name"] for pick in told["picks"]] for told in (first, line)]
    return picks[0] == picks[1] and all(
        same_picture((one.out / a).read_bytes(), (other.out / b).read_bytes()) for a, b in pairs
    )


@contextlib.contextmanager
def _server(base: Path, port: int = 0) -> Iterator[ComfyServer]:
    with ComfyServer(base, env={"OMP_NUM_THREADS": "1"}, port=port) as started:
        yield started
