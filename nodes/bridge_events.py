"""Messages to the page beside ComfyUI's own, over its websocket: ``autolora.progress`` and ``autolora.heat``.

They go to whoever queued the prompt. A page without our extension, and a client that does not know them, passes them
over; outside a server nothing is sent.
"""

from __future__ import annotations

import sys
from typing import Any


def _server() -> Any:
    # Not imported here: tests and other programs run nodes without a server, and the module would make one's routes.
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def send(event: str, data: dict[str, Any]) -> None:
    """``data``: plain JSON, with the ``node`` that it is about. ``prompt_id`` is added: another workflow that is open
    may have a node of that number."""
    server = _server()
    if server is not None:
        prompt = getattr(server, "last_prompt_id", None)
        server.send_sync(f"autolora.{event}", {**data, **({"prompt_id": prompt} if prompt else {})}, server.client_id)


def keep_with(card: dict[str, Any], node: str, facts: dict[str, Any]) -> None:
    """Put ``facts`` into a ``card`` that a node has given already. The running prompt's entry in the history, which is
    written at its end, has them then.

    ComfyUI gives the same card to every later prompt that it need not run the node for. Entries of earlier prompts get
    a copy first, so that they go on saying what was so then.
    """
    queue = getattr(_server(), "prompt_queue", None)
    history, mutex = getattr(queue, "history", None), getattr(queue, "mutex", None)
    if isinstance(history, dict) and mutex is not None:
        with mutex:
            for entry in history.values():
                _part(entry, card, node)
    card.update(facts)


def _part(entry: Any, card: dict[str, Any], node: str) -> None:
    """Give an entry of the history a card of its own, where it has this very one."""
    outputs = entry.get("outputs") if isinstance(entry, dict) else None
    shown = outputs.get(node) if isinstance(outputs, dict) else None
    cards = shown.get("autolora") if isinstance(shown, dict) else None
    if isinstance(cards, list) and any(one is card for one in cards):
        own = [dict(one) if one is card else one for one in cards]
        entry["outputs"] = {**outputs, node: {**shown, "autolora": own}}
