"""The library panel's routes: HTTP in, what ``autolora_core.panel`` answers out. They only read, and only by GET.

ComfyUI's server is taken as it runs, never imported: in scripts and tests there is none, and no route then. Work is
done in threads of its own, so that the server goes on answering, and is given up when nobody waits any more.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

# Every route there is: what tests compare with the running server, and SECURITY.md lists.
NAMES = ("libraries", "entries", "search", "similar", "duplicates", "problems", "map", "preview")
PATHS = tuple(f"/autolora/{name}" for name in NAMES)
THREADS, CHECK = 3, 0.2  # seconds between two looks whether somebody still waits
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# A picture that is opened by itself is a page: nothing in it runs.
OF_PICTURES = HEADERS | {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": "private, max-age=60",
}


def add_routes() -> None:
    """Add the routes to ComfyUI's server, where one runs in this process."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    table = getattr(server, "routes", None)
    if table is not None:
        for name, path in zip(NAMES, PATHS, strict=True):
            table.get(path)(_handler(name))


def _handler(name: str) -> Callable[[Any], Awaitable[Any]]:
    async def handler(request: Any) -> Any:
        return await _answer(name, request)

    handler.__name__ = f"autolora_{name}"
    return handler


async def _answer(name: str, request: Any) -> Any:
    import asyncio

    from aiohttp import web

    from .panel_answers import GONE, answer

    left, main = threading.Event(), threading.main_thread()

    def stop() -> bool:
        return left.is_set() or not main.is_alive()  # ComfyUI is ending: it would wait for the thread

    work = asyncio.wrap_future(_pool().submit(answer, name, dict(request.query), stop))
    try:
        while not work.done():
            await asyncio.wait([work], timeout=CHECK)
            if not work.done() and (request.transport is None or request.transport.is_closing()):
                return web.Response(status=GONE, headers=HEADERS)
        status, kind, body = work.result()
    finally:
        left.set()
    headers = OF_PICTURES if kind.startswith("image/") else HEADERS
    return web.Response(status=status, body=body, content_type=kind, headers=headers)


@cache
def _pool() -> Any:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(THREADS, thread_name_prefix="autolora-panel")
