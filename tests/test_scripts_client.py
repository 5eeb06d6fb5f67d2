"""The client against a small server that answers as ComfyUI does, in its order and with its delays."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scripts._lib.client import ClientError, ComfyClient, ExecutionFailed, HttpError, Image, PromptRejected
from scripts._lib.progress import Progress, RunProgress
from scripts._lib.websocket import BINARY, TEXT, Frame, accept_token, encode_frame

GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}, "2": {"class_type": "SaveImage", "inputs": {}}}
OUTPUTS = {"2": {"images": [{"filename": "a.png", "subfolder": "s", "type": "output"}], "text": ["one", "two"]}}
EVENTS = [
    ("status", {"status": {}}),
    ("executing", {"node": "9", "prompt_id": "someone else's"}),
    ("execution_start", {"prompt_id": "p1"}),
    ("execution_cached", {"nodes": ["1"], "prompt_id": "p1"}),
    ("executing", {"node": "2", "prompt_id": "p1"}),
    ("progress", {"node": "2", "value": 1, "max": 2, "prompt_id": "p1"}),
]
SUCCESS = ("execution_success", {"prompt_id": "p1"})


class Fake:
    """What the server will do; `posted` is what it was sent."""

    def __init__(self):
        self.events, self.refusal, self.history_delay = [*EVENTS, SUCCESS], None, 2
        self.posted, self.queued, self.node_errors = [], threading.Event(), {}


@pytest.fixture
def fake():
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args):
            """Quiet."""

        def answer(self, payload, status=200):
            body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.posted.append((self.path, body))
            if self.path != "/prompt":
                return self.answer(b"")
            if fake.refusal:
                return self.answer(fake.refusal[1], fake.refusal[0])
            self.answer({"prompt_id": "p1", "node_errors": fake.node_errors})
            fake.queued.set()

        def do_GET(self):
            if self.path.startswith("/ws"):
                return self.websocket()
            if self.path == "/history/p1":
                fake.history_delay -= 1
                return self.answer({} if fake.history_delay >= 0 else {"p1": {"outputs": OUTPUTS}})
            if self.path == "/view?filename=a.png&subfolder=s&type=output":
                return self.answer(b"PNG bytes")
            self.answer({"path": self.path}, 404)

        def websocket(self):
            self.send_response(101)
            self.send_header("Sec-WebSocket-Accept", accept_token(self.headers["Sec-WebSocket-Key"]))
            self.end_headers()
            self.wfile.write(encode_frame(Frame(BINARY, b"a preview"), None))
            fake.queued.wait(5)
            for kind, data in fake.events:
                message = json.dumps({"type": kind, "data": data}).encode()
                self.wfile.write(encode_frame(Frame(TEXT, message), None))
            self.close_connection = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        fake.client = ComfyClient("127.0.0.1", server.server_address[1])
        yield fake
        server.shutdown()
        thread.join()


def test_a_run_collects_its_own_events_and_waits_for_the_history(fake):
    heard = []
    result = fake.client.run(GRAPH, lambda kind, data: heard.append(kind))
    own = [event for event in fake.events if event[1].get("prompt_id") != "someone else's"]
    assert result.events == own and heard == [kind for kind, _ in own]
    assert (result.status, result.cached, result.outputs, result.error) == ("success", {"1"}, OUTPUTS, None)
    assert result.images("2") == [Image("a.png", "s", "output")] and result.text("2") == "one\ntwo"
    assert fake.client.fetch(result.images("2")[0]) == b"PNG bytes"
    assert fake.posted[0][1]["prompt"] == GRAPH and fake.posted[0][1]["client_id"]


def test_what_was_not_shown_is_an_error_that_says_what_was(fake):
    result = fake.client.run(GRAPH)
    with pytest.raises(KeyError, match="node 1 showed no 'text'.*images"):
        result.text("1")


def test_a_refused_graph_names_node_input_and_reason(fake):
    errors = [{"message": "Required input is missing", "details": "images"}]
    fake.refusal = (400, {"error": {"message": "failed validation"}, "node_errors": {"2": {"errors": errors}}})
    with pytest.raises(PromptRejected, match=r"failed validation\n  node 2 \(SaveImage\): Required .* missing: images"):
        fake.client.run(GRAPH)


def test_a_graph_of_which_only_a_part_is_valid_is_refused_and_taken_off_the_queue(fake):
    fake.node_errors = {"2": {"errors": [{"message": "no such file", "details": "x.png"}]}}
    with pytest.raises(PromptRejected, match="node 2 .*: no such file: x.png"):
        fake.client.run(GRAPH)
    assert fake.posted[-1] == ("/queue", {"delete": ["p1"]})


def test_an_error_in_a_node_is_raised_or_returned(fake):
    error = {"prompt_id": "p1", "node_id": "2", "node_type": "SaveImage", "exception_message": "disk full"}
    fake.events = [*EVENTS, ("execution_error", error)]
    result = fake.client.run(GRAPH, check=False)
    assert (result.status, result.error) == ("error", error)
    with pytest.raises(ExecutionFailed, match=r"node 2 \(SaveImage\): error: disk full") as caught:
        fake.client.run(GRAPH)
    assert caught.value.result.error == error


def test_an_interrupted_run_says_so(fake):
    fake.events = [*EVENTS, ("execution_interrupted", {"prompt_id": "p1", "node_id": "2"})]
    assert fake.client.run(GRAPH, check=False).status == "interrupted"


def test_a_run_that_never_ends_is_interrupted(fake):
    fake.queued.clear()
    fake.events = []
    fake.refusal = None
    original = fake.queued.set
    fake.queued.set = lambda: None  # the websocket stays open and silent
    with pytest.raises(TimeoutError, match="p1"):
        fake.client.run(GRAPH, timeout=0.2)
    assert fake.posted[-1][0] == "/interrupt"
    original()


def test_a_server_that_hangs_up_is_a_connection_error(fake):
    fake.events = EVENTS
    with pytest.raises(ConnectionError):
        fake.client.run(GRAPH)


def test_other_statuses_are_http_errors(fake):
    with pytest.raises(HttpError, match="GET /nothing answered 404"):
        fake.client.get("/nothing")
    fake.refusal = (500, {"error": "boom"})
    with pytest.raises(HttpError, match="POST /prompt answered 500"):
        fake.client.run(GRAPH)


def test_a_history_that_stays_empty_is_an_error(fake, monkeypatch):
    monkeypatch.setattr("scripts._lib.client._HISTORY_WAIT", 0.1)
    fake.history_delay = 10**6
    with pytest.raises(ClientError, match="no history of run p1"):
        fake.client.run(GRAPH)


def test_progress_counts_cached_finished_and_the_part_of_the_current_node():
    titles = {"1": "Load", "2": "Sample", "3": "Decode", "4": "Save"}
    progress = RunProgress(Progress("run"), titles)
    seen = []
    events = [
        ("execution_cached", {"nodes": ["1", "of another graph"]}),
        ("executing", {"node": "2"}),
        ("progress", {"node": "2", "value": 1, "max": 2}),
        ("executing", {"node": "3"}),
        ("executing", {"node": "4"}),
        ("execution_success", {}),
    ]
    progress.progress.bar = lambda fraction, detail="": seen.append((fraction, detail))
    for event in events:
        progress(*event)
    assert [fraction for fraction, _ in seen] == [0.25, 0.25, 0.375, 0.5, 0.75, 1.0]
    assert [detail for _, detail in seen[1:4]] == ["Sample", "Sample", "Decode"]
