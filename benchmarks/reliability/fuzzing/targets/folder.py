"""LoRA folders full of traps: names, links in circles, pipes, folders called like files, sidecars that lie."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

from autolora_core.library.index import Library
from autolora_core.library.report import Summary, encode_report
from autolora_core.library.walk import Scope, folder_state

from .. import document, library_world, lora_seeds, mutate
from ..memory import MIB
from ..oracle import Wrong
from .metadata import CIVITAI

CASES = 250
KINDS = (
    "lora",
    "lora",
    "lora",
    "broken",
    "folder",
    "pipe",
    "circle",
    "dangling",
    "outside",
    "pickle",
    "empty",
    "sidecar",
    "preview",
)
ENDINGS = (".safetensors", ".sft", ".ckpt", ".civitai.info", ".json", ".txt", ".png", ".preview.png", "")


def bound(size: int) -> int:
    return 128 * MIB + 60 * size


def seeds(folder: Path) -> list[bytes]:
    library_world.build(folder)
    return [mutate.dumped([["lora", "otter.safetensors", lora_seeds.files()[0].hex()]])]


def make(rng: random.Random, parent: bytes) -> bytes:
    """[kind, name, content as hex] of every file."""
    made = []
    for _ in range(rng.choice((1, 2, 4, 8))):
        kind = rng.choice(KINDS)
        stem = (
            mutate.text(rng)[:80] if rng.random() < 0.6 else rng.choice(("otter", "a/b/fox", "UPPER", "\u00e9t\u00e9"))
        )
        content = {
            "lora": lambda: rng.choice(lora_seeds.files()),
            "broken": lambda: document.lie(rng, rng.choice(lora_seeds.files())),
            "sidecar": lambda: mutate.dumped(mutate.changed(rng, CIVITAI)), "preview": lambda: rng.randbytes(40),
            "pickle": lambda: b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00true\x85R.",
        }.get(kind, lambda: b"")()  # fmt: skip
        ending = (
            rng.choice(ENDINGS)
            if kind in ("sidecar", "preview", "folder")
            else ".ckpt"
            if kind == "pickle"
            else ".safetensors"
        )
        made.append([kind, stem + ending, content[:20_000].hex()])
    return mutate.dumped(made)


def run(data: bytes, folder: Path) -> None:
    root, place = folder / "hostile", folder / "hostile-library"
    for old in (root, place):
        shutil.rmtree(old, ignore_errors=True)
    root.mkdir()
    for entry in mutate.loaded(data) or []:
        with contextlib.suppress(OSError, ValueError, TypeError):  # names that this disk does not take
            _put(root, *entry)
    before = _everything(root)
    library_world.forget()
    with Library.open(place) as library:
        scan = library.scan({"loras": root})
        fitted = library.fit(library_world.TOWER)
        entries = library.entries()
        report = encode_report(
            Summary(scan, fitted, entries, library.exact_copies(), {}, str(place), library.unencoded())
        )
    report.encode("utf-8")
    folder_state(Scope.of({"loras": root}))
    if _everything(root) != before:
        raise Wrong("a scan changed the LoRA folder")
    for entry in entries:
        if not os.path.exists(entry.path) and not entry.problems:
            raise Wrong(f"an entry without a file: {entry.path!r:.200}")
        if entry.path.endswith(".ckpt") and not entry.problems:
            raise Wrong("a pickle was taken for a LoRA")
    if any(sign in report for sign in "\0\x1b"):
        raise Wrong("control characters in the report")


def _put(root: Path, kind: str, name: str, content: str) -> None:
    path = Path(os.path.normpath(root / name.lstrip("/")))
    if root not in path.parents:
        path = root / name.replace("/", "_")
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        return
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        path.symlink_to(root, target_is_directory=True)
    elif kind == "dangling":
        path.symlink_to(root / "nowhere")
    elif kind == "outside":
        path.symlink_to(root.parent / "loras" / "otter.safetensors")
    else:
        path.write_bytes(mutate.unhex(content))


def _everything(root: Path) -> list[tuple]:
    found = []
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(place, name))
            found.append((place, name, status.st_mode, status.st_size, status.st_mtime_ns))
    return sorted(found)
