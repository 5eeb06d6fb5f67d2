"""What fault trials share: small worlds on disk, children that work and can be killed, and what may not be lost."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results_file import REPO

sys.path.append(str(REPO / "tests"))  # the tests' small worlds are used here too

from autolora_core.encode.encoder_files import load_encoder_file  # noqa: E402
from autolora_core.encode.towers import LexicalTower  # noqa: E402
from autolora_core.library import scan  # noqa: E402
from autolora_core.library.entries import UNHASHED  # noqa: E402
from autolora_core.library.index import Library  # noqa: E402

WORDS = (
    "otter fox ink neon castle rocket guitar cactus crown harbour violin lynx maple lantern heron copper meadow anchor "
    "walrus pepper glacier saffron thistle comet"
).split()
# Table → its key, and what must be equal: all but times, row numbers and the order that work was done in.
TABLES = {
    "contents": (
        "hash",
        "size, family, variant, evidence, kind, partial, rank, halves, layout, keys, problems, reader",
    ),
    "layouts": ("id", "modules"),
    "files": ("root, name", "path, size, mtime_ns, hash, sidecars, text, base_model, problems, missing, shadowed"),
    "features": ("hash, sketch_id", "layout, width, rows, log_norms, skipped, problem"),
    "responses": ("hash, response_id", "spaces, rows, scale, problem"),
    "encoders": ("id", "family, kind, schema_id, tower_id, inputs, info, current"),
    "vectors": ("hash, encoder_id", "schema_id, tower_id, vector"),
    "pairs": ("hash_a, hash_b", "cosine, ratio, common, only_a, only_b"),
}
# Contents known by their headers alone go when the files are read.
UNREAD = repr((UNHASHED,))[:-3]
# Rows that later work of the same run changes or replaces; of these the key alone must stay.
CHANGING = ("files", "encoders")
State = dict[str, dict[str, str]]


class Loss(Exception):
    """Something committed is gone, a result differs, or a fault was met with a crash instead of words."""


@dataclass
class Row:
    """One kind of fault: how often it was tried, and what went wrong."""

    kind: str
    checked: str
    tried: int = 0
    losses: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Count one trial; what it raises is a loss, and the others go on."""
        self.tried += 1
        try:
            yield
        except Exception as error:
            text = str(error) if isinstance(error, Loss) else "".join(traceback.format_exception(error)[-4:])
            self.losses.append(text[:2000])
            print(f"{self.kind}: LOSS {text}", file=sys.stderr, flush=True)

    def to_json(self) -> dict[str, Any]:
        said = {"kind": self.kind, "tried": self.tried, "with_loss": len(self.losses), "checked": self.checked}
        return {**said, **self.more, **({"first_loss": self.losses[0]} if self.losses else {})}


def need(holds: object, what: str) -> None:
    """Raise :class:`Loss` saying ``what`` unless ``holds``."""
    if not holds:
        raise Loss(what)


# -- children ------------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A forked process at work; ``result`` is a file that its value, or error, is written to."""

    pid: int
    result: Path

    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> bool:
        """SIGKILL it; was it still at work?"""
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == -signal.SIGKILL

    def wait(self) -> Any:
        """What the work returned; :class:`Loss` where it raised or crashed."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code == 0:
            said = json.loads(self.result.read_text(encoding="utf-8"))
            self.result.unlink()
            return said
        told = self.result.read_text(encoding="utf-8") if self.result.exists() else "without a word"
        raise Loss(f"a process ended with {code}: {told}")


def start(work: Callable[[], Any], scratch: Path) -> Child:
    """Fork a child that does ``work``, and return once it has begun. ``scratch`` exists."""
    result = scratch / f"result-{time.monotonic_ns()}.json"
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            logging.disable(logging.CRITICAL)
            os.write(writing, b".")
            said = json.dumps(work())
            result.write_text(said, encoding="utf-8")
            code = 0
        except BaseException:
            result.write_text(traceback.format_exc()[-3000:], encoding="utf-8")
        finally:
            os._exit(code)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    return Child(pid, result)


def apart(work: Callable[[], Any], scratch: Path) -> Any:
    """``work()`` in a child of its own, so that nothing it remembers is shared with other trials."""
    return start(work, scratch).wait()


# -- what is in a library ------------------------------------------------------------------------------------------


def state_of(db: sqlite3.Connection) -> State:
    """Table → key → digest of what must be equal."""
    out: State = {}
    for table, (key, values) in TABLES.items():
        count, rows = key.count(",") + 1, db.execute(f"SELECT {key}, {values} FROM {table}").fetchall()
        out[table] = {
            repr(row[:count]): hashlib.sha1(repr(row[count:]).encode(), usedforsecurity=False).hexdigest()[:16]
            for row in rows
        }
    return out


def keep_journal(path: Path) -> None:
    """From now on every commit of this process to a library is written down, once it has returned."""
    connect, out = sqlite3.connect, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    class Watched(sqlite3.Connection):
        def execute(self, statement, *values):
            done = super().execute(statement, *values)
            if statement == "COMMIT" and self.is_library:
                os.write(out, json.dumps(state_of(self)).encode() + b"\n")
            return done

        is_library = False

    def connected(database, *more, **options):
        made = connect(database, *more, **{"factory": Watched, **options})
        made.is_library = str(database).endswith("library.sqlite")
        return made

    sqlite3.connect = connected


def note(path: Path, what: Any) -> None:
    """Add a line to a journal."""
    with path.open("ab") as out:
        out.write(json.dumps(what).encode() + b"\n")


def journal(path: Path) -> list[Any]:
    """The lines that were written whole."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def committed(path: Path) -> State:
    """What a journal says was in the library after the last commit that returned."""
    states = [said for said in journal(path) if isinstance(said, dict) and "files" in said]
    return states[-1] if states else {}


