"""A client for ComfyUI's HTTP and websocket API: post a graph, follow it, fetch what it made."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from .websocket import WebSocket, WebSocketError

Graph = dict[str, dict[str, Any]]
EventHandler = Callable[[str, dict[str, Any]], None]

_FINAL = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}
_HISTORY_WAIT = 10.0  # seconds; the history is filled slightly after the last websocket event


class ClientError(Exception):
    """Base of what can go wrong between us and the server."""


class HttpError(ClientError):
    """The server answered with an error status."""

    def __init__(self, status: int, method: str, path: str, body: bytes) -> None:
        self.status, self.body = status, body
        super().__init__(f"{method} {path} answered {status}: {body[:500].decode(errors='replace')}")


class PromptRejected(ClientError):
    """The server refused the graph before running it: `error` (dict) and `node_errors` (node id → dict)."""

    def __init__(self, answer: dict[str, Any], graph: Graph) -> None:
        self.error: dict[str, Any] = answer.get("error", {})
        self.node_errors: dict[str, Any] = answer.get("node_errors", {})
        lines = [f"the server refused the graph: {self.error.get('message', 'a part of it is invalid')}"]
        for node, report in self.node_errors.items():
            name = report.get("class_type") or graph.get(node, {}).get("class_type", "?")
            lines += [f"  node {node} ({name}): {e['message']}: {e['details']}" for e in report.get("errors", [])]
        super().__init__("\n".join(lines))


class ExecutionFailed(ClientError):
    """A node raised while the graph ran; `result.error` has the server's whole account."""

    def __init__(self, result: RunResult) -> None:
        self.result = result
        error = result.error or {}
        where = f"node {error.get('node_id')} ({error.get('node_type')})" if error else "the run"
        what = " ".join(str(error[key]) for key in ("exception_type", "exception_message") if key in error)
        super().__init__(f"{where}: {result.status}: {what}")


@dataclass(frozen=True)
class Image:
    """A file the server can hand out, as listed in a node's outputs."""

    filename: str
    subfolder: str = ""
    type: str = "output"


@dataclass
class RunResult:
    """What happened to one graph.

    Attributes:
        prompt_id: the server's name for the run.
        status: ``"success"``, ``"error"`` or ``"interrupted"``.
        outputs: node id → what that output node showed (``{"images": [...]}``, ``{"text": [...]}`` …).
        events: every websocket message of this run, in order, as (type, data).
        cached: ids of the nodes whose results were reused.
        seconds: from posting the graph to its last event.
        error: the data of ``execution_error``/``execution_interrupted``, else None.
    """

    prompt_id: str
    status: str = "success"
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cached: set[str] = field(default_factory=set)
    seconds: float = 0.0
    error: dict[str, Any] | None = None

    def images(self, node: str) -> list[Image]:
        """The pictures an output node saved or previewed."""
        shown = self._shown(node, "images")
        return [Image(i["filename"], i.get("subfolder", ""), i.get("type", "output")) for i in shown]

    def text(self, node: str) -> str:
        """The text an output node showed, joined by newlines."""
        return "\n".join(str(line) for line in self._shown(node, "text"))

    def _shown(self, node: str, key: str) -> list[Any]:
        if key not in self.outputs.get(node, {}):
            shown = {name: sorted(output) for name, output in self.outputs.items()}
            raise KeyError(f"node {node} showed no {key!r}; what was shown: {shown}")
        return self.outputs[node][key]


