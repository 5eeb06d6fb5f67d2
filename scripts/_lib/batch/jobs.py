"""Rows made into jobs: one picture (or whatever the workflow saves) with a seed of its own."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..client import Graph
from .rows import PROMPT, Row, RowsError
from .values import ValueWrong, whole
from .workflow import Workflow, job_id

LARGEST_COUNT = 100_000


@dataclass(eq=False)
class Job:
    """One thing to make. ``id`` tells what it draws (graph and seed), so the same asked again is the same job.

    ``refused`` are the servers that cannot run it, with their words; ``lost`` counts servers that forgot it.
    """

    id: str
    row: Row
    copy: int
    seed: int
    refused: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: int = 0

    @property
    def prompt(self) -> str:
        """As given in the row."""
        return str(self.row.values.get(PROMPT, ""))

    @property
    def stem(self) -> str:
        """What its files' names begin with."""
        return (
            f"{self.row.number:05d}-{self.copy}-{self.id[:8]}" if self.copy else f"{self.row.number:05d}-{self.id[:8]}"
        )

    def graph(self, workflow: Workflow) -> Graph:
        """What is sent, without the nodes that only show."""
        return workflow.fill(self.row, self.seed)


def plan(rows: Sequence[Row], workflow: Workflow, base_seed: int = 0) -> tuple[list[Job], list[str]]:
    """All jobs in the rows' order, and notes on rows that ask for what another row asked for already.

    A row without a seed gets one from its own words and ``base_seed``, so that rows may be added, moved or taken away
    without another picture coming out of the rest. Raises `RowsError` or `WorkflowWrong` with the row's line.
    """
    jobs: dict[str, Job] = {}
    notes: list[str] = []
    seen: Counter[str] = Counter()
    for row in rows:
        words = json.dumps({k: v for k, v in row.asked.items() if k != "count"}, sort_keys=True, default=str)
        seen[words] += 1
        count, first = _number(row, "count", 1), _number(row, "seed", -1)
        if not 0 <= count <= LARGEST_COUNT:
            raise RowsError(f"line {row.line}: count is a number from 0 to {LARGEST_COUNT}, not {count}")
        for copy in range(count):
            seed = first + copy if first >= 0 else _seed(words, base_seed, seen[words], copy)
            job = Job(job_id(workflow.fill(row, seed)), row, copy, seed)
            before = jobs.setdefault(job.id, job)
            if before is not job:
                notes.append(f"line {row.line} asks for what line {before.row.line} asks for: it is made once")
    return list(jobs.values()), notes


def _number(row: Row, column: str, default: int) -> int:
    try:
        return whole(row.values[column]) if column in row.values else default
    except ValueWrong as error:
        raise RowsError(f"line {row.line}: {column}: {error}") from error


def _seed(words: str, base: int, occurrence: int, copy: int) -> int:
    """32 bits, which every seed input takes."""
    return int.from_bytes(hashlib.sha256(f"{base}|{occurrence}|{copy}|{words}".encode()).digest()[:4], "big")
