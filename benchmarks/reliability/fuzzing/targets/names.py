"""Names that become files: libraries, encoders, gates, merged LoRAs. No name leaves its folder, on any system."""

from __future__ import annotations

import ntpath
import os
import random
from pathlib import Path

from autolora_core.errors import AutoLoRAError
from autolora_core.fusion.file_names import find_names, namesakes, short_names
from autolora_core.fusion.merged.naming import free_path, merged_path
from autolora_core.fusion.training.outcome import gate_path
from autolora_core.library.folders import library_folder
from autolora_core.train.own import encoder_file

from .. import mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 12_000
PARTS = (
    "otter",
    "/",
    "\\",
    "..",
    ".",
    " ",
    "flux",
    ":",
    "C:",
    "~",
    "%2e%2e",
    ".safetensors",
    "nul",
    "CON",
    "\u2215",
    "\uff0f",
    "\u202e",
    "\0",
    "a" * 130,
    "\u00e9",
    "e\u0301",
    "\u212a",
    "-",
    "_",
    "COM\u00b9",
    "$HOME",
    "|",
    "*",
    "\n",
    "encoder",
    "...",
    "\ud800",
)
KNOWN = ("flux/otter.safetensors", "otter.safetensors", "sub\\fox.safetensors", "a/b/fox.sft", "style-v1.0.safetensors")


def bound(size: int) -> int:
    return 8 * MIB + 100 * size


def seeds(folder: Path) -> list[bytes]:
    return [b"otter", b"flux/my-mix", "\u00e9t\u00e9 1.0".encode()]


def make(rng: random.Random, parent: bytes) -> bytes:
    text = (
        mutate.lines(rng, PARTS) if rng.random() < 0.8 else parent.decode("utf-8", "surrogatepass") + mutate.text(rng)
    )
    return text[:12_000].encode("utf-8", "surrogatepass")


def run(data: bytes, folder: Path) -> None:
    name, refused = data.decode("utf-8", "surrogatepass"), []
    for make_path, below in (
        (lambda: library_folder(name, folder), folder / "autolora"),
        (lambda: encoder_file(folder / "models", "sd3", "default", name), folder / "models"),
        (lambda: encoder_file(folder / "models", "sd3", "default", name, True), folder / "models"),
        (lambda: gate_path(folder / "models", "sd3", name), folder / "models"),
        (lambda: free_path(merged_path(folder / "loras", name)), folder / "loras"),
    ):
        try:
            path = make_path()
        except AutoLoRAError as error:
            refused.append(error)
            continue
        _inside(path, below, name)
    if not {*find_names(name, KNOWN), *namesakes(name, KNOWN)} <= set(KNOWN):
        raise Wrong("a name that nobody listed")
    short_names([name, "otter.safetensors"], KNOWN)
    if len(refused) == 5:
        raise refused[0]


def _inside(path: Path, below: Path, name: str) -> None:
    """On this system, and by the rules of Windows."""
    if os.path.commonpath([os.path.abspath(path), os.path.abspath(below)]) != os.path.abspath(below) or path == below:
        raise Wrong(f"{name!r:.200} becomes {path}")
    relative = str(path)[len(str(below)) + 1 :]
    windows = ntpath.normpath(ntpath.join("C:\\base", relative.replace("/", "\\")))
    if not windows.startswith("C:\\base\\") or any(":" in part for part in relative.split("/")):
        raise Wrong(f"{name!r:.200} becomes {windows} on Windows")
    if any(sign in relative for sign in "\0\n\r"):
        raise Wrong(f"{name!r:.200} becomes a name with control characters")
