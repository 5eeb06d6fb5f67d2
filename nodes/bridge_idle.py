"""Whether ComfyUI has anything to do just now."""

from __future__ import annotations

import sys


def prompts_waiting() -> bool:
    """True while a prompt runs or waits; False without a server, in scripts and tests say."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    queue = getattr(getattr(server, "instance", None), "prompt_queue", None)
    return queue is not None and queue.get_tasks_remaining() > 0
