"""Shards on a Ray cluster: started, waited for, and told apart from those whose worker was lost. The only file that
imports Ray. Ray's own retries are off: what is tried again, and how often, is decided in :mod:`.shards`."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import LibraryError
from .worker import PACKAGE, read_shard

log = logging.getLogger(__name__)
CPUS_ASKED_EVERY = 5.0  # seconds


class Lost(Exception):
    """The worker, its machine or its result went away; the text says what Ray knows of it, in one line."""


class RayCluster:
    """The cluster at ``address`` (``host:port``, or ``auto`` on one of its machines); close it, or use ``with``.

    Raises :class:`LibraryError` when Ray is not installed or nobody answers there.
    """

    def __init__(self, address: str):
        _set_up_environment()
        try:
            import ray
        except ImportError as error:
            raise LibraryError(
                "Ray is not installed", key="--ray", fix="python -m pip install ray, here and on every worker"
            ) from error
        self._ray, self._asked, self._cpus = ray, 0.0, 0
        try:
            with _sources() as folder:
                how = {"log_to_driver": False, "logging_level": logging.ERROR}
                ray.init(address=address, runtime_env={"working_dir": folder}, **how)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise LibraryError(
                f"no Ray cluster can be used at {address} ({_line(error)})",
                key="--ray",
                fix="start one with `ray start --head` (docs/scale.md) and run this on one of its machines",
            ) from error
        # A task is one thread (see encode.threads); where it runs is better spread than packed: they share no data.
        options = {"num_cpus": 1, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        self._task = ray.remote(**options)(read_shard)

    def workers(self) -> int:
        """How many shards can be read at a time just now; 0 while no machine but an idle head is there."""
        if time.monotonic() - self._asked > CPUS_ASKED_EVERY or not self._asked:
            self._cpus, self._asked = int(self._ray.cluster_resources().get("CPU", 0)), time.monotonic()
        return self._cpus

    def start(self, request: bytes) -> Any:
        """Have a shard read (:func:`.worker.request`); returns a handle that can be a dictionary's key."""
        return self._task.remote(request)

    def wait(self, handles: list[Any], seconds: float) -> list[Any]:
        """Those of ``handles`` that have ended, as soon as one has, or none after ``seconds``."""
        return self._ray.wait(handles, num_returns=1, timeout=seconds)[0]

    def result(self, handle: Any) -> bytes:
        """What the shard gave. Raises :class:`Lost`, and LibraryError for what another worker would not mend."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except errors.RayTaskError as error:
            if isinstance(error.cause, MemoryError):
                raise Lost(_line(error.cause)) from error
            if isinstance(error.cause, LibraryError):
                raise error.cause from None
            raise LibraryError(
                f"a worker failed: {_line(error.cause)}", key="--ray", fix="mend the worker and run this again"
            ) from error
        except errors.RuntimeEnvSetupError as error:
            raise LibraryError(
                f"a worker cannot be set up: {_line(error)}", key="--ray", fix="mend the worker and run this again"
            ) from error
        except errors.RayError as error:
            raise Lost(_line(error)) from error

    def close(self) -> None:
        """Leave the cluster; shards that are still being read end."""
        self._ray.shutdown()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _sources() -> Iterator[str]:
    """A folder with this pack's code alone, for Ray to send: workers need no installation of it, and one that lies
    there in another version is not taken."""
    with tempfile.TemporaryDirectory(prefix="autolora-code-") as folder:
        shutil.copytree(PACKAGE, Path(folder, PACKAGE.name), ignore=shutil.ignore_patterns("__pycache__"))
        yield folder


def _set_up_environment() -> None:
    """What Ray reads from the environment when it is imported."""
    # It reports how it is used to its makers unless told not to; this pack tells nobody anything.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # `ray start` asks for a token as soon as there is one; a driver has to be told, or it is turned away.
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _line(error: BaseException | None, most: int = 200) -> str:
    """The first line of an error, with its kind."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:most]
