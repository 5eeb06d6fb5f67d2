"""Where a merged LoRA is saved: a name inside one folder, free unless overwriting is asked for."""

from __future__ import annotations

from pathlib import Path

from ...errors import SelectionError
from ...portable import why_not_a_name

SUFFIX = ".safetensors"
LONGEST = 200  # bytes of one part of a name; file systems take 255, and a number may be added


def merged_path(folder: Path, name: str) -> Path:
    """The file ``name`` (subfolders allowed, either slash) in ``folder``.

    Raises ``SelectionError`` for an empty name, an absolute one, one that leaves the folder, one too long. Links inside
    the folder are its owner's and are followed.
    """
    plain = name.strip().replace("\\", "/")
    parts = plain.split("/")
    if plain.startswith("/") or ":" in plain or ".." in parts or any(ord(sign) < 32 for sign in plain):
        raise SelectionError(
            f"the name {name!r} does not stay inside the loras folder",
            key="name",
            fix="give a file name, or folder/name without drive, ':' or '..'",
        )
    parts = [part.strip() for part in parts if part.strip() not in ("", ".")]
    if parts and parts[-1].lower().endswith(SUFFIX):
        parts[-1] = parts[-1][: -len(SUFFIX)]
    if not parts or plain.endswith("/") or not parts[-1].strip(". "):
        raise SelectionError("the merged LoRA has no name", key="name", fix="give a file name, such as my-mix")
    if any(len(part.encode("utf-8", "surrogatepass")) > LONGEST for part in parts):
        raise SelectionError("the name of the merged LoRA is too long", key="name", fix="give a shorter one")
    _check_parts(folder, [*parts[:-1], parts[-1] + SUFFIX])
    return folder.joinpath(*parts[:-1], parts[-1] + SUFFIX)


def _check_parts(folder: Path, parts: list[str]) -> None:
    """Raise ``SelectionError`` for a new folder or file that could not be copied to another system."""
    for part in parts:
        folder = folder / part
        why = why_not_a_name(part)
        if why and not folder.is_dir():
            raise SelectionError(
                f"nothing can be called {part!r} on every system: {why}", key="name", fix="give another name"
            )


def free_path(path: Path) -> Path:
    """``path``, or the first of ``path`` with _00001, _00002, … that is not there yet."""
    number, free = 0, path
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.name[: -len(SUFFIX)]}_{number:05d}{SUFFIX}")
    return free


def check_sources(path: Path, sources: dict[str, str]) -> None:
    """Raise ``SelectionError`` when ``path`` is one of the files (name → path) that the merged LoRA is made of."""
    for name, source in sources.items():
        if path.exists() and path.samefile(source):
            raise SelectionError(
                f"{name} would be overwritten by a merged LoRA that it is part of", path=path, key="name",
                fix="give another name, or switch overwrite off",
            )  # fmt: skip
