"""One ComfyUI server somewhere: its address (http or https, with a path or a password), and what a batch asks of it."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from typing import Any
from urllib.parse import unquote, urlsplit

from ..cli import ScriptFailed
from ..client import ClientError, ComfyClient, Graph, HttpError, PromptRejected

_LARGEST = 1 << 30  # bytes of one answer
_BUSY = (408, 425, 429)


class Unreachable(ClientError):
    """The server did not answer, or not as ComfyUI does. ``refused``: nobody listens at its address."""

    def __init__(self, message: str, refused: bool = False) -> None:
        self.refused = refused
        super().__init__(message)


class Remote(ComfyClient):
    """A server by its address, as it stands in the browser."""

    def __init__(self, address: str, timeout: float = 30.0) -> None:
        parts = urlsplit(address if "//" in address else f"http://{address}")
        try:
            port = parts.port
        except ValueError as error:
            raise ScriptFailed(f"--server {address}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ScriptFailed(f"--server {address}: an address is like http://127.0.0.1:8188 or https://box/comfy")
        self.secure, self.timeout = parts.scheme == "https", timeout
        super().__init__(parts.hostname, port or (443 if self.secure else 80))
        self.prefix = parts.path.rstrip("/")
        self._headers = {"User-Agent": "autolora-batch"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        # in the manifest and on the screen, without a password
        self.name = f"{parts.scheme}://{host}{f':{port}' if port else ''}{self.prefix}"

    def request(self, method: str, path: str, payload: Any = None, *, timeout: float | None = None) -> bytes:
        """As `ComfyClient.request`; what is not an answer of a ComfyUI that works is `Unreachable`."""
        try:
            status, data = self._answer(method, path, payload, timeout or self.timeout)
        except (OSError, http.client.HTTPException, ssl.SSLError) as error:
            words = str(error) or type(error).__name__
            raise Unreachable(f"{self.name}: {words}", isinstance(error, ConnectionRefusedError)) from error
        if status >= 500 or status in _BUSY or 300 <= status < 400 or status in (401, 403, 407):
            raise Unreachable(f"{self.name}: {method} {path.partition('?')[0]} answered {status}")
        if status >= 400:
            raise HttpError(status, method, path, data)
        return data

    def get(self, path: str, **query: str) -> Any:
        """As `ComfyClient.get`; an answer that is not JSON is `Unreachable`."""
        try:
            return super().get(path, **query)
        except ValueError as error:
            raise Unreachable(f"{self.name}: GET {path} answered something else than JSON") from error

    def missing(self, graph: Graph) -> list[str]:
        """Classes of the graph's nodes that the server does not know."""
        classes = sorted({body["class_type"] for body in graph.values()})
        return [name for name in classes if name not in self.object_info(name)]

    def submit(self, graph: Graph, prompt_id: str, extra: dict[str, Any]) -> str:
        """Put a graph into the queue under our id; the id that the server gave it (ours, but for old servers).

        Raises:
            PromptRejected: the server found the graph, or one of its outputs, invalid; nothing of it stays queued.
            Unreachable: it is not known whether the server has it.
        """
        payload = {"prompt": graph, "prompt_id": prompt_id, "client_id": prompt_id, "extra_data": extra}
        try:
            answer = json.loads(self.request("POST", "/prompt", payload))
            given = str(answer["prompt_id"])
        except HttpError as error:
            raise _refusal(error, graph) from error
        except (ValueError, KeyError, TypeError) as error:
            raise Unreachable(f"{self.name}: POST /prompt answered something else than ComfyUI's JSON") from error
        if answer.get("node_errors"):
            self.withdraw([given])
            self.stop(given)
            raise PromptRejected(answer, graph)
        return given

    def queued(self) -> tuple[set[str], set[str]]:
        """The ids of what runs and of what waits, anybody's."""
        answer = self.get("/queue")
        try:
            return tuple({str(item[1]) for item in answer[kind]} for kind in ("queue_running", "queue_pending"))
        except (KeyError, TypeError, IndexError) as error:
            raise Unreachable(f"{self.name}: GET /queue answered something else than ComfyUI's lists") from error

    def record(self, prompt_id: str) -> dict[str, Any] | None:
        """The history of a run that has ended, else None."""
        answer = self.get(f"/history/{prompt_id}")
        if not isinstance(answer, dict):
            raise Unreachable(f"{self.name}: GET /history answered something else than ComfyUI's record")
        found = answer.get(prompt_id)
        return found if isinstance(found, dict) else None

    def withdraw(self, prompt_ids: list[str]) -> None:
        """Take runs that wait out of the queue; those that run, go on."""
        self.request("POST", "/queue", {"delete": prompt_ids})

    def stop(self, prompt_id: str) -> None:
        """Interrupt this run and no other. (ComfyUI before 0.3.57 knows no names here: it is asked what runs first.)"""
        if prompt_id in self.queued()[0]:
            self.request("POST", "/interrupt", {"prompt_id": prompt_id})

    def _answer(self, method: str, path: str, payload: Any, timeout: float) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=timeout)
        headers = dict(self._headers)
        body = None if payload is None else json.dumps(payload).encode()
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, self.prefix + path, body, headers)
            answer = connection.getresponse()
            data = answer.read(_LARGEST)
            if answer.length:  # http.client says nothing when a limited read ends early
                raise http.client.IncompleteRead(data, answer.length)
        finally:
            connection.close()
        return answer.status, data


def _refusal(error: HttpError, graph: Graph) -> ClientError:
    try:
        answer = json.loads(error.body)
    except ValueError:
        answer = None
    if error.status == 400 and isinstance(answer, dict):
        answer["error"] = answer["error"] if isinstance(answer.get("error"), dict) else {"message": str(answer)}
        return PromptRejected(answer, graph)
    return Unreachable(str(error))