class ComfyClient:
    """Talks to one server on this machine. Never goes through a proxy."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    def request(self, method: str, path: str, payload: Any = None, *, timeout: float = 60.0) -> bytes:
        """One HTTP request; the body. Raises `HttpError` for a status of 400 and above, OSError when unreachable."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            body = None if payload is None else json.dumps(payload).encode()
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise HttpError(answer.status, method, path, data)
        return data

    def get(self, path: str, **query: str) -> Any:
        """GET, decoded from JSON."""
        return json.loads(self.request("GET", path + ("?" + urlencode(query) if query else "")))

    def post(self, path: str, payload: Any = None) -> Any:
        """POST JSON; the decoded answer, or None when it is empty."""
        data = self.request("POST", path, {} if payload is None else payload)
        return json.loads(data) if data.strip() else None

    def object_info(self, class_type: str | None = None) -> dict[str, Any]:
        """Every node's definition, or one node's (empty when the server does not know it)."""
        return self.get(f"/object_info/{class_type}" if class_type else "/object_info")

    def interrupt(self) -> None:
        """Stop the graph that is running now."""
        self.post("/interrupt")

    def fetch(self, image: Image) -> bytes:
        """The bytes of a picture named in a `RunResult`."""
        query = urlencode({"filename": image.filename, "subfolder": image.subfolder, "type": image.type})
        return self.request("GET", f"/view?{query}")

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The finished run's record. Waits for it: it appears a moment after the last event."""
        deadline = time.monotonic() + _HISTORY_WAIT
        while True:
            record = self.get(f"/history/{prompt_id}").get(prompt_id)
            if record is not None:
                return record
            if time.monotonic() > deadline:
                raise ClientError(f"the server has no history of run {prompt_id} after {_HISTORY_WAIT:g} s")
            time.sleep(0.02)

    def queue(self, graph: Graph, client_id: str, extra_data: dict[str, Any] | None = None) -> str:
        """Post a graph in API format without waiting; its prompt id.

        Raises:
            PromptRejected: the server found any of its output nodes invalid. (It would run the others.)
        """
        payload = {"prompt": graph, "client_id": client_id, "extra_data": extra_data or {}}
        try:
            answer = self.post("/prompt", payload)
        except HttpError as error:
            if error.status != 400:
                raise
            raise PromptRejected(json.loads(error.body), graph) from error
        if answer.get("node_errors"):
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            raise PromptRejected(answer, graph)
        return answer["prompt_id"]

    def run(
        self,
        graph: Graph,
        on_event: EventHandler | None = None,
        *,
        timeout: float = 600.0,
        check: bool = True,
        extra_data: dict[str, Any] | None = None,
    ) -> RunResult:
        """Post a graph, follow it to its end, and collect what it showed.

        Args:
            graph: API format: id → {"class_type", "inputs"}.
            on_event: called with every (type, data) as it comes; may call `interrupt`.
            timeout: seconds for the whole run; when they pass the run is interrupted.
            check: raise `ExecutionFailed` unless it succeeded.
            extra_data: e.g. ``{"extra_pnginfo": {"workflow": …}}``.

        Raises:
            PromptRejected, ExecutionFailed, TimeoutError, WebSocketError (the server went away).
        """
        client_id, started = uuid.uuid4().hex, time.monotonic()
        # The socket is open before the post, or the first events would be lost.
        with WebSocket.connect(self.host, self.port, f"/ws?clientId={client_id}") as socket:
            result = RunResult(self.queue(graph, client_id, extra_data))
            for kind, data in self._follow(socket, result.prompt_id, started + timeout):
                _record(result, kind, data)
                if on_event is not None:
                    on_event(kind, data)
        result.seconds = time.monotonic() - started
        result.outputs = self.history(result.prompt_id)["outputs"]
        if check and result.status != "success":
            raise ExecutionFailed(result)
        return result

    def _follow(self, socket: WebSocket, prompt_id: str, deadline: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """This run's events up to and including the final one."""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                self.interrupt()
                raise TimeoutError(f"run {prompt_id} took too long and was interrupted")
            try:
                message = socket.receive(min(left, 5.0))
            except TimeoutError:
                continue  # a long node sends nothing: ask again until the run's own deadline
            if isinstance(message, bytes):
                continue  # a preview picture
            event = json.loads(message)
            kind, data = event.get("type", ""), event.get("data") or {}
            if data.get("prompt_id", prompt_id) != prompt_id:
                continue
            yield kind, data
            if kind in _FINAL:
                return


def _record(result: RunResult, kind: str, data: dict[str, Any]) -> None:
    result.events.append((kind, data))
    if kind == "execution_cached":
        result.cached |= set(data.get("nodes", []))
    if kind in _FINAL:
        result.status = _FINAL[kind]
        result.error = None if kind == "execution_success" else data


__all__ = [
    "ClientError", "ComfyClient", "ExecutionFailed", "Graph", "HttpError", "Image", "PromptRejected", "RunResult",
    "WebSocketError",
]  # fmt: skip
