"""Hostile inputs by the thousand, a seeded share of the benchmark; and proof that its oracle sees what it is for."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from autolora_core.errors import LibraryError
from benchmarks.reliability import fuzz
from benchmarks.reliability.fuzzing import document, lora_seeds, memory, mutate, oracle, runner, targets, worker

QUICK = {
    "header": 700,
    "lora": 250,
    "metadata": 250,
    "gates": 200,
    "selection": 500,
    "texts": 500,
    "names": 300,
    "graph": 300,
    "captions": 300,
    "pictures": 60,
    "handle": 60,
    "library": 15,
    "previews": 60,
    "wires": 250,
    "frames": 300,
}


def frame(*arrays: list, **head) -> bytes:
    """What a reading process might say, with an empty body."""
    said = {"digest": "0", "bytes_read": 0, "cost": [0, 0.0], "content": None, "encoded": None, "words": None}
    text = json.dumps({**said, "arrays": arrays, **head}).encode()
    return struct.pack("<QQ", len(text), 0) + text


UNNAMED = {"features_problem": None, "response_problem": None, "modules": [], "skipped": {}}
# Inputs that failed once, by target: what was mended stays so.
ONCE = {
    "header": [b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b'{"a":[' + b"[]," * 700_000 + b"[]]}"],
    "selection": [
        mutate.dumped(
            {
                "selection": {
                    "format": "autolora-selection/1",
                    "prompt": "",
                    "family": "",
                    "picks": [{"name": "a", "role": "style", "strength": 10**400, "path": {}}],
                }
            }
        )
    ],
    "texts": [
        b"blocks x.0-99999999.y: 0.5",
        b"blocks x.0-999999.y: 0.5",
        b"blocks " + b"9" * 5000 + b"-" + b"9" * 5000 + b".x: 1",
    ],
    "graph": [
        mutate.dumped(
            {
                "12": {"inputs": {"images": ["5", 0]}},
                "5": {"inputs": {"model": ["x", 0], "positive": ["x", 0], "seed": 10**400}},
                "x": "text",
            }
        )
    ],
    "frames": [
        frame(["f4, (", [1]]),
        frame(["<f4", [1 << 70]]),
        frame(["<f4", [0]], ["<f4", [0]], encoded=UNNAMED),
        frame(["<f4", [-1]]),
    ],
    "pictures": [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_nothing_goes_wrong(name):
    row = runner.run_target(name, QUICK[name], seed=int(os.environ.get("AUTOLORA_FUZZ_SEED", "7")))
    assert row["failures"] == 0, row["kinds"]
    assert row["cases"] == QUICK[name] and row["accepted"], "nothing was accepted: the valid inputs are not read"


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, inputs in ONCE.items() for data in inputs])
def test_what_failed_once_is_refused_or_read(tmp_path, name, data):
    if name == "header":
        data = len(data).to_bytes(8, "little") + data + b"\0" * 8
    target = targets.load(name)
    target.seeds(tmp_path)
    outcome, what, where = oracle.judge(lambda: target.run(data, tmp_path))
    assert outcome != "failed", (what, where)


def test_targets_are_complete_and_a_full_run_is_a_hundred_thousand():
    modules = [targets.load(name) for name in targets.NAMES]
    assert sum(module.CASES for module in modules) >= 100_000
    assert all(callable(getattr(module, name)) for module in modules for name in ("bound", "seeds", "make", "run"))
    there = {path.stem for path in Path(targets.__file__).parent.glob("*.py")} - {"__init__"}
    assert there == set(targets.NAMES)
    assert all(fuzz._cases(name, True) < fuzz._cases(name, False) for name in targets.NAMES)


def made_up(run) -> ModuleType:
    """A target that does what ``run(data, folder)`` does with inputs that begin with X; the valid ones begin with v."""
    module = ModuleType("made_up")
    module.bound = lambda size: memory.MIB
    module.seeds = lambda folder: [b"valid"]
    module.make = lambda rng, parent: b"X" if rng.random() < 0.5 else b"v"
    module.run = lambda data, folder: run(data, folder) if data[:1] == b"X" else None
    return module


def refused(data, folder):
    raise LibraryError("no", key="x")


def nameless(data, folder):
    raise LibraryError("no")


def broken(data, folder):
    raise KeyError("x")


def wrong(data, folder):
    raise oracle.Wrong("taken for what it is not")


def hanging(data, folder):
    start = time.process_time()
    while time.process_time() - start < 3:
        pass


def greedy(data, folder):
    memory.take(64 * memory.MIB)


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (refused, None),
        (nameless, "names nothing"),
        (broken, "KeyError"),
        (wrong, "Wrong"),
        (hanging, "Hang"),
        (greedy, "memory"),
    ],
)
def test_the_oracle_tells(tmp_path, run, kind, monkeypatch):
    monkeypatch.setattr(worker, "WARM", 0)
    fuzzer = worker.Fuzzer(made_up(run), tmp_path, 1, None)
    fuzzer.warm()
    for _ in range(4):
        fuzzer.found.cases += fuzzer.found.cases % worker.TRACED == 0  # none of these few is traced
        fuzzer.try_one(b"X")
        fuzzer.try_one(b"v")
        if kind == "Hang":
            break
    found = fuzzer.found
    if kind is None:
        assert not found.failures and found.outcomes["refused"]
    elif kind == "memory" and not fuzzer.peak.known:
        pytest.skip("this system does not tell how much memory was used")
    else:
        assert found.failures and all(one.startswith(kind) for one in found.failures), found.failures


DEEDS = {
    "reads a file elsewhere": "open('/etc/hostname').read()",
    "writes a file elsewhere": "open('/tmp/autolora-escape', 'w').close()",
    "makes a folder elsewhere": "os.mkdir('/tmp/autolora-escape')",
    "lists a folder": "os.listdir('/root')",
    "opens a database elsewhere": "__import__('sqlite3').connect('/tmp/autolora-escape.sqlite')",
    "connects": "__import__('socket').create_connection(('127.0.0.1', 9), 0.1)",
    "starts a program": "__import__('subprocess').run(['true'])",
    "loads a pickle": "__import__('pickle').loads(b'cos\\ngetcwd\\n.')",
}


@pytest.mark.parametrize("deed", DEEDS)
def test_the_watch_tells(tmp_path, deed):
    """In a process of its own, as a hook can never be taken away."""
    (tmp_path / "sandbox").mkdir()
    code = (
        "import os, sys, socket, sqlite3, subprocess, pickle\nfrom pathlib import Path\n"
        "from benchmarks.reliability.fuzzing.oracle import Watch, judge\n"
        f"watch = Watch(Path({str(tmp_path / 'sandbox')!r}))\n"
        f"judged = judge(lambda: open({str(tmp_path / 'sandbox' / 'x')!r}, 'w').close(), watch)\n"
        f"print(judged[0], judge(lambda: {DEEDS[deed]}, watch)[:2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=oracle.REPO, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.replace('"', "'").startswith("accepted ('failed', 'outside: "), done.stdout


def test_a_process_that_dies_is_counted_and_its_input_saved(tmp_path, monkeypatch):
    code = "import json, os, sys, pathlib; job = json.loads(sys.argv[1]); f = pathlib.Path(job['folder'])\n"
    code += "data = b'deadly'; head = (2).to_bytes(8, 'little') + len(data).to_bytes(8, 'little')\n"
    code += "(f / 'current').write_bytes(head + data)\n"
    code += "os.kill(os.getpid(), 11)"
    script = tmp_path / "dying.py"
    script.write_text(code)
    popen = runner.subprocess.Popen
    monkeypatch.setattr(
        runner.subprocess, "Popen", lambda command, **how: popen([sys.executable, str(script), command[-1]], **how)
    )
    row = runner.run_target("header", 6, 1, tmp_path / "saved")
    assert (row["cases"], row["deaths"], row["failures"]) == (6, 2, 2)
    assert [path.read_bytes() for path in (tmp_path / "saved" / "header").iterdir()] == [b"deadly"]


def test_lies_are_many_and_some_are_whole():
    """Mutations that the header refuses always would test nothing behind it."""
    drawn, parent = random.Random(0), lora_seeds.files()[0]
    made = [document.lie(drawn, parent, lora_seeds.KEYS, tuple(lora_seeds.METADATA)) for _ in range(200)]
    whole = [document.Document.read(data) is not None for data in made]
    assert len(set(made)) > 180 and 60 < sum(whole) < 200
