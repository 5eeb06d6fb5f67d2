"""How a route of the panel waits for its thread: the server's loop goes on, and work that nobody waits for is told."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
from comfy_local import pack_module

routes, panel_answers = pack_module("nodes.routes"), pack_module("nodes.panel_answers")


def request(closing=lambda: False, **query):
    return SimpleNamespace(query=query, transport=SimpleNamespace(is_closing=closing))


def test_the_loop_goes_on_while_a_thread_works(monkeypatch):
    go, threads = threading.Event(), []

    def slow(name, said, stop):
        threads.append(threading.current_thread().name)
        assert go.wait(30), "the loop stood still"
        return 200, "application/json", f"{name} {said}".encode()

    async def both():
        asking = asyncio.create_task(routes._answer("entries", request(query="x")))
        await asyncio.sleep(0.01)
        go.set()  # the loop is free to do so
        return await asking

    monkeypatch.setattr(panel_answers, "answer", slow)
    answer = asyncio.run(both())
    assert answer.status == 200 and answer.body == b"entries {'query': 'x'}" and "autolora-panel" in threads[0]
    assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.content_type == "application/json"


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_work_that_nobody_waits_for_is_told(monkeypatch, how):
    began, told = threading.Event(), threading.Event()

    def endless(name, said, stop):
        began.set()
        while not stop():
            threading.Event().wait(0.01)
        told.set()
        return 200, "application/json", b""

    async def leave():
        asking = asyncio.create_task(routes._answer("map", request(began.is_set if how == "closed" else lambda: False)))
        while not began.is_set():
            await asyncio.sleep(0.01)
        if how == "cancelled":
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        else:
            assert (await asking).status == panel_answers.GONE

    monkeypatch.setattr(panel_answers, "answer", endless)
    asyncio.run(leave())
    assert told.wait(10), "the thread goes on for nobody"


def test_what_was_given_up_before_it_began_is_not_begun(comfy):
    assert panel_answers.answer("entries", {"library": "none"}, lambda: True)[0] == panel_answers.GONE
    assert panel_answers.answer("entries", {"library": "none"}, lambda: False)[0] == 404


def test_pictures_are_no_pages(monkeypatch):
    monkeypatch.setattr(panel_answers, "answer", lambda *_: (200, "image/png", b"\x89PNG"))
    answer = asyncio.run(routes._answer("preview", request()))
    assert "sandbox" in answer.headers["Content-Security-Policy"] and answer.content_type == "image/png"


def test_without_a_server_there_is_no_route(monkeypatch):
    monkeypatch.setitem(routes.sys.modules, "server", None)
    routes.add_routes()
