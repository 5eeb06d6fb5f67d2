"""kill -9 at random moments of encoding, of training and of saving.

A moment is drawn evenly over the time that an undisturbed run takes, so all phases are met as often as they are long.
The child writes down what was committed once the commit has returned; that must be there afterwards.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autolora_core.library.index import Library

from .faults_world import (
    Row,
    apart,
    change_loras,
    check_equal,
    check_kept,
    check_whole,
    committed,
    encode,
    fresh_folder,
    journal,
    keep_journal,
    make_loras,
    need,
    note,
    start,
    state_of,
)

FEW = 6
MISSES = 6  # as many times too late a trial may be drawn anew, per trial


def usual_seconds(work: Callable[[], Any], again: Callable[[], Any], scratch: Path, count: int) -> float:
    """The median of three undisturbed runs of ``work`` (of one for a few kills), each after ``again()``."""
    took = []
    for _ in range(3 if count > FEW else 1):
        again()
        began = time.monotonic()
        apart(work, scratch)
        took.append(time.monotonic() - began)
    return sorted(took)[len(took) // 2]


def killed(work: Callable[[], Any], seconds: float, rng: random.Random, scratch: Path) -> bool:
    """Start ``work`` and kill it somewhere within ``seconds``; False when it had finished."""
    child = start(work, scratch)
    time.sleep(rng.uniform(0, seconds))
    return child.kill()


def each_kill(row: Row, count: int, one: Callable[[], bool]) -> None:
    """Until ``count`` kills have met their victim at work: ``one()`` says whether it did, and raises on a loss."""
    for _ in range(count * MISSES):
        if row.tried >= count:
            return
        before, met = row.tried, True
        with row.trial():
            met = one()
        if not met:
            row.tried = before
    raise RuntimeError(f"{row.kind}: only {row.tried} of {count} kills came in time")


def phase(path: Path) -> str:
    """What a killed child was at, as far as it said."""
    said = [line for line in journal(path) if isinstance(line, str)]
    return said[-1] if said else "opening"


def kill_encode(count: int, rng: random.Random, base: Path) -> Row:
    """On an empty library, on one whose files are known by their headers first, and on one whose files have changed."""
    row = Row("kills_encode", "opens, integrity_check, every committed row is there, the next run ends as an "
              "undisturbed one, no half-written file under a final name")  # fmt: skip
    phases: Counter[str] = Counter()
    for name, share in (("first", count // 3), ("headers first", count // 3), ("again", count - 2 * (count // 3))):
        loras, old, may_go = make_loras(base / f"loras {name}"), None, {}
        if name == "again":
            old = base / "old library"
            apart(lambda loras=loras, old=old: encode(old, loras), base)
            may_go = change_loras(loras)
        folder, log = base / f"library {name}", base / "journal"

        def again(folder: Path = folder, old: Path | None = old, log: Path = log) -> None:
            log.unlink(missing_ok=True)
            fresh_folder(folder, old)

        def work(folder: Path = folder, loras: Path = loras, log: Path = log, name: str = name) -> Any:
            keep_journal(log)
            return encode(folder, loras, lambda phase: note(log, phase), name == "headers first")

        seconds = usual_seconds(work, again, base, count)
        wanted = committed(log)
        again()
        check_equal(apart(lambda folder=folder, loras=loras: encode(folder, loras), base), wanted)

        def one(folder: Path = folder, loras: Path = loras, log: Path = log, may_go=may_go, again=again, work=work,
                seconds=seconds, wanted=wanted) -> bool:  # fmt: skip
            again()
            if not killed(work, 1.02 * seconds, rng, base):
                return False
            phases[phase(log)] += 1
            kept, ended = apart(lambda: look_and_finish(folder, loras), base)
            check_kept(committed(log), kept, may_go)
            check_equal(ended, wanted)
            return True

        part = Row(row.kind, row.checked)
        each_kill(part, share, one)
        row.tried, row.losses = row.tried + part.tried, row.losses + part.losses
    row.more = {"phases": dict(phases), "seconds_undisturbed": round(seconds, 3)}
    return row


def look_and_finish(folder: Path, loras: Path) -> tuple[Any, Any]:
    """What a killed run left, and what the next one makes of it."""
    if folder.is_dir():
        check_whole(folder)
    with Library.open(folder) as library:
        kept = state_of(library.store.db)
    return kept, encode(folder, loras)


def kill_train(count: int, rng: random.Random, base: Path) -> Row:
    """Two thirds train encoders (ridge, and the set transformer with its checkpoints), the others a gate."""
    from .faults_victims import GateTraining, LibraryTraining

    row = Row("kills_train", "opens, figures and encoder of the resumed training are those of an undisturbed one (all "
              "but the time it names), nothing half written; a gate's state and file to the byte")  # fmt: skip
    share = count // 3
    phases: Counter[str] = Counter()
    for make, trials in ((lambda: LibraryTraining(base, 0), share), (lambda: LibraryTraining(base, 2), share),
                         (lambda: GateTraining(base), count - 2 * share)):  # fmt: skip
        _kill_victim(row, make(), trials, rng, base, phases)
    row.more |= {"phases": dict(phases)}
    return row


def kill_save(count: int, rng: random.Random, base: Path) -> Row:
    """Files written over and over: merged LoRAs, gates, encoders, routers."""
    from .faults_victims import Saving

    row = Row("kills_save", "every file is whole and of the version last reported or the one being written; the next "
              "run ends as an undisturbed one")  # fmt: skip
    phases: Counter[str] = Counter()
    _kill_victim(row, Saving(base), count, rng, base, phases)
    row.more |= {"phases": dict(phases)}
    return row


def _kill_victim(row: Row, victim: Any, count: int, rng: random.Random, base: Path, phases: Counter[str]) -> None:
    """A victim has ``again()``, ``work()``, ``check()`` after a kill, and ``result()`` after finishing."""
    seconds = usual_seconds(victim.work, victim.again, base, count)
    wanted = apart(victim.result, base)

    def one() -> bool:
        victim.again()
        if not killed(victim.work, 1.02 * seconds, rng, base):
            return False
        phases[phase(victim.log)] += 1
        apart(victim.check, base)
        apart(victim.work, base)
        found = apart(victim.result, base)
        odd = [key for key in wanted if found.get(key) != wanted[key]]
        need(found.keys() == wanted.keys() and not odd, f"after a resumed run these differ: {odd or list(found)}")
        return True

    part = Row(row.kind, row.checked)
    each_kill(part, count, one)
    row.tried, row.losses = row.tried + part.tried, row.losses + part.losses
    row.more[f"seconds_{victim.name}"] = round(seconds, 3)
