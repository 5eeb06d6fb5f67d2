"""Full disks: real ones where root may mount, else files that may not grow."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from autolora_core.encode.towers import LexicalTower
from autolora_core.errors import AutoLoRAError
from autolora_core.fusion.merged.writing import write_merged
from autolora_core.library.index import Library

from .faults_victims import LibraryTraining, digest_of
from .faults_world import (
    Row,
    apart,
    check_equal,
    check_kept,
    check_whole,
    committed,
    encode,
    fresh_folder,
    keep_journal,
    make_loras,
    need,
    state_of,
)


def run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None] | None]:
    """``folder`` as a disk of ``size`` bytes, and how to enlarge it; None where this user may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() or not run("mount", "-t", "tmpfs", "-o", f"size={size}", "autolora-faults", str(folder)):
        yield None
        return
    try:
        yield lambda more: need(run("mount", "-o", f"remount,size={more}", str(folder)), "the disk could not grow")
    finally:
        run("umount", "-l", str(folder))


def limited(size: int | None, work: Callable[[], Any]) -> Callable[[], Any]:
    """``work``, in which no file may grow beyond ``size`` bytes: a full disk for those who may not mount."""

    def within() -> Any:
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return work()

    return within


def told(work: Callable[[], Any]) -> str:
    """Empty when it went well, else the error: one of ours, which names a file and says what to do."""
    try:
        work()
    except AutoLoRAError as error:
        need(error.path and error.fix, f"an error without a file or advice: {error}")
        return str(error)
    return ""


def disk_full(levels: int, epochs: int, base: Path) -> Row:
    """Encode, train and save on disks of several sizes, from hardly anything to just too little."""
    row = Row("disk_full", "one of our errors, which names the file and says what to do, or done without a cache; "
              "what was committed is there; with room again it ends as an undisturbed run")  # fmt: skip
    said: list[str] = []
    loras = make_loras(base / "full loras")
    whole = fresh_folder(base / "whole")
    wanted = apart(lambda: encode(whole, loras), base)
    needed = sum(path.stat().st_size for path in whole.iterdir())
    largest = max(path.stat().st_size for path in whole.iterdir())
    for level in range(levels):
        share = (level + 0.5) / levels
        with row.trial():
            said.append(_full_encode(base, loras, wanted, int(2.2 * needed * share), None))
        with row.trial():
            said.append(_full_encode(base, loras, wanted, 0, int(largest * share)))
    with row.trial():
        _read_when_full(base, whole, wanted, needed)
    for share in (0.1, 0.5, 0.9)[: max(1, levels // 2)]:
        with row.trial():
            said.append(_full_training(base, epochs, share))
        with row.trial():
            said.append(_full_saving(base, share))
    row.more = {"stopped_with_an_error": sum(map(bool, said)), "mounted": not os.geteuid(),
                "an_error": next((text for text in said if text), "")[:400]}  # fmt: skip
    return row


def _full_encode(base: Path, loras: Path, wanted: Any, size: int, limit: int | None) -> str:
    disk, log = base / "disk", base / "full journal"
    log.unlink(missing_ok=True)
    shutil.rmtree(disk, ignore_errors=True)
    with small_disk(disk, max(size, 1 << 16)) if limit is None else small_file(disk) as grow:
        if limit is None and grow is None:
            return ""  # this user may not mount: the limit on files stands for it
        folder = disk / "library"

        def work() -> str:
            keep_journal(log)
            return told(limited(limit, lambda: encode(folder, loras)))

        said = apart(work, base)
        if grow is not None:
            grow(1 << 30)

        def after() -> Any:
            if (folder / "library.sqlite").exists():
                check_whole(folder)
                with Library.open(folder) as library:
                    check_kept(committed(log), state_of(library.store.db))
            return encode(folder, loras)

        check_equal(apart(after, base), wanted)
        return said


@contextmanager
def small_file(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    yield None


def _read_when_full(base: Path, whole: Path, wanted: Any, needed: int) -> None:
    """A finished library on a disk with no byte left is still searched."""
    disk = base / "disk"
    with small_disk(disk, needed + (1 << 20)) as grow:
        if grow is None:
            return
        shutil.copytree(whole, disk / "library")
        with open(disk / "filler", "wb", buffering=0) as out:
            try:
                while True:
                    out.write(b"\0" * 4096)
            except OSError:
                pass

        def read() -> Any:
            with Library.open(disk / "library") as library:
                encoder = library.encoder("emoji")
                need(len(library.entries()) == len(library.vectors("emoji", encoder.id).hashes), "not all is found")
                need(len(library.text_tower(LexicalTower()).encode(["something new"])) == 1, "no new words")
                return state_of(library.store.db)

        check_equal(apart(read, base), wanted)


def _full_training(base: Path, epochs: int, share: float) -> str:
    victim = LibraryTraining(base, epochs)
    victim.again()
    apart(victim.work, base)
    wanted = apart(victim.result, base)
    needed = sum(path.stat().st_size for path in victim.folder.rglob("*") if path.is_file())
    before = sum(path.stat().st_size for path in victim.old.rglob("*") if path.is_file())
    shutil.rmtree(victim.folder)
    with small_disk(victim.folder, int(before + share * (needed - before)) + 65536) as grow:
        victim.log.unlink()
        if grow is None:
            shutil.copytree(victim.old, victim.library)
            said = apart(lambda: told(limited(int(share * 200_000), victim.work)), base)
        else:
            shutil.copytree(victim.old, victim.library)
            said = apart(lambda: told(victim.work), base)
            grow(1 << 30)
        apart(victim.check, base)
        apart(victim.work, base)
        found = apart(victim.result, base)
        need(found == wanted, "after a full disk the training ended otherwise")
    return said


def _full_saving(base: Path, share: float) -> str:
    """A merged LoRA over an older one."""
    disk = base / "disk"
    shutil.rmtree(disk, ignore_errors=True)
    size = 4 << 20

    def save(number: int, rows: int = 256) -> None:
        path = disk / "merged.safetensors"
        write_merged(path, {"a": torch.full((rows, 4096), float(number))}, lambda taken: {}, overwrite=True)

    with small_disk(disk, int((1 + share) * size)) as grow:
        apart(lambda: save(1), base)
        old = digest_of(disk / "merged.safetensors")
        limit = None if grow else int(share * size)
        said = apart(lambda: told(limited(limit, lambda: save(2))), base)
        need(said, "the disk was not full")
        need(digest_of(disk / "merged.safetensors") == old, "what was there before is damaged")
        need(sorted(path.name for path in disk.iterdir()) == ["merged.safetensors"], "a half-written file is left")
        if grow:
            grow(1 << 30)
        apart(lambda: save(2), base)
        need(digest_of(disk / "merged.safetensors") != old, "it was not saved after all")
    return said
