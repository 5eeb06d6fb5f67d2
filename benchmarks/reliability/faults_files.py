"""Files that change while they are read, and a library whose last writes were torn by a loss of power."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autolora_core import portable
from autolora_core.encode.encoder_files import load_encoder_file
from autolora_core.errors import AutoLoRAError
from autolora_core.fusion.files import read_gate
from autolora_core.library.index import Library
from autolora_core.library.store import Batch, Store
from autolora_core.lora.file import LoraFile

from .faults_victims import Saving
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
    start,
    state_of,
)

BY_CONTENT = ("contents", "features", "responses")


def changing_files(trials: int, rng: random.Random, base: Path) -> Row:
    """Another process moves other files there, writes over them, cuts them off and lengthens them during a scan."""
    row = Row("file_changes", "every content in the library is one that there was, with its own sketches; once it is "
              "quiet, the next run ends as an undisturbed one")  # fmt: skip
    loras = make_loras(base / "changing", 8)
    others = make_loras(base / "others", 8, seed=500)
    known = fresh_folder(base / "known")
    wanted = apart(lambda: encode(known, loras), base)
    both = apart(lambda: _all_contents(base / "both", loras, others), base)
    folder = base / "changing library"
    for _ in range(trials):
        with row.trial():
            fresh_folder(folder)
            seed = rng.random()
            scanning = start(lambda: encode(folder, loras), base)
            changing = start(lambda seed=seed: _change_for(1.0, seed, loras, others, base / "before"), base)
            try:
                scanning.wait()
            finally:
                changing.wait()
            found = apart(lambda: _state(folder), base)
            for table in BY_CONTENT:
                # A file that was found cut off has a content too, one that cannot be encoded.
                odd = [key for key, digest in found[table].items()
                       if both[table].get(key, digest if table == "contents" else "") != digest]  # fmt: skip
                need(not odd, f"{table} holds what belongs to no version of any file: {odd}")
            ended = apart(lambda: encode(folder, loras), base)
            # What was seen meanwhile stays beside it: it may come back.
            check_equal({table: {key: digest for key, digest in rows.items() if key in wanted[table]}
                         for table, rows in ended.items()}, wanted)  # fmt: skip
            need(ended["files"] == wanted["files"], "the files are not those that are there")
    return row


def _all_contents(folder: Path, loras: Path, others: Path) -> Any:
    with Library.open(folder) as library:
        library.scan({"a": loras, "b": others})
        return state_of(library.store.db)


def _state(folder: Path) -> Any:
    check_whole(folder)
    with Library.open(folder) as library:
        return state_of(library.store.db)


def _change_for(seconds: float, seed: float, loras: Path, others: Path, keep: Path) -> None:
    """Change files at random for so long, then put back what was there, times included."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    shutil.rmtree(keep, ignore_errors=True)
    shutil.copytree(loras, keep)
    names = sorted(path.name for path in loras.iterdir())
    while time.monotonic() < end:
        number = rng.randrange(len(names))
        path, other = loras / names[number], others / names[number]
        how = rng.randrange(4)
        if how == 0:
            shutil.copy(other, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
        elif how == 1:
            path.write_bytes(other.read_bytes())
        elif how == 2:
            os.truncate(path, rng.randrange(1, max(2, path.stat().st_size)))
        else:
            with path.open("ab") as out:
                out.write(b"more")
        time.sleep(rng.uniform(0, 0.02))
    for name in names:
        shutil.copy2(keep / name, loras / name)


def maps(base: Path, seconds: float) -> Row:
    """Files that are cut off and written again all the time, while every reader of ours reads them."""
    row = Row("cut_while_read", "no reader crashes (a mapped file would end the process): a whole file, or an error")
    saving = Saving(base)
    saving.again()
    apart(saving.work, base)
    readers: dict[str, Callable[[Path], Any]] = {
        "gate.safetensors": read_gate,
        "encoder.safetensors": load_encoder_file,
        "merged.safetensors": portable.load_whole,
        "lora.safetensors": _read_lora,
    }
    loras, library = make_loras(base / "cut loras", 9), fresh_folder(base / "cut library")
    apart(lambda: encode(library, loras), base)
    shutil.copy(next(loras.iterdir()), saving.folder / "lora.safetensors")
    shutil.copy(next(library.glob("encoder-*.safetensors")), saving.folder / "encoder.safetensors")
    for name, read in readers.items():
        path = saving.folder / name
        data = path.read_bytes()
        with row.trial():
            reading = start(lambda path=path, read=read: _read_for(seconds, path, read), base)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                os.truncate(path, len(data) // 3)
                path.write_bytes(data)
                time.sleep(0.004)
            row.more[name] = reading.wait()
    return row


def _read_for(seconds: float, path: Path, read: Callable[[Path], Any]) -> str:
    well, errors, end = 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            read(path)
            well += 1
        except AutoLoRAError:
            errors += 1
        except Exception as error:  # what callers catch of a file that is cut off
            need(type(error).__name__ == "SafetensorError", f"an error of another kind: {error!r}")
            errors += 1
    return f"{well} whole, {errors} errors"


def _read_lora(path: Path) -> None:
    lora = LoraFile.open(path)
    lora.check_values()
    list(lora.updates())


def torn_writes(trials: int, rng: random.Random, base: Path) -> Row:
    """What a loss of power may leave of SQLite's log of changes: cut off anywhere, or with rubbish in its end."""
    row = Row("torn_writes", "opens, integrity_check, at most what was behind the tear is gone, the next run ends as "
              "an undisturbed one")  # fmt: skip
    loras, folder, log = make_loras(base / "torn loras"), base / "torn", base / "torn journal"
    fresh_folder(folder)
    wanted = apart(lambda: encode(folder, loras), base)
    for number in range(trials):
        fresh_folder(folder)
        log.unlink(missing_ok=True)

        def work() -> None:
            keep_journal(log)
            encode(folder, loras)

        writing = start(work, base)
        wal = folder / "library.sqlite-wal"
        while not writing.ended() and not (wal.exists() and wal.stat().st_size > 200_000):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        writing.kill()
        with row.trial():
            size = wal.stat().st_size if wal.exists() else 0
            at = rng.randrange(size) if size else 0
            if size:
                _tear(wal, at, number % 3)
            (folder / "library.sqlite-shm").unlink(missing_ok=True)
            found = apart(lambda: _state(folder), base)
            for table in BY_CONTENT:
                odd = [key for key, digest in found[table].items() if wanted[table].get(key) != digest]
                need(not odd, f"{table} holds rows that nobody wrote: {odd}")
            if size and at > 0.999 * size:
                check_kept(committed(log), found)
            check_equal(apart(lambda: encode(folder, loras), base), wanted)
    row.more = {"commit_ms_full": _commit_ms(base, "FULL"), "commit_ms_normal": _commit_ms(base, "NORMAL")}
    return row


def _tear(path: Path, at: int, how: int) -> None:
    if how == 0:
        os.truncate(path, at)
        return
    data = bytearray(path.read_bytes())
    end = min(len(data), at + 4096)
    data[at:end] = os.urandom(end - at) if how == 1 else bytes(end - at)
    path.write_bytes(data)


def _commit_ms(base: Path, level: str, rounds: int = 60) -> float:
    """Milliseconds of one commit of sixteen LoRAs' rows (40 kB each), the median."""
    folder = fresh_folder(base / f"commits {level}")
    took, blob = [], os.urandom(40_000)
    with Store(folder) as store:
        store.db.execute(f"PRAGMA synchronous={level}")
        for number in range(rounds):
            batch = Batch(store, 1000, 1000)
            batch.begin()
            for place in range(16):
                row = (f"{number}-{place}", "id", "layout", 1, blob, b"", "{}", None, "")
                store.db.execute("INSERT INTO features VALUES (?,?,?,?,?,?,?,?,?)", row)
                batch.changed()
            began = time.perf_counter()
            batch.commit()
            took.append(time.perf_counter() - began)
    return round(1000 * sorted(took)[len(took) // 2], 3)


def flushed_in_order(base: Path) -> Row:
    """Every file of ours that replaces another: its bytes are flushed before it gets its name, its folder after."""
    row = Row("flush_order", "data flushed, then named, then the folder flushed; SQLite at synchronous=FULL: a commit "
              "is on the disk when it returns")  # fmt: skip
    saving = Saving(base)
    for name, write in saving.writers.items():
        with row.trial():
            saving.again()
            apart(lambda name=name, write=write: _flushes(saving.folder / name, write), base)
    with row.trial(), Store(base / "flushed") as store:
        need(store.db.execute("PRAGMA synchronous").fetchone() == (2,), "commits may be lost with the power")
        need(store.db.execute("PRAGMA journal_mode").fetchone() == ("wal",), "there is no log of changes")
    return row


def _flushes(path: Path, write: Callable[[Path, int], None]) -> None:
    did: list[str] = []
    sync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        at = os.readlink(f"/proc/self/fd/{descriptor}")
        did.append("folder" if os.path.isdir(at) else "data")
        sync(descriptor)

    os.fsync, os.replace = synced, lambda a, b: (did.append("named"), rename(a, b))[1]
    write(path, 0)
    need(did[-3:] == ["data", "named", "folder"] and set(did[:-3]) <= {"named"}, f"{path.name}: {did}")
