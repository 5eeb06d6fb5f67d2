"""Pointing at a library of ten thousand files: how soon they are found by their words.

The files have the headers of SDXL and FLUX LoRAs of rank 16, with a trainer's words; behind the header they are holes
of the right size, since nothing of the tensors is read. Half of them have a .civitai.info.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from autolora_core.encode.towers import LexicalTower
from autolora_core.library.index import Library
from autolora_core.retrieve.retrieve import retrieve
from benchmarks.scale.encode import scratch, two_processors
from benchmarks.scale.folders import name_of
from benchmarks.scale.lora_files import FAMILIES, shapes

FILES, QUICK_FILES, RANK, TAGS = 10_000, 300, 16, 60
WORDS = Path(__file__).resolve().parents[2] / "zoo" / "splits.json"


def measure(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    two_processors()
    files = QUICK_FILES if quick else FILES
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        root = Path(folder) / "loras"
        subjects = make(root, files)
        began = time.perf_counter()
        with Library.open(Path(folder) / "library") as library:
            report = library.scan([root], headers_only=True)
            listed = time.perf_counter() - began
            if (report.added, report.bytes_read) != (files, 0):
                raise RuntimeError(f"{report.added} of {files} files were listed: {report.problems[:3]}")
            family = FAMILIES[0]
            answered, found = [], 0
            for number in range(4):
                wanted = subjects[number * len(FAMILIES)]
                began = time.perf_counter()
                chosen = retrieve(library, wanted, family=family, tower=LexicalTower())
                answered.append(time.perf_counter() - began)
                names = [pick.name for pick in (*chosen.picks, *chosen.misses)]
                found += any(subjects[int(Path(name).stem[-6:])] == wanted for name in names)
            again = time.perf_counter()
            library.scan([root], headers_only=True)
            again = time.perf_counter() - again
    figures = {
        "headers_10k_s": listed * FILES / files,
        "headers_first_prompt_10k_s": answered[0] * FILES / files,
        "headers_found": found / len(answered),
    }
    row = {
        "files": files,
        "headers_s": listed,
        "first_prompt_s": answered[0],
        "prompts_s": answered[1:],
        "again_s": again,
    }
    return figures, [row]


def make(root: Path, files: int) -> list[str]:
    """The files; what each of them is of."""
    subjects = sorted(json.loads(WORDS.read_text(encoding="utf-8"))["subjects"])
    tables = {family: _table(family) for family in FAMILIES}
    drawn, made = random.Random(0), []
    for number in range(files):
        subject = f"{drawn.choice(subjects)} {drawn.choice(subjects)}".replace("-", " ")
        path = root / name_of(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, tables[FAMILIES[number % len(FAMILIES)]], subject, drawn, subjects)
        if number % 2:
            words = {"model": {"name": subject.title()}, "trainedWords": [subject]}
            path.with_suffix(".civitai.info").write_text(json.dumps(words), encoding="utf-8")
        made.append(subject)
    return made


def _table(family: str) -> tuple[dict[str, Any], int]:
    table, at = {}, 0
    for name, outputs, inputs in shapes(family):
        for part, shape in (("alpha", []), ("lora_down.weight", [RANK, inputs]), ("lora_up.weight", [outputs, RANK])):
            size = 2 * (shape[0] * shape[1] if shape else 1)
            table[f"{name}.{part}"] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
    return table, at


def _write(path: Path, table: tuple[dict[str, Any], int], subject: str, drawn: random.Random, words: list[str]) -> None:
    tags = {subject: 20} | {drawn.choice(words): drawn.randint(1, 9) for _ in range(TAGS)}
    stated = {"ss_output_name": subject, "ss_tag_frequency": json.dumps({f"10_{subject}": tags})}
    header = json.dumps({"__metadata__": stated, **table[0]}, separators=(",", ":")).encode()
    with open(path, "wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + table[1])
