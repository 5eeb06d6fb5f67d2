"""One process that tries cases of one target; the runner starts it, so that its death is no more than a finding.

``python -m benchmarks.reliability.fuzzing.worker '<job as JSON>'`` writes what it found into ``found.json`` of the
job's folder. What it tries at the moment stands in ``current``: how many were done before, and the input.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import struct
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from . import memory, mutate, targets
from .coverage import Lines
from .oracle import Watch, judge

TRACED = 12  # one case in so many is traced
MOST_KEPT = 400  # inputs that others are made from
SAVED_A_KIND = 3
WARM_SECONDS = 120.0
WARM = 20  # cases before memory is watched: packages are loaded by the first


@dataclass
class Found:
    """What a worker tells. ``failures``: kind → how often, ``examples``: kind → hex of inputs, ``worst`` seconds."""

    cases: int = 0
    outcomes: Counter = field(default_factory=Counter)
    failures: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    kept: int = 0
    lines: int = 0
    cpu_seconds: float = 0.0
    worst_seconds: float = 0.0
    worst_memory: float = 0.0  # share of the bound


class Current:
    """The input that is tried now, for whoever finds the process dead."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def note(self, done: int, data: bytes) -> None:
        os.pwrite(self._file, done.to_bytes(8, "little") + len(data).to_bytes(8, "little") + data, 0)


def read_current(path: Path) -> tuple[int, bytes]:
    """Cases done, and the input of the one that was not."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[8:16], "little")
    return int.from_bytes(raw[:8], "little"), raw[16 : 16 + length]


class Fuzzer:
    """Cases of one target, each from an input that was worth keeping."""

    def __init__(self, target: ModuleType, folder: Path, seed: int, watch: Watch | None):
        self.target, self.folder, self.watch, self.found = target, folder, watch, Found()
        self.rng, self.lines, self.peak = random.Random(seed), Lines(), memory.Peak()
        self.kept = list(target.seeds(folder))
        self._valid, self._signs = len(self.kept), set()

    def warm(self) -> None:
        """The valid inputs: every one must be accepted, or the target tests nothing."""
        for data in self.kept:
            outcome, what, where = judge(lambda data=data: self.target.run(data, self.folder), None, WARM_SECONDS)
            if outcome != "accepted":
                raise AssertionError(f"a valid input is {outcome}: {what} ({where})")

    def case(self) -> bytes:
        parent = self.rng.choice(self.kept if self.rng.random() < 0.7 else self.kept[:8])
        try:
            return self.target.make(self.rng, parent)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error):
            return mutate.bytes_of(self.rng, parent)  # a parent so odd that it cannot be taken apart

    def try_one(self, data: bytes) -> None:
        """Judge one input; a failure is counted by its kind, something new is kept."""
        number, start, traced = self.found.cases, time.process_time(), False
        self.peak.start()

        def run() -> None:
            self.target.run(data, self.folder)

        if number % TRACED == 0:
            new: list[bool] = []
            outcome, what, where = judge(lambda: new.append(self._traced(run)), self.watch)
            traced = bool(new and new[0])
        else:
            outcome, what, where = judge(run, self.watch)
        seconds = time.process_time() - start
        if number >= WARM and number % TRACED:
            share = self.peak.grown() / self.target.bound(len(data))
            self.found.worst_memory = max(self.found.worst_memory, share)
            self.found.worst_seconds = max(self.found.worst_seconds, seconds)
            if share > 2 and outcome != "failed":
                outcome, what = "failed", f"memory: {share:.1f} of the bound for {len(data)} bytes"
        self._count(outcome, what, where, data, traced)

    def _traced(self, run) -> bool:
        return self.lines.traced(run)

    def _count(self, outcome: str, what: str, where: str, data: bytes, traced: bool) -> None:
        self.found.cases += 1
        self.found.outcomes[outcome] += 1
        sign = f"{outcome} {where} {re.sub(r'[^a-z ]+', '', re.sub(chr(39) + '.*?' + chr(39), '', what))[:60]}"
        if outcome == "failed":
            kind = f"{what.partition(':')[0]} at {where}"
            self.found.failures[kind] += 1
            self.found.words.setdefault(kind, what)
            examples = self.found.examples.setdefault(kind, [])
            if len(examples) < SAVED_A_KIND:
                examples.append(data.hex())
        elif (sign not in self._signs or traced) and len(data) < 65_536:
            if len(self.kept) >= MOST_KEPT:
                del self.kept[self.rng.randrange(self._valid, len(self.kept))]
            self.kept.append(data)
        self._signs.add(sign)


def run_job(job: dict, folder: Path) -> Found:
    """Try ``job["cases"]`` cases of ``job["target"]``, beginning at ``job["seed"]``."""
    target = targets.load(job["target"])
    sandbox = folder / "sandbox"
    sandbox.mkdir(exist_ok=True)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    fuzzer = Fuzzer(target, sandbox, job["seed"], None)
    fuzzer.warm()
    fuzzer.watch = Watch(sandbox)
    memory.cap(job.get("gigabytes", 8))
    current = Current(folder / "current")
    for number in range(job["cases"]):
        data = fuzzer.case()
        current.note(number, data)
        fuzzer.try_one(data)
    fuzzer.found.cpu_seconds = time.process_time()
    fuzzer.found.kept, fuzzer.found.lines = len(fuzzer.kept), len(fuzzer.lines.seen)
    return fuzzer.found


def digest(data: bytes) -> str:
    """A short name for an input."""
    return hashlib.sha256(data).hexdigest()[:12]


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    done = run_job(given, Path(given["folder"]))
    (Path(given["folder"]) / "found.json").write_text(json.dumps(vars(done)), encoding="utf-8")
