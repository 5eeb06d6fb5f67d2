"""Starts a real ComfyUI on a free loopback port with a private base folder, and stops it without leaving anything.

Nothing is ever written into the ComfyUI folder: models come from an ``extra_model_paths`` file, everything else
(``custom_nodes``, ``input``, ``output``, ``temp``, ``user``, the database) lies under `ComfyServer.base`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import install as installs
from .client import ClientError, ComfyClient, Graph, HttpError, RunResult
from .paths import REPO, cache_dir
from .process import Child, tail

_HOST = "127.0.0.1"
_START_TIMEOUT = 600.0  # seconds; a busy machine takes minutes, and a server that ended is noticed at once
_PORT_TRIES = 3
_PORT_TAKEN = ("address already in use", "errno 98", "errno 48", "errno 10048", "winerror 10048")
PACK_NAME = "autolora"
DEMO_MODELS: dict[str, list[Path]] = {
    "diffusion_models": [REPO / "models"],
    "vae": [REPO / "models"],
    "loras": [REPO / "models" / "loras"],
}


class ServerFailed(Exception):
    """The server did not start or went away; the message ends with the last lines of its log."""

    def __init__(self, what: str, log: Path) -> None:
        self.log = log
        super().__init__(f"{what}\nLast lines of {log}:\n{tail(log, 40)}")


class ComfyServer:
    """A ComfyUI server for the length of a ``with`` block.

    Args:
        base: private folder for everything ComfyUI writes; default ``<cache>/demo-base``.
        install: which ComfyUI; default what ``COMFYUI_PATH`` or the cache has.
        models: folder_paths name → folders. Default: the pack's own `models/`. ``{}`` gives none.
        packs: custom node name → folder, linked into the private ``custom_nodes``. Default: this pack.
        args: further arguments of ComfyUI's main.py.
        env: further environment variables.
        on_wait: called some times a second while the server starts.
        cpu: whether it computes on the CPU whatever there is.
        port: where it listens; default a free one, another at every start.

    ``with ComfyServer(base=tmp) as server: result = server.run(graph)``
    """

    def __init__(
        self,
        base: Path | None = None,
        *,
        install: installs.Install | None = None,
        models: Mapping[str, Sequence[Path]] | None = None,
        packs: Mapping[str, Path] | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        on_wait: Callable[[], None] | None = None,
        cpu: bool = True,
        port: int = 0,
    ) -> None:
        self.base = (base or cache_dir() / "demo-base").absolute()
        self.install = install or installs.find()
        self.models = DEMO_MODELS if models is None else models
        self.packs = {PACK_NAME: REPO} if packs is None else packs
        self.args, self.extra_env, self.on_wait = list(args), dict(env or {}), on_wait
        self.cpu, self._wanted_port = cpu, port
        self.log = self.base / "server.log"
        self.port = 0
        self._child: Child | None = None

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{_HOST}:{self.port}"

    @property
    def client(self) -> ComfyClient:
        """A client for this server."""
        return ComfyClient(_HOST, self.port)

    @property
    def pid(self) -> int:
        """The server's process id; it leads its own process group."""
        if self._child is None:
            raise RuntimeError("the server is not running")
        return self._child.process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._child is not None and self._child.process.poll() is None

    def log_text(self) -> str:
        """Everything the server has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def start(self) -> None:
        """Start, and wait until it answers.

        Raises:
            ServerFailed: it ended, or did not answer in time.
        """
        self._prepare()
        for attempt in range(1, _PORT_TRIES + 1):
            self.port = self._wanted_port or free_port()
            try:
                self._launch()
                self._await_answer()
                return
            except ServerFailed:
                self.stop()
                # Someone may have taken the port between our look and ComfyUI's bind.
                if attempt == _PORT_TRIES or not any(sign in tail(self.log).lower() for sign in _PORT_TAKEN):
                    raise
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End the server and everything it started. Stopping twice is fine."""
        child, self._child = self._child, None
        if child is not None:
            child.stop()
            if child.process.stdin is not None:
                child.process.stdin.close()

    def run(self, graph: Graph, on_event: Any = None, **options: Any) -> RunResult:
        """`ComfyClient.run`, but when the server dies the error shows its log.

        Raises:
            ServerFailed: the server went away. Otherwise as `ComfyClient.run`.
        """
        try:
            return self.client.run(graph, on_event, **options)
        except (ConnectionError, ClientError) as error:
            if not self.running:
                raise ServerFailed("the ComfyUI server went away during a run", self.log) from error
            raise

    def _prepare(self) -> None:
        for name in ("custom_nodes", "input", "output/loras", "temp", "user", "models/loras"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name, folder in self.packs.items():
            link_folder(Path(folder), self.base / "custom_nodes" / name)
        (self.base / "extra_model_paths.yaml").write_text(model_paths_yaml(self.models), encoding="utf-8")

    def _command(self) -> list[str]:
        serve = Path(__file__).with_name("serve.py")
        command = [str(self.install.python), str(serve), str(self.install.comfyui / "main.py")]
        command += ["--base-directory", str(self.base), "--listen", _HOST, "--port", str(self.port)]
        command += [*(["--cpu"] if self.cpu else []), "--disable-auto-launch"]
        command += ["--extra-model-paths-config", str(self.base / "extra_model_paths.yaml")]
        if self.install.accepts("--disable-api-nodes"):
            command.append("--disable-api-nodes")  # also keeps the front end from reaching for the internet
        if self.install.accepts("--database-url"):
            # the default lies in ComfyUI's own folder, whatever the base directory
            command += ["--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"]
        return command + self.args

    def _launch(self) -> None:
        env = {**self.install.env(), **self.extra_env}
        with self.log.open("wb") as sink:
            streams = {"stdin": subprocess.PIPE, "stdout": sink, "stderr": subprocess.STDOUT}
            self._child = Child(self._command(), cwd=self.install.comfyui, env=env, **streams)

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            code = self._child.process.poll()
            if code is not None:
                raise ServerFailed(f"ComfyUI ended with exit code {code} before it answered", self.log)
            try:
                self.client.request("GET", "/system_stats", timeout=5.0)
                return
            except (OSError, HttpError):  # nobody listens yet, or somebody else, and ours is about to end
                time.sleep(0.1)
            if self.on_wait is not None:
                self.on_wait()
        raise ServerFailed(f"ComfyUI did not answer on {self.url} within {_START_TIMEOUT:g} s", self.log)


def free_port() -> int:
    """A loopback TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return probe.getsockname()[1]


def model_paths_yaml(models: Mapping[str, Sequence[Path]]) -> str:
    """An ``extra_model_paths.yaml`` that adds `models` (quoted, so that any path survives)."""
    if not models:
        return "{}\n"
    lines = ["autolora_demo:", "  is_default: true"]  # first in the order of search, before a user's own folders
    for kind, folders in models.items():
        paths = [Path(folder).absolute().as_posix() for folder in folders]
        # ComfyUI takes several folders as one string with a line each
        escaped = "\\n".join(path.replace("\\", "\\\\").replace('"', '\\"') for path in paths)
        lines.append(f'  {kind}: "{escaped}"')
    return "\n".join(lines) + "\n"


def link_folder(target: Path, link: Path) -> None:
    """Make `link` lead to the folder `target`: a symbolic link, or on Windows a junction (needs no rights)."""
    if link.exists() and os.path.samefile(link, target):
        return
    remove_link(link)
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(target.resolve()), str(link))
    else:
        link.symlink_to(target.resolve(), target_is_directory=True)


def remove_link(link: Path) -> None:
    """Remove a link or junction, never what it leads to. A real folder in its place is an error."""
    if link.is_symlink():
        link.unlink()
    elif os.name == "nt" and os.path.lexists(link):  # exists() is false for a junction to a folder that has gone
        os.rmdir(link)  # takes a junction away, and refuses a folder with something in it
    elif link.exists():
        raise FileExistsError(f"{link} is a real file or folder where a link belongs: move it away")


def clear_output(base: Path) -> None:
    """Empty the pictures of earlier runs."""
    shutil.rmtree(base / "output" / "autolora", ignore_errors=True)
