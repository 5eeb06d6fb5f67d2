"""A small server that queues, runs and hands out as ComfyUI does, with faults to order that real ones rarely have."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

NODES = {"Draw": {}, "PreviewAny": {}, "AutoLoRARetrieve": {}}
PICKED = json.dumps({"picks": [{"name": "otter.safetensors", "role": "subject", "strength": 1.0, "score": 0.9}]})


def picture(graph: dict[str, Any]) -> bytes:
    """A PNG of 8 × 8 pixels that depends on what the graph's Draw node is asked for."""
    drawn = json.dumps(graph["draw"]["inputs"], sort_keys=True).encode()
    rows = b"".join(b"\0" + hashlib.sha256(drawn + bytes([row])).digest()[:24] for row in range(8))
    parts = [(b"IHDR", struct.pack("!IIBBBBB", 8, 8, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (struct.pack("!I", len(d)) + k + d + struct.pack("!I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class FakeComfy:
    """Listens between `start` and `stop`; what it knows it keeps until `forget`, and it goes on running in between.

    ``fault(method, path)`` may return a status, ``"garbage"``, ``"cut"`` (half an answer), ``"short"`` (half of it,
    said to be the whole) or ``"deaf"`` (the request is carried out and never answered). ``made`` are the prompts
    that it ran, ``most`` the longest its queue has been.
    """

    def __init__(self, delay: float = 0.005, prefix: str = "") -> None:
        self.delay, self.prefix, self.lock = delay, prefix, threading.RLock()
        self.fault: Callable[[str, str], Any] = lambda method, path: None
        self.judge: Callable[[dict], dict | None] = lambda graph: None  # node_errors of a graph that is refused
        self.fails: Callable[[dict], bool] = lambda graph: False
        self.nodes, self.renames, self.headers = dict(NODES), False, {}
        self.numbers = itertools.count()
        self.made: list[str] = []
        self.most = self.port = 0
        self.forget()
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.fake = self
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def forget(self) -> None:
        with self.lock:
            self.running, self.pending, self.history, self.files = [], [], {}, {}

    def advance(self) -> None:
        """What should have happened by now."""
        with self.lock:
            while self.pending or self.running:
                if not self.running:
                    self.running = [(self.pending.pop(0), time.monotonic() + self.delay)]
                item, end = self.running[0]
                if time.monotonic() < end:
                    return
                self.running = []
                self._finish(item)

    def _finish(self, item: tuple) -> None:
        prompt_id, graph = item[1], item[2]
        self.made.append(graph["draw"]["inputs"]["prompt"])
        messages = [["execution_start", {"timestamp": 1000}], ["execution_success", {"timestamp": 3500}]]
        status, outputs = {"status_str": "success", "messages": messages}, {}
        if self.fails(graph):
            said = {"node_id": "draw", "node_type": "Draw", "exception_type": "builtins.ValueError",
                    "exception_message": "no ink", "timestamp": 1200}  # fmt: skip
            status = {"status_str": "error", "messages": [["execution_error", said]]}
        else:
            name = f"pic_{len(self.files):05d}.png"
            self.files[name] = picture(graph)
            outputs = {"draw": {"images": [{"filename": name, "subfolder": "", "type": "output"}]}}
            outputs |= {node: {"text": [PICKED]} for node, body in graph.items() if body["class_type"] == "PreviewAny"}
        self.history[prompt_id] = {"prompt": list(item), "outputs": outputs, "status": status}

    def take(self, body: dict) -> tuple[int, dict]:
        errors = self.judge(body["prompt"])
        if errors:
            return 400, {"error": {"message": "Prompt outputs failed validation"}, "node_errors": errors}
        prompt_id = f"own-{next(self.numbers)}" if self.renames else body["prompt_id"]
        self.pending.append((len(self.made), prompt_id, body["prompt"], body.get("extra_data", {}), []))
        self.most = max(self.most, len(self.pending) + len(self.running))
        return 200, {"prompt_id": prompt_id, "number": 1, "node_errors": {}}

    def post(self, path: str, body: dict) -> tuple[int, Any]:
        with self.lock:
            self.advance()
            if path == "/prompt":
                return self.take(body)
            if path == "/queue":
                self.pending = [item for item in self.pending if item[1] not in body["delete"]]
            if path == "/interrupt" and self.running and self.running[0][0][1] == body["prompt_id"]:
                item, self.running = self.running[0][0], []
                status = {"status_str": "error", "messages": [["execution_interrupted", {"node_id": "draw"}]]}
                self.history[item[1]] = {"prompt": list(item), "outputs": {}, "status": status}
            return 200, {}

    def look(self, path: str, query: dict) -> tuple[int, Any]:
        with self.lock:
            self.advance()
            if path == "/queue":
                running = [list(item) for item, _ in self.running]
                return 200, {"queue_running": running, "queue_pending": [list(item) for item in self.pending]}
            kind, _, name = path[1:].partition("/")
            if kind == "history":
                return 200, {name: self.history[name]} if name in self.history else {}
            if kind == "object_info":
                return 200, {name: self.nodes[name]} if name in self.nodes else {}
            if kind == "view" and query["filename"][0] in self.files:
                return 200, self.files[query["filename"][0]]
            return 404, {}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    fake: FakeComfy


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *_args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._respond("POST", lambda path, query: self.server.fake.post(path, body))

    def do_GET(self) -> None:
        self._respond("GET", self.server.fake.look)

    def _respond(self, method: str, act: Callable[[str, dict], tuple[int, Any]]) -> None:
        fake, parts = self.server.fake, urlsplit(self.path)
        path = parts.path.removeprefix(fake.prefix) if parts.path.startswith(fake.prefix) else "/elsewhere"
        fake.headers = dict(self.headers)
        fault = fake.fault(method, path)
        if isinstance(fault, int):
            return self._send(fault, b"<html>trouble</html>")
        status, answer = act(path, parse_qs(parts.query))
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        if fault == "garbage":
            self._send(200, b"<html>a proxy's page</html>")
        elif fault == "cut":
            self._send(status, data[: len(data) // 2], len(data))
        elif fault == "short":
            self._send(status, data[: len(data) // 2])
        elif fault != "deaf":
            self._send(status, data)

    def _send(self, status: int, data: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
