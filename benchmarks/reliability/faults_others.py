"""Two ComfyUI processes on one index, clocks that go wrong, and files of versions to come."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from autolora_core.encode.towers import LexicalTower
from autolora_core.errors import AutoLoRAError, GateError, LibraryError, LibraryVersionError, SelectionError
from autolora_core.fusion.files import read_gate
from autolora_core.library import locks
from autolora_core.library.encoders import find_encoders
from autolora_core.library.index import Library
from autolora_core.retrieve.selection import Selection

from .faults_world import (
    Row,
    apart,
    check_equal,
    check_whole,
    encode,
    fresh_folder,
    make_loras,
    need,
    start,
)


def two_processes(rounds: int, seconds: float, rng: random.Random, base: Path) -> Row:
    """Two writers and two readers at once for ``seconds``; one writer is killed half-way, another takes its place.

    A third reader looks at a copy that nobody writes: how long readers take for want of a processor alone.
    """
    row = Row("two_processes", "writers take turns, readers always find all files and never fail or wait, a killed "
              "writer's lock is free, it ends as an undisturbed run")  # fmt: skip
    loras, folder = make_loras(base / "shared loras"), fresh_folder(base / "shared")
    wanted = apart(lambda: encode(folder, loras), base)
    count, waits, beside = len(wanted["files"]), [], []
    copy = fresh_folder(base / "copy", folder)
    for _ in range(rounds):
        with row.trial():
            end = time.monotonic() + seconds
            writers = [start(partial(_write_until, end, folder, loras, n), base) for n in range(2)]
            readers = [start(partial(_read_until, end, place, count), base) for place in (folder, folder, copy)]
            time.sleep(seconds * rng.uniform(0.3, 0.6))
            writers[0].kill()
            writers[0] = start(partial(_write_until, end, folder, loras, 2), base)
            for child, took in zip(readers, (waits, waits, beside), strict=True):
                took += child.wait()
            turns = [child.wait() for child in writers]
            need(all(turns), f"a writer never had its turn: {turns}")
            apart(lambda: check_whole(folder), base)
            check_equal(apart(lambda: encode(folder, loras), base), wanted)
    for number in range(5 * rounds):
        with row.trial():
            fresh = fresh_folder(base / f"at once {number % 2}")
            openers = [start(lambda fresh=fresh: _open_at_once(fresh), base) for _ in range(3)]
            need(len({child.wait() for child in openers}) == 1, "they made more than one library")
    for number in (errno.ENOLCK, errno.EOPNOTSUPP):
        with row.trial():
            apart(lambda number=number: _no_locks(folder, loras, number), base)
    row.more = {"reads": len(waits), "reads_unwritten": len(beside)}
    for name, share in (("median", 0.5), ("p99", 0.99), ("longest", 1.0)):
        row.more |= {f"{name}_read_ms": _ms(waits, share), f"{name}_unwritten_ms": _ms(beside, share)}
    return row


def _ms(seconds: list[float], share: float) -> float:
    """A quantile, in milliseconds."""
    return round(1000 * sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))], 1) if seconds else 0.0


def _read_until(end: float, folder: Path, count: int) -> list[float]:
    """How long each look at the library took but the first: opening it, its files, encoder and vectors."""
    took: list[float] = []
    while time.monotonic() < end or len(took) < 2:
        began = time.perf_counter()
        with Library.open(folder) as library:
            entries, encoder = library.entries(), library.encoder("emoji")
            need(len(entries) == count, f"a reader found {len(entries)} of {count} files")
            need(len(library.vectors("emoji", encoder.id).hashes) == count, "a reader found not all vectors")
        took.append(time.perf_counter() - began)
        time.sleep(0.005)
    return took[1:]  # the first imports FAISS


def _write_until(end: float, folder: Path, loras: Path, number: int) -> int:
    turns = 0
    while time.monotonic() < end or not turns:
        encode(folder, loras, force=bool((turns + number) % 2))
        turns += 1
    return turns


def _open_at_once(folder: Path) -> int:
    with Library.open(folder / "library") as library:
        return library.generation


def _no_locks(folder: Path, loras: Path, number: int) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    fcntl.flock = refuse
    with Library.open(folder) as library:
        need(library.entries(), "a reader needs no lock")
        try:
            library.scan([loras])
        except LibraryError as error:
            need(locks.LOCK_NAME in str(error) and "What to do" in str(error), f"unclear: {error}")
            return
    raise AssertionError("it was written without a lock")


def clocks(trials: int, rng: random.Random, base: Path) -> Row:
    """A clock that jumps back and forth at every look, and files from the future, the past and before 1970."""
    row = Row("clocks", "the library is that of a run with a clock that goes right; nothing is read twice; a library "
              "made anew with the clock set back shares no number with the old one")  # fmt: skip
    loras = make_loras(base / "odd times", 10)
    for number, path in enumerate(sorted(loras.iterdir())):
        stamp = (time.time() + 10**8, 0.0, -(10**8), 2**33, time.time() - 10**8)[number % 5]
        os.utime(path, (stamp, stamp))
    whole = fresh_folder(base / "right clock")
    wanted = apart(lambda: encode(whole, loras), base)
    for _ in range(trials):
        with row.trial():
            folder, seed = fresh_folder(base / "wrong clock"), rng.random()
            check_equal(apart(lambda folder=folder, seed=seed: _with_wrong_clock(folder, loras, seed), base), wanted)
    with row.trial():
        need(len({apart(lambda: _made_anew(base / "anew"), base) for _ in range(4)}) == 4, "a number came twice")
    return row


def _wrong_clock(seed: float) -> None:
    rng, now = random.Random(seed), time.time()
    time.time = lambda: now + rng.uniform(-(10**8), 10**8)
    time.time_ns = lambda: int(time.time() * 1e9)


def _with_wrong_clock(folder: Path, loras: Path, seed: float) -> Any:
    _wrong_clock(seed)
    state = encode(folder, loras)
    with Library.open(folder) as library:
        report = library.scan({"loras": loras})
        need(report.bytes_read == 0 and report.unchanged == len(state["files"]), "known files were read again")
        generation = library.generation
        library.fit(LexicalTower())
        need(library.generation == generation, "fitting again changed something")
    return encode(folder, loras)


def _made_anew(folder: Path) -> int:
    time.time = lambda: 1e9
    shutil.rmtree(folder, ignore_errors=True)
    with Library.open(folder) as library:
        return library.generation


def newer_versions(base: Path) -> Row:
    """A library, an index, a selection, an encoder and a gate of a version to come."""
    row = Row("newer_versions", "an error that says to update, or the file is passed over; not one byte is changed")
    loras, folder = make_loras(base / "newer loras", 6), fresh_folder(base / "newer")
    apart(lambda: encode(folder, loras), base)
    for mode in ("wal", "delete"):
        with row.trial():
            _raise_version(folder, mode)
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            _refused(LibraryVersionError, lambda: Library.open(folder), "update")
            need({path.name: path.read_bytes() for path in folder.iterdir()} == before, "a byte was changed")
    with row.trial():
        handle = {"format": "autolora-index/9", "folder": str(folder), "roots": {}}
        _refused(LibraryVersionError, lambda: Library.from_handle(handle), "update")
    with row.trial():
        _refused(
            SelectionError, lambda: Selection.from_json({"format": "autolora-selection/9"}), "autolora-selection/9"
        )
    files = fresh_folder(base / "newer files")
    for name, format in (("some-encoder", "autolora-encoder/9"), ("gate", "autolora-gate/9")):
        said = {"format": format, "family": "emoji", "kind": "ridge"}
        save_file({"fc1.weight_out": torch.ones(4)}, files / f"{name}.safetensors", said)
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    with row.trial():
        need(find_encoders([files]) == {}, "an encoder of a format to come was taken")
    with row.trial():
        _refused(GateError, lambda: read_gate(files / "gate.safetensors"), "autolora-gate/9")
    with row.trial():
        need({path.name: path.read_bytes() for path in files.iterdir()} == before, "a byte was changed")
    return row


def _raise_version(folder: Path, mode: str) -> None:
    db = sqlite3.connect(folder / "library.sqlite", isolation_level=None)
    db.execute(f"PRAGMA journal_mode={mode}")
    db.execute("PRAGMA user_version=99")
    db.close()


def _refused(kind: type[AutoLoRAError], work: Any, says: str) -> None:
    try:
        work()
    except kind as error:
        need(says in str(error), f"the error does not say {says}: {error}")
        return
    raise AssertionError("it was taken")
