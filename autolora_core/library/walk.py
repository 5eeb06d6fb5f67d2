"""Which files lie in the LoRA folders: one pass over the directories, reading no file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from .. import portable
from ..errors import LibraryError
from ..portable import openable
from .metadata import STEM_ENDINGS, WHOLE_ENDINGS
from .names import compile_filter

LORA_SUFFIXES = (".safetensors", ".sft")
# Formats that run code when opened. They get a row that says so, and are never opened.
PICKLE_SUFFIXES = (".pt", ".pt2", ".pth", ".ckpt", ".bin", ".pkl")
_SUFFIXES = frozenset(LORA_SUFFIXES + PICKLE_SUFFIXES)
_by_name = attrgetter("name")
_quoted = json.encoder.encode_basestring_ascii
_SKIPPED_FOLDERS = (".git",)  # what ComfyUI leaves out of its own file lists


@dataclass(frozen=True, slots=True)
class Found:
    """One candidate file. ``name`` is relative to ``root``; ``problem`` says why it cannot be read, else None.

    ``sidecars`` maps the names of describing files beside it to ``[size, mtime_ns]``. ``device``: the system's number
    of the volume it lies on, 0 where it has none; parts of one disk have numbers of their own.
    """

    root: str
    name: str
    path: str
    size: int
    mtime_ns: int
    sidecars: Mapping[str, list[int]]
    problem: str | None = None
    device: int = 0

    @property
    def drive(self) -> int | str:
        """What the files of one drive have in common."""
        return self.device or self.root

    @property
    def signature(self) -> str:
        """Changes when a sidecar is added, changed or removed: JSON, its keys sorted."""
        parts = [f"{_quoted(name)}: [{size}, {time}]" for name, (size, time) in sorted(self.sidecars.items())]
        return "{" + ", ".join(parts) + "}"

    def steady(self, before: os.stat_result, after: os.stat_result) -> bool:
        """Whether nobody wrote the file since it was found, by what it said of itself before and after it was read.

        Windows lists sizes and times from a copy in the folder, which may lag behind the file's own.
        """
        found = (before.st_size, before.st_mtime_ns) if portable.WINDOWS else (self.size, self.mtime_ns)
        return (after.st_size, after.st_mtime_ns) == found


@dataclass(frozen=True)
class Scope:
    """Which part of the roots is meant: files below ``under`` (relative to a root; "" is all) whose name passes the
    filter ``names`` (see :func:`.names.compile_filter`), in ``roots`` (label → folder, first one wins a name)."""

    roots: Mapping[str, str]
    under: str = ""
    names: str = ""

    def predicate(self) -> Callable[[str], bool]:
        """Name relative to its root → inside this scope?"""
        passes, under = compile_filter(self.names), self.under.replace("\\", "/").strip("/")
        prefix = f"{under}/" if under else ""
        if not prefix and not self.names.strip():
            return lambda name: True
        return lambda name: name.replace("\\", "/").startswith(prefix) and passes(name)

    def to_json(self) -> dict:
        return {"roots": dict(self.roots), "under": self.under, "names": self.names}

    @classmethod
    def of(cls, roots: Mapping[str, str | os.PathLike] | Sequence[str | os.PathLike], under="", names="") -> Scope:
        """``roots`` as a mapping label → folder, or as a list of folders that are their own labels."""
        if isinstance(roots, (str, bytes, os.PathLike)):
            raise LibraryError("roots must be a list or a mapping of folders, not one path", key=str(roots))
        pairs = roots.items() if isinstance(roots, Mapping) else ((os.fspath(root), root) for root in roots)
        return cls({str(label): os.path.abspath(os.fspath(folder)) for label, folder in pairs}, under, names)


def walk(root: str, wanted: Callable[[str], bool], trouble: Callable[[str, str], None]) -> Iterator[Found]:
    """Every candidate below ``root`` whose relative name is ``wanted``, sorted by folder and name.

    Symbolic links are followed, as ComfyUI does, but never into a folder that is being walked already.
    ``trouble(path, reason)`` hears of folders that cannot be listed.
    """
    stack: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(root, "", ())]
    while stack:
        folder, relative, parents = stack.pop()
        try:
            status = os.stat(openable(folder))
            with os.scandir(openable(folder)) as listed:
                entries = sorted(listed, key=_by_name)
        except OSError as error:
            trouble(folder, f"the folder cannot be listed: {error.strerror or error}")
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in parents and identity != (0, 0):
            trouble(folder, "this link leads back to a folder above it; not followed")
            continue
        files, folders = _split(entries)
        yield from _candidates(root, folder, relative, files, wanted, status.st_dev)
        for entry in reversed(folders):
            stack.append((os.path.join(folder, entry.name), os.path.join(relative, entry.name), (*parents, identity)))


def _split(entries: list[os.DirEntry]) -> tuple[dict[str, os.DirEntry], list[os.DirEntry]]:
    files, folders = {}, []
    for entry in entries:
        try:
            is_folder = entry.is_dir()
        except OSError:
            is_folder = False  # the stat below tells what is wrong with it
        if not is_folder:
            files[entry.name] = entry
        elif entry.name not in _SKIPPED_FOLDERS:
            folders.append(entry)
    return files, folders


def _candidates(
    root: str, folder: str, relative: str, files: dict[str, os.DirEntry], wanted, device: int
) -> Iterator[Found]:
    """The LoRA files of one folder. A hundred thousand files pass here at every scan: no call that is not needed."""
    above, place = os.path.join(relative, ""), os.path.join(folder, "")
    for name, entry in files.items():
        stem, dot, suffix = name.rpartition(".")
        suffix = dot + suffix.lower()
        if suffix not in _SUFFIXES or not stem.strip("."):
            continue
        full = above + name
        if not wanted(full):
            continue
        size, mtime_ns, problem, own = _stat(entry)
        if suffix in PICKLE_SUFFIXES:
            problem = "a pickle-based format can run code when opened: it is never opened, convert it to .safetensors"
        beside = {}
        for other in [stem + e for e in STEM_ENDINGS if stem + e in files] + [
            name + e for e in WHOLE_ENDINGS if name + e in files
        ]:
            beside[other] = list(_stat(files[other])[:2])
        yield Found(root, full, place + name, size, mtime_ns, beside, problem, own or device)


def _stat(entry: os.DirEntry) -> tuple[int, int, str | None, int]:
    """Size, time of change, problem, and drive (which Windows does not list)."""
    try:
        status = entry.stat()
    except OSError as error:
        return 0, 0, f"the file cannot be reached: {error.strerror or error}", 0
    if not stat.S_ISREG(status.st_mode):
        return 0, 0, "this is a pipe, socket or device, not a file", 0
    return status.st_size, status.st_mtime_ns, None, status.st_dev


def folder_state(scope: Scope, also: str = "") -> str:
    """Hex digest of names, sizes and times of everything in ``scope``, sidecars included; ``also`` is mixed in.

    Costs one directory walk, reads no file. Equal states mean that a scan would find nothing new.
    """
    digest, wanted = hashlib.sha256(also.encode("utf-8", "surrogateescape")), scope.predicate()
    for label, root in scope.roots.items():
        digest.update(f"\0{label}\0{root}\0{Path(root).is_dir()}".encode("utf-8", "surrogateescape"))
        for found in walk(root, wanted, lambda path, reason: None):
            line = f"\0{found.name}\0{found.size}\0{found.mtime_ns}\0{found.signature}"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
