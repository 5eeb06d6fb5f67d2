"""What a route of the panel answers, as ``(status, content type, bytes)``; runs in a thread of the pack's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)
Answer = tuple[int, str, bytes]
JSON, BYTES = "application/json", "application/octet-stream"
GONE = 499  # status where nobody waits for the answer; nobody sees it


def answer(name: str, said: Mapping[str, str], stop: Callable[[], bool]) -> Answer:
    """Answer the route ``name`` for the query ``said``; ``stop()``: nobody waits any more. Never raises."""
    from ..autolora_core.errors import AutoLoRAError, SelectionError
    from ..autolora_core.panel.answers import Stopped
    from ..autolora_core.panel.asked import Asked

    try:
        if stop():  # it waited for a thread, and was given up meanwhile
            raise Stopped
        return _answered(name, Asked.of(said), stop)
    except Stopped:
        return _json({"error": "Nobody waited for the answer."}, GONE)
    except AutoLoRAError as error:
        # Without the path that the error's own text names: the page does not need to know it.
        words = {"error": error.message, "key": error.key, "fix": error.fix}
        return _json(words, 400 if isinstance(error, SelectionError) else 404)
    except Exception:  # what nobody foresaw is for the log: its words could name paths, and the page needs an answer
        log.exception("The library panel could not be answered (%s)", name)
        return _json({"error": "The library could not be read; ComfyUI's log says why."}, 500)


def _answered(name: str, asked: Any, stop: Callable[[], bool]) -> Answer:
    from ..autolora_core.panel import answers
    from .bridge_paths import lora_roots, open_index, user_directory

    if name == "libraries":
        return _json(_libraries())
    from ..autolora_core.library.index import INDEX_FORMAT
    from ..autolora_core.panel.libraries import folder_of

    roots = lora_roots()
    folder = folder_of(user_directory(), asked.library)
    # As Encode LoRA Library names all loras, so that what Retrieve has in memory serves the panel as well.
    handle = {"format": INDEX_FORMAT, "folder": str(folder), "roots": roots, "under": "", "names": ""}
    with open_index(handle) as library:
        if name == "preview":
            return _preview(library, asked.hash, roots)
        if name == "map":
            from ..autolora_core.panel.map import draw_map

            return 200, BYTES, draw_map(library, asked, stop)
        if name == "search":
            return _json(answers.search(library, asked, stop, _tower(library)))
        return _json(getattr(answers, name)(library, asked, stop))


def _libraries() -> dict:
    from ..autolora_core.panel.libraries import folders
    from .bridge_paths import user_directory

    return {"libraries": [{"name": name} for name in folders(user_directory())]}


def _preview(library: Any, digest: str, roots: Mapping[str, str]) -> Answer:
    from ..autolora_core.panel.preview import preview_of

    found = preview_of(library, digest, roots.values())
    if found is None:
        return _json({"error": "There is no preview picture of this LoRA."}, 404)
    return 200, found[1], found[0]


def _tower(library: Any) -> Any:
    """The nodes' own, or the quick one while the library's words wait for it."""
    from .bridge_paths import model_folders
    from .later import quick_tower
    from .tower import shared_tower

    return quick_tower(library) or shared_tower(model_folders())


def _json(said: dict, status: int = 200) -> Answer:
    return status, JSON, json.dumps(said).encode()
