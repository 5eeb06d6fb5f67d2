"""Is this a gate file, for which base family, and is it whole? Told from the header, for menus.

A gate that was cut off, or saved by a failed download, must not vanish without a word: it is recognised as far as its
first bytes allow, with what is wrong with it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from ..errors import FileFormatError
from ..lora.header import read_header
from ..lora.sniff import what_is_it
from .flux_gate import PUBLIC_PREFIX

FORMAT = "autolora-gate/1"
FORMATS = (FORMAT, "autolora-gate/2")
FIX = "download or train the gate again, or choose mode 'sum'"
NO_FAMILY = "the gate file does not say which base family it is for"
MAX_HEADER = 16 << 20  # bytes looked at of a broken file; the public FLUX gate's header has 0.3 MB


@dataclass(frozen=True)
class GateSign:
    """What the header of a gate file says: its base ``family``, and the ``problem`` that makes it useless, if any.

    ``family`` is None when the header cannot be read: the file may have been a gate.
    """

    family: str | None
    problem: str | None = None


def gate_sign(path: str | os.PathLike) -> GateSign | None:
    """A look at the header; None when the file is something else than a gate. Never raises."""
    problem = None
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        return None
    try:
        header = read_header(path)
        metadata, keys = header.metadata, list(header.tensors)
    except FileFormatError as error:
        metadata, keys = _header_of_a_broken_file(path)
        problem = what_is_wrong(path, error)[0]
        if not keys:
            return GateSign(None, problem)
    said = str(metadata.get("format", ""))
    if said.startswith(FORMAT.partition("/")[0] + "/"):
        if said not in FORMATS:
            problem = problem or f"its format is {said}, this version reads {' and '.join(FORMATS)}"
        elif not metadata.get("family"):
            problem = problem or NO_FAMILY
        return GateSign(metadata.get("family"), problem)
    return GateSign("flux", problem) if any(key.startswith(PUBLIC_PREFIX) for key in keys) else None


def what_is_wrong(path: str | os.PathLike, error: Exception) -> tuple[str, str]:
    """Why a file is no safetensors file, and what to do, in words where its first bytes tell."""
    found = what_is_it(_start(path, 64))
    return (f"it is {found[0]}", found[1]) if found else (getattr(error, "message", None) or str(error), FIX)


def _start(path: str | os.PathLike, count: int, skip: int = 0) -> bytes:
    """Some bytes of a file; none when it cannot be opened, which has been said already."""
    try:
        with open(path, "rb") as stream:
            stream.seek(skip)
            return stream.read(count)
    except OSError:
        return b""


def _header_of_a_broken_file(path: str | os.PathLike) -> tuple[dict[str, str], list[str]]:
    """Metadata and keys of a file that was cut off behind its header; both empty when even that is gone."""
    length = int.from_bytes(_start(path, 8), "little")
    try:
        header = json.loads(_start(path, min(length, MAX_HEADER), 8))
    except (ValueError, RecursionError):
        return {}, []
    if not isinstance(header, dict):
        return {}, []
    said = header.get("__metadata__")
    metadata = {key: text for key, text in said.items() if isinstance(text, str)} if isinstance(said, dict) else {}
    return metadata, [key for key in header if key != "__metadata__"]
