"""A pack for tests: tells which routes ComfyUI's server has, and what the panel's threads open and do."""

from __future__ import annotations

import os
import sys
import threading

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}
THREADS = "autolora-panel"
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.listdir")
FORBIDDEN = ("socket.", "subprocess.", "pickle.", "os.system", "os.exec", "os.posix_spawn", "urllib.", "http.", "exec")
opened: set[str] = set()  # read
written: set[str] = set()
did: set[str] = set()
_busy = threading.local()


def _hook(event: str, args: tuple) -> None:
    if not threading.current_thread().name.startswith(THREADS) or getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            writing = any(sign in str(args[1] or "") for sign in "wax+") or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
            (written if writing else opened).add(os.path.realpath(os.fsdecode(args[0])))
        elif event == "sqlite3.connect":
            opened.add(os.path.realpath(os.fsdecode(args[0]).partition("?")[0].removeprefix("file://")))
        elif event in CHANGES:
            (opened if event == "os.listdir" else written).add(os.path.realpath(os.fsdecode(args[0] or ".")))
        elif event.startswith(FORBIDDEN) and not _importing():
            did.add(f"{event} {str(args)[:80]}")
    finally:
        _busy.now = False


def _importing() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if "importlib" in frame.f_code.co_filename or frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back
    return False


sys.addaudithook(_hook)


@PromptServer.instance.routes.get("/panel_spy")
async def told(request: web.Request) -> web.Response:
    routes = [
        [
            route.method,
            route.resource.canonical,
            route.handler.__code__.co_filename if hasattr(route.handler, "__code__") else "",
        ]
        for route in request.app.router.routes()
    ]
    return web.json_response(
        {"routes": routes, "opened": sorted(opened), "written": sorted(written), "did": sorted(did)}
    )