def check_kept(before: State, after: State, may_go: Mapping[str, set[str]] | None = None) -> None:
    """Every row of ``before`` is in ``after``, as it was; ``may_go``: keys of rows that the work itself removes."""
    for table, rows in before.items():
        for key, digest in rows.items():
            if key in (may_go or {}).get(table, ()) or key.startswith(UNREAD):
                continue
            need(key in after[table], f"a committed row of {table} is gone: {key}")
            need(table in CHANGING or after[table][key] == digest, f"a committed row of {table} changed: {key}")


def check_equal(found: State, wanted: State) -> None:
    """The content of a library is that of an undisturbed run."""
    for table in TABLES:
        a, b = found[table], wanted[table]
        odd = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        need(not odd, f"{len(odd)} rows of {table} are not those of an undisturbed run, such as {odd[:1]}")


def check_whole(folder: Path) -> None:
    """Nothing half written lies in a library's folder under a final name."""
    for path in folder.glob("encoder-*.safetensors"):
        found = load_encoder_file(path)
        need(path.name == f"encoder-{found.id}.safetensors", f"{path.name} holds another encoder")
    with Library.open(folder) as library:
        need(library.store.db.execute("PRAGMA integrity_check").fetchone() == ("ok",), "the database is damaged")


# -- worlds --------------------------------------------------------------------------------------------------------


def make_loras(folder: Path, count: int = len(WORDS), seed: int = 0) -> Path:
    """``count`` LoRAs of the demo base whose names are words, 100 kB each."""
    from conftest import emoji_factors, write_lora

    for number in range(count):
        name = f"{WORDS[number % len(WORDS)]}{'' if number < len(WORDS) else number}"
        write_lora(folder / f"{name}.safetensors", emoji_factors(seed + number, blocks=1))
    return folder


def change_loras(folder: Path) -> dict[str, set[str]]:
    """New, changed, renamed and deleted files; returns the rows that a scan then removes."""
    from conftest import emoji_factors, write_lora

    names = [path.name for path in sorted(folder.iterdir())]
    gone = {names[0], names[1]}
    for name in sorted(gone):
        os.rename(folder / name, folder / f"renamed {name}")
    (folder / names[2]).unlink()
    for number, name in enumerate((names[3], names[4], "new sparrow.safetensors", "new tulip.safetensors")):
        write_lora(folder / name, emoji_factors(900 + number, blocks=1))
    return {"files": {repr((os.fsencode(str(folder)), os.fsencode(name))) for name in gone}}


def encode(
    folder: Path, loras: Path, tell: Callable[[str], None] = lambda phase: None, headers_first: bool = False,
    **options: Any,
) -> State:  # fmt: skip
    """What Encode LoRA Library does; the library's content at the end. ``tell`` hears of each phase."""
    scan.COMMIT_FILES = 4
    with Library.open(folder) as library:
        if headers_first:
            tell("reading headers")
            library.scan({"loras": loras}, headers_only=True)
        tell("reading files")
        library.scan({"loras": loras}, **options)
        tell("fitting")
        library.fit(LexicalTower())
        tell("caches and duplicates")
        for family in sorted({entry.family for entry in library.entries()} - {"unknown"}):
            encoder = library.encoder(family)
            if encoder is not None:
                library.vectors(family, encoder.id)
            library.compare_duplicates(family)
            library.grid(family)
        return state_of(library.store.db)


def fresh_folder(path: Path, like: Path | None = None) -> Path:
    """An empty folder, or a copy of ``like``."""
    shutil.rmtree(path, ignore_errors=True)
    if like is not None:
        shutil.copytree(like, path)
    else:
        path.mkdir(parents=True)
    return path
