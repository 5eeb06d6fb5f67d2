"""A disk that behaves as on Windows: a file that this process has open or mapped cannot be replaced, renamed or
deleted. What is open is asked of Linux itself, so a forgotten handle is found wherever it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MAPS, OPEN = Path("/proc/self/maps"), Path("/proc/self/fd")


def is_held(path: str | os.PathLike) -> bool:
    """Whether this process has the file open or mapped."""
    real = os.path.realpath(path)
    if any(line.rstrip("\n").endswith(" " + real) for line in MAPS.read_text(encoding="utf-8").split("\n")):
        return True
    for descriptor in OPEN.iterdir():
        try:
            if os.readlink(descriptor) == real:
                return True
        except OSError:  # the one that lists this folder
            continue
    return False


def make_windows_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on; returns the list of refusals, which grows."""
    if not MAPS.exists():
        pytest.skip("what is open is asked of Linux")
    refused: list[str] = []

    def guarded(name: str, count: int):
        real = getattr(os, name)

        def call(*paths, **options):
            for path in paths[:count]:
                if "dir_fd" not in options and os.path.lexists(path) and is_held(path):
                    refused.append(f"{name} {os.path.basename(os.fspath(path))}")
                    raise PermissionError(13, "The process cannot access the file because it is being used", path)
            return real(*paths, **options)

        monkeypatch.setattr(os, name, call)

    for name, count in (("replace", 2), ("rename", 2), ("unlink", 1), ("remove", 1)):
        guarded(name, count)
    return refused
