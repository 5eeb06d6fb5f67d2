"""The folder of a library, by the name its user gave it: the same one on every system; and where encoders are put."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from ..errors import LibraryError
from ..portable import DEVICES

DEFAULT = "default"
PACK = Path(__file__).resolve().parents[2]


def models_folder(pack: Path = PACK) -> Path | None:
    """``models/autolora`` of the ComfyUI that the pack is installed in, or None when it lies elsewhere."""
    models = pack.parent.parent / "models"
    return models / "autolora" if pack.parent.name == "custom_nodes" and models.is_dir() else None


def library_folder(name: str, user_directory: str | os.PathLike) -> Path:
    """Where the library ``name`` lies below ComfyUI's user directory; empty is ``default``.

    Capitals make no other library: "Anime" is the "anime" that is there already, as Windows and macOS have it anyway.
    Raises :class:`LibraryError` for a name that is no plain folder name on every system.
    """
    name = unicodedata.normalize("NFC", name.strip()) or DEFAULT
    if not re.fullmatch(r"\w[\w .-]{0,63}", name) or name.endswith("."):
        raise LibraryError(
            "a library name is 1 to 64 letters, digits, spaces, dots or dashes, the last one no dot",
            key=name,
            fix="choose another name",
        )
    if name.partition(".")[0].strip().casefold() in DEVICES:
        raise LibraryError(
            "Windows keeps this name for a device, so no library can have it", key=name, fix="choose another name"
        )
    base = Path(user_directory) / "autolora"
    return base / _as_it_is(name, base)


def _as_it_is(name: str, base: Path) -> str:
    """The name of the folder that is there already, whatever its capitals and however its accents are stored."""
    try:
        there = sorted(entry.name for entry in os.scandir(base) if entry.is_dir())
    except FileNotFoundError:
        return name
    if name in there:
        return name
    same = [other for other in there if _key(other) == _key(name)]
    return same[0] if same else name


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
