"""Run as a program: a Ray cluster of two nodes on this machine, one of which is killed in the middle of a shard.

``python ray_world.py FOLDER LORAS KILL`` encodes LORAS into FOLDER/cluster by the command line, and prints as JSON its
exit code, its report, how long reading took (workers that start included), and what was opened:
``[[node, shard, file], …]``, in order. With KILL ``node`` the second node
dies, with its worker, while it has read some but not all files of a shard; with KILL ``none`` nothing dies.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
import sys
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

# A token of this run's own, nothing told to anybody, and no file in the user's home.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"

STORE = 100 << 20  # bytes of shared memory a node may take
OPENED = 3  # files that the victim has opened of a shard when it stops to be killed


def watched(folder: str):
    """``read_shard`` that writes down every file it opens, and stops in the middle on the node that is to die."""

    def read(request: bytes) -> bytes:
        import ray

        from autolora_core.cluster.worker import read_shard

        log, node = Path(folder), ray.get_runtime_context().get_node_id()
        opened: list[str] = []
        shard = secrets.token_hex(4)

        def hear(event: str, args: tuple) -> None:
            if event != "open" or not isinstance(args[0], str) or not args[0].endswith(".safetensors"):
                return
            if not opened or opened[-1] is None or args[0] in opened:
                return
            opened.append(args[0])
            with open(log / "opened.jsonl", "a", encoding="utf-8") as stream:
                stream.write(json.dumps([node, shard, os.path.basename(args[0])]) + "\n")
            if (log / f"victim-{node}").exists():
                if len(opened) > OPENED:  # after the empty one
                    (log / "reached").touch()
                    time.sleep(600)
            else:  # the others do not finish before the victim has begun
                while list(log.glob("victim-*")) and not (log / "reached").exists():
                    time.sleep(0.05)

        opened.append("")
        sys.addaudithook(hear)
        try:
            return read_shard(request)
        finally:
            opened.append(None)  # a hook stays for as long as the process does

    return read


def timed(scan, seconds: list[float]):
    """``scan``, and what its report says of the time."""

    def run(*what):
        report, notes = scan(*what)
        seconds.append(report.seconds)
        return report, notes

    return run


def kill_when_reached(cluster, node, folder: Path) -> None:
    """End the node as a power cut would, once its worker says that it is in the middle."""
    while not (folder / "reached").exists():
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)


def main(folder: str, loras: str, kill: str) -> None:
    from ray.cluster_utils import Cluster

    from autolora_core.cluster import command, rays

    os.environ["TMPDIR"] = folder  # what a killed worker leaves lies there
    # A node that died is noticed within seconds instead of half a minute; workers are not nicer than other tests.
    config = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    head["_system_config"] = {**config, "worker_niceness": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
        if kill == "node":
            Path(folder, f"victim-{node.node_id}").touch()
            threading.Thread(target=kill_when_reached, args=(cluster, node, Path(folder)), daemon=True).start()
        rays.read_shard = watched(folder)
        output, seconds = io.StringIO(), []
        command._scan = timed(command._scan, seconds)
        with contextlib.redirect_stdout(output):
            arguments = ["--library", str(Path(folder, "cluster")), "--loras", loras, "--ray", cluster.address]
            code = command.main(arguments)
        lines = Path(folder, "opened.jsonl").read_text(encoding="utf-8").splitlines()
    finally:
        logs = cluster.head_node.get_session_dir_path()
        cluster.shutdown()
        shutil.rmtree(logs, ignore_errors=True)
    opened = [json.loads(line) for line in lines]
    result = {"code": code, "report": output.getvalue(), "seconds": seconds[0], "opened": opened}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
