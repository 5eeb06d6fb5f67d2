"""Work in progress on disk: what is whole is gone on from, anything else is done again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ..portable import not_written, sweep

log = logging.getLogger(__name__)


def read_kept(path: Path, *keys: str) -> dict | None:
    """The JSON object in ``path``, which has all ``keys``; None when there is none, or it is damaged."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(said, dict) and said.keys() >= set(keys):
            return said
        why: object = f"not an object with {', '.join(keys)}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = error
    log.warning("%s cannot be used (%s); doing this part again", path, why)
    return None


def work_folder(path: Path) -> Path:
    """Create a folder for work in progress, and clear away what a killed process left half written in it.

    Raises ``NotWrittenError``.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(path, error) from error
    sweep(path)
    return path
