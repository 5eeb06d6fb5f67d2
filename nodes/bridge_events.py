"""Messages to the page beside ComfyUI's own, over its websocket: ``autolora.progress`` and ``autolora.heat``.

They go to whoever queued the prompt. A page without our extension, and a client that does not know them, passes them
over; outside a server nothing is sent.
"""

from __future__ import annotations

import sys
from typing import Any


def send(event: str, data: dict[str, Any]) -> None:
    """``data``: plain JSON, with the ``node`` that it is about."""
    # Not imported here: tests and other programs run nodes without a server, and the module would make one's routes.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.send_sync(f"autolora.{event}", data, server.client_id)
