"""A real ComfyUI server: started and driven by the scripts' helpers, and gone afterwards whatever happened."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from test_scripts_process import gone

from scripts._lib import install
from scripts._lib.client import ExecutionFailed, PromptRejected
from scripts._lib.paths import REPO
from scripts._lib.png import pixels
from scripts._lib.process import Child
from scripts._lib.server import ComfyServer, ServerFailed

pytestmark = pytest.mark.slow


def stock_graph(width=64):
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": width, "height": 64, "batch_size": 1, "color": 0xFF0000}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test"}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": "words"}},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ComfyServer(base=tmp_path_factory.mktemp("base"), packs={}, models={}) as server:
        yield server


def test_a_stock_graph_is_followed_to_its_picture(server):
    kinds = []
    result = server.run(stock_graph(), lambda kind, data: kinds.append(kind))
    assert kinds[-1] == "execution_success" and "executing" in kinds
    header, scanlines = pixels(server.client.fetch(result.images("2")[0]))
    assert header[:8] == (64).to_bytes(4, "big") * 2 and len(scanlines) == 64 * (1 + 64 * 3)
    assert result.text("3") == "words"
    assert server.run(stock_graph()).cached == {"1", "2", "3"}


def test_a_refused_and_a_failing_graph_are_told_apart(server):
    graph = stock_graph()
    graph["2"]["inputs"] = {"filename_prefix": "x"}
    with pytest.raises(PromptRejected, match=r"node 2 \(SaveImage\).*images"):
        server.run(graph)
    graph = stock_graph()
    graph["2"]["inputs"]["filename_prefix"] = "../../outside"
    with pytest.raises(ExecutionFailed, match=r"node 2 \(SaveImage\)"):
        server.run(graph)


def test_everything_the_server_writes_lies_in_its_base(server):
    folder = install.find().comfyui
    assert {"user", "output", "server.log"} <= {path.name for path in server.base.iterdir()}
    assert not (folder / "user" / "comfyui.db").exists()
    assert list((folder / "output").glob("test_*")) == []


def test_a_server_that_cannot_start_shows_its_log(tmp_path):
    with pytest.raises(ServerFailed, match="(?s)ended with exit code 2.*unrecognized arguments: --no-such-option"):
        ComfyServer(base=tmp_path, packs={}, models={}, args=["--no-such-option"]).start()


def test_a_server_that_dies_in_a_run_shows_its_log(tmp_path):
    with ComfyServer(base=tmp_path, packs={}, models={}) as server:
        server._child.process.kill()
        server._child.process.wait()
        with pytest.raises(ServerFailed, match="went away during a run"):
            server.run(stock_graph())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_stopping_the_demo_while_its_server_runs_leaves_no_process(tmp_path, signum):
    """The real script, stopped as a user stops it."""
    command = [sys.executable, str(REPO / "scripts" / "demo.py"), "--serve", "--base", str(tmp_path)]
    output = tmp_path / "out.txt"
    with output.open("w") as sink, Child(command, stdout=sink, stderr=subprocess.STDOUT) as demo:
        port, pid = wait_for_server(demo, output)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            demo.process.send_signal(signum)
        assert demo.process.wait(60) == 128 + signum
    assert gone([pid])
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    assert "Nothing is left running" in output.read_text() and "Traceback" not in output.read_text()


def wait_for_server(demo, output):
    """The port and process id of the demo's server, once it answers."""
    deadline = time.monotonic() + 600
    while "Open http" not in output.read_text():
        assert demo.process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)
    said = output.read_text()
    return int(re.search(r"Open http://127.0.0.1:(\d+)", said)[1]), int(re.search(r"process (\d+)", said)[1])
