"""Verdicts on disk: a line a (case, kind, K, method, seeds), appended as soon as its pictures are judged.

A line is one write, so a run that is killed loses at most the pictures it was drawing, and several runs on different
shards of the cases may write at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.cache import zoo_dir
from zoo.train_loras import base_tag

FUSED, ALONE, UNASKED = "fused", "alone", "unasked"


@dataclass(frozen=True)
class Cell:
    """``kind``: fused (the wanted two and strangers), alone (one LoRA, none, or the real picture), unasked."""

    case: str
    kind: str
    k: int
    method: str


@dataclass
class Verdicts:
    """``cells``: cell → seed → measure → number. ``costs``: cell → what was noted of its runs."""

    path: Path
    cells: dict[Cell, dict[int, dict[str, float]]] = field(default_factory=dict)
    costs: dict[Cell, list[dict[str, float]]] = field(default_factory=dict)
    cut: bool = False

    @classmethod
    def open(cls, name: str, folder: Path | None = None) -> Verdicts:
        """What is stored under a name; a last line that was cut off is passed over."""
        path = (folder or zoo_dir("fusion", base_tag())) / f"{name}.jsonl"
        out = cls(path)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        out.cut = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                out.keep(json.loads(line))
            except json.JSONDecodeError:
                continue
        return out

    def keep(self, record: dict[str, Any]) -> None:
        cell = Cell(record["case"], record["kind"], record["k"], record["method"])
        notes = self.cells.setdefault(cell, {})
        for i, seed in enumerate(record["seeds"]):
            notes[seed] = {measure: values[i] for measure, values in record["notes"].items()}
        if record.get("cost"):
            self.costs.setdefault(cell, []).append(record["cost"])

    def missing(self, cell: Cell, seeds: Iterable[int]) -> list[int]:
        have = self.cells.get(cell, {})
        return [seed for seed in seeds if seed not in have]

    def add(
        self, cell: Cell, seeds: list[int], notes: dict[str, list[float]], cost: dict[str, float] | None = None
    ) -> None:
        record = {**cell.__dict__, "seeds": seeds, "notes": notes, "cost": cost or {}}
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(("\n" if self.cut else "") + line)
        self.cut = False
        self.keep(record)
