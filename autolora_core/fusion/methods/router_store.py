"""Routers kept on disk, a safetensors file a set of LoRAs. A cache: whatever is wrong with it, they are made again."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ...portable import load_copies, remove
from ..files import replace_file

# The names that ``write`` is given: what else lies in the folder is somebody else's.
KEY = re.compile(r"[0-9a-f]{32}\.safetensors")
log = logging.getLogger(__name__)
MAX_BYTES = 512 << 20  # in the folder: the files used longest ago make room, and a larger set is not kept


def read(folder: Path, key: str) -> dict[str, Tensor] | None:
    """Module → R (R, R) float32; None when there is no such file, or none to be used."""
    path = folder / f"{key}.safetensors"
    if not path.is_file():
        return None
    try:
        routers = load_copies(path)
        os.utime(path)
    except (OSError, SafetensorError) as error:
        log.warning("%s: %s; the model is asked again", path, error)
        return None
    square = all(one.ndim == 2 and one.shape[0] == one.shape[1] and one.isfinite().all() for one in routers.values())
    if not square:
        log.warning("%s does not hold routers; the model is asked again", path)
    return routers if square else None


def write(folder: Path, key: str, routers: Mapping[str, Tensor]) -> None:
    """Keep the routers under ``key``, 32 hex digits; a disk that cannot be written costs only the next calibration."""
    if size_of(routers) > MAX_BYTES:
        log.info("%s: routers of %d MB are not kept", folder, size_of(routers) >> 20)
        return
    tensors = {name: one.to(torch.float32).cpu().clone() for name, one in routers.items()}
    try:
        replace_file(folder / f"{key}.safetensors", tensors, {"format": "autolora-routers/1"})
        _make_room(folder)
    except (OSError, SafetensorError) as error:
        log.warning("%s: %s; these routers are not kept", folder, error)


def size_of(routers: Mapping[str, Tensor]) -> int:
    """Bytes of the routers in float32."""
    return 4 * sum(one.numel() for one in routers.values())


def _make_room(folder: Path) -> None:
    own = (path for path in folder.iterdir() if KEY.fullmatch(path.name))
    files = sorted(own, key=lambda path: path.stat().st_mtime, reverse=True)
    held = 0
    for number, path in enumerate(files):
        held += path.stat().st_size
        if held > MAX_BYTES and number:
            remove(path)
