"""Folders that cannot be written, and drives that go away and come back."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autolora_core.encode.towers import LexicalTower
from autolora_core.library.index import Library

from .faults_disks import run, told
from .faults_victims import LibraryTraining
from .faults_world import Row, apart, check_equal, encode, fresh_folder, make_loras, need, start, state_of


@contextmanager
def read_only(folder: Path) -> Iterator[bool]:
    """``folder`` cannot be written meanwhile; False where that cannot be staged."""
    if os.geteuid():
        mode = folder.stat().st_mode
        folder.chmod(0o555)
        try:
            yield True
        finally:
            folder.chmod(mode)
        return
    if not run("mount", "--bind", str(folder), str(folder)):
        yield False
        return
    try:
        yield run("mount", "-o", "remount,ro,bind", str(folder))
    finally:
        run("umount", "-l", str(folder))


def read_only_folders(epochs: int, base: Path) -> Row:
    """A library, a folder for models, and the LoRAs' own folder that cannot be written."""
    row = Row("read_only", "a library is read, and says why it is not written; LoRA folders need no writing; "
              "a training says where it cannot save, and is not done again afterwards")  # fmt: skip
    loras = make_loras(base / "ro loras")
    folder = fresh_folder(base / "ro library")
    wanted = apart(lambda: encode(folder, loras), base)
    with row.trial(), read_only(folder) as staged:
        if staged:
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            apart(lambda: _read_only_library(folder, loras), base)
            need({path.name: path.read_bytes() for path in folder.iterdir()} == files, "a file was changed")
    with row.trial(), read_only(loras):
        fresh = fresh_folder(base / "ro other")
        check_equal(apart(lambda: encode(fresh, loras), base), wanted)
    victim = LibraryTraining(base, epochs)
    victim.again()
    victim.models.mkdir()
    with row.trial():
        with read_only(victim.models) as staged:
            said = apart(lambda: told(victim.work), base)
            need(not staged or "writable" in said, f"the error does not help: {said}")
        began = time.monotonic()
        apart(victim.work, base)
        row.more = {"seconds_to_save_afterwards": round(time.monotonic() - began, 2), "an_error": said[:300]}
        apart(victim.result, base)
    return row


def _read_only_library(folder: Path, loras: Path) -> None:
    with Library.open(folder) as library:
        encoder = library.encoder("emoji")
        need(len(library.entries()) == len(library.vectors("emoji", encoder.id).hashes), "not all is found")
        library.compare_duplicates("emoji")
        for write in (lambda: library.scan([loras]), lambda: library.fit(LexicalTower())):
            need("What to do" in told(write), "writing went well")


def drive_gone(trials: int, rng: random.Random, base: Path) -> Row:
    """The LoRAs' drive goes away (its folder gone, or its mount point left empty, or in the middle of a scan that reads
    everything again) and comes back."""
    row = Row("drive_gone", "files are missing, their contents, sketches and vectors stay; when the drive is back "
              "nothing is read again and all is as before")  # fmt: skip
    loras, folder = make_loras(base / "drive"), fresh_folder(base / "drive library")
    wanted = apart(lambda: encode(folder, loras), base)
    away = loras.with_name("unplugged")
    for number in range(trials):
        how = ("gone", "empty", "during")[number % 3]
        with row.trial():
            try:
                if how == "during":
                    scanning = start(lambda: encode(folder, loras, force=True), base)
                    time.sleep(rng.uniform(0, 0.6))
                    os.rename(loras, away)
                    scanning.wait()
                else:
                    os.rename(loras, away)
                    if how == "empty":
                        loras.mkdir()
                    report = apart(lambda: _without(folder, loras), base)
                    need(report["missing"] == len(wanted["files"]), f"marked as missing: {report}")
            finally:
                if how == "empty":
                    loras.rmdir()
                os.rename(away, loras)
            apart(lambda how=how: _back(folder, loras, how), base)
            check_equal(apart(lambda: encode(folder, loras), base), wanted)
    return row


def _without(folder: Path, loras: Path) -> dict[str, int]:
    with Library.open(folder) as library:
        kept = state_of(library.store.db)
        report = library.scan({"loras": loras})
        library.fit(LexicalTower())
        now = state_of(library.store.db)
        for table in ("contents", "features", "responses", "vectors"):
            need(now[table] == kept[table], f"{table} changed with the drive away")
        need(not library.entries(), "files that are not there are offered")
        return {"missing": report.missing}


def _back(folder: Path, loras: Path, how: str) -> None:
    with Library.open(folder) as library:
        report = library.scan({"loras": loras})
        need(report.bytes_read == 0, f"{report.bytes_read} bytes were read again after the drive was back ({how})")
        need(report.encoded == 0, f"{report.encoded} files were encoded again")
