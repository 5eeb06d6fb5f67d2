"""Draw and judge what is missing of some cases, case by case: whatever is finished is a full table over fewer pairs."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.fusion_cases import Case
from benchmarks.fusion_entries import Entry
from benchmarks.fusion_judge import Critic, Wanted
from benchmarks.fusion_methods import Workbench, single
from benchmarks.fusion_network import Course, Network, Painter
from benchmarks.fusion_shelf import Shelf
from benchmarks.fusion_store import ALONE, FUSED, UNASKED, Cell, Verdicts
from zoo.evaluate import load_autoencoder
from zoo.judge import Judge
from zoo.lora_data import true_picture
from zoo.pictures import Pictures
from zoo.splits import DEFAULT_STYLE
from zoo.train_loras import load_base

log = logging.getLogger("benchmarks.fusion")
# Runs that nobody asked for are judged by a distance, which needs fewer pairs than a share; so does memory.
UNASKED_EVERY, WEIGHED_EVERY = 8, 8
REAL, BASE, SUBJECT, STYLE, OWN = "real", "base", "subject", "style", "own"


@dataclass(frozen=True)
class Scope:
    """``entries``: the methods; ``ks``: how many LoRAs; ``seeds``: pictures a cell; ``until``: when to stop."""

    entries: Mapping[str, Entry]
    ks: Sequence[int]
    seeds: int
    until: float = float("inf")


class Runner:
    """Everything that draws and judges. ``drawn`` counts the pictures of this run."""

    def __init__(
        self, shelf: Shelf, verdicts: Verdicts, steps: int, compiled: bool = False, model: nn.Module | None = None
    ):
        """``model``: the base, the demo base if not given."""
        self.shelf, self.verdicts, self.drawn = shelf, verdicts, 0
        self.network = Network(model or load_base(), torch.bfloat16, compiled)
        self.painter = Painter(self.network, load_autoencoder()[0], steps)
        self.critic, self.pictures = Critic(Judge.load()), Pictures.load()
        self.bench = Workbench(shelf, self.network)

    def run(self, cases: Sequence[tuple[int, Case]], scope: Scope) -> None:
        """``cases`` with their numbers in the draw. Stops after the case in which the time ends."""
        began = time.time()
        for done, (number, case) in enumerate(cases):
            if time.time() > scope.until:
                log.info("out of time after %d of %d pairs", done, len(cases))
                return
            self.case(number, case, scope)
            if self.drawn:
                spent = time.time() - began
                log.info("%d of %d pairs, %d pictures, %.2f s each, %s", done + 1, len(cases), self.drawn,
                         spent / self.drawn, case.name)  # fmt: skip

    def case(self, number: int, case: Case, scope: Scope) -> None:
        """All cells of one case that are not stored."""
        self.bench.clear()
        self.bench.phrases = case.phrases
        self.painter.forget()
        weigh = number % WEIGHED_EVERY == 0
        wanted = Wanted(case.subject, case.style, true_picture(self.pictures, case.subject, case.style))
        self._alone(case, wanted, scope.seeds)
        for k in self._possible(scope.ks, case.loras):
            for entry in scope.entries.values():
                cell, ids = Cell(case.name, FUSED, k, entry.key), case.loras(k)
                self._cell(cell, case.prompts, case.noise, scope.seeds, lambda e=entry, i=ids: e.build(self.bench, i),
                           lambda images, _: self.critic.notes(images, wanted), weigh)  # fmt: skip
        if number % UNASKED_EVERY == 0:
            self._unasked(case, scope)

    def _possible(self, ks: Iterable[int], loras: Callable[[int], Sequence[str]]) -> list[int]:
        """Those of ``ks`` whose LoRAs are trained."""
        return [k for k in ks if all(map(self.shelf.ready, loras(k)))]

    def _alone(self, case: Case, wanted: Wanted, seeds: int) -> None:
        """The real picture, the base without any LoRA, each wanted LoRA alone, and the subject in its own words."""
        real = Cell(case.name, ALONE, 0, REAL)
        if self.verdicts.missing(real, [0]) and wanted.picture is not None:
            self.verdicts.add(real, [0], self.critic.notes(wanted.picture[None], wanted))
        own = Wanted(case.subject, DEFAULT_STYLE, true_picture(self.pictures, case.subject, DEFAULT_STYLE))
        subject, style = case.wanted
        for name, ids, prompts, goal in (
            (BASE, [], case.prompts, wanted),
            (SUBJECT, [subject], case.prompts, wanted),
            (STYLE, [style], case.prompts, wanted),
            (OWN, [subject], case.subject_prompts, own),
        ):
            cell = Cell(case.name, ALONE, len(ids), name)
            self._cell(cell, prompts, case.noise, seeds, lambda i=ids: single(self.bench, i),
                       lambda images, _, g=goal: self.critic.notes(images, g))  # fmt: skip

    def _unasked(self, case: Case, scope: Scope) -> None:
        """LoRAs that the prompt does not ask for; pictures are measured against the base's own."""
        wanted = Wanted(case.bystander, DEFAULT_STYLE, true_picture(self.pictures, case.bystander, DEFAULT_STYLE))
        self.bench.phrases = case.bystander_phrases
        before: dict[int, np.ndarray] = {}

        def base(seeds: list[int]) -> np.ndarray:
            if new := [s for s in seeds if s not in before]:
                drawn = self.painter.draw(Course(), [case.bystander_prompts[s] for s in new], case.noise + new[0])
                before.update(zip(new, drawn, strict=True))
            return np.stack([before[s] for s in seeds])

        self._cell(Cell(case.name, UNASKED, 0, BASE), case.bystander_prompts, case.noise, scope.seeds, Course,
                   lambda images, _: self.critic.notes(images, wanted))  # fmt: skip
        for k in self._possible(scope.ks, case.strangers):
            for entry in scope.entries.values():
                cell, ids = Cell(case.name, UNASKED, k, entry.key), case.strangers(k)
                self._cell(cell, case.bystander_prompts, case.noise, scope.seeds,
                           lambda e=entry, i=ids: e.build(self.bench, i),
                           lambda images, seeds: self.critic.shift(images, base(seeds), wanted))  # fmt: skip

    def _cell(
        self, cell: Cell, prompts: Sequence[str], noise: int, seeds: int, build: Callable[[], Course],
        judge: Callable[[np.ndarray, list[int]], dict[str, list[float]]], weigh: bool = False,
    ) -> None:  # fmt: skip
        for block in runs(self.verdicts.missing(cell, range(seeds))):
            with Peak(weigh) as peak:
                began = time.process_time()
                course = build()
                built = time.process_time()
                images = self.painter.draw(course, [prompts[s] for s in block], noise + block[0])
                ended = time.process_time()
            cost = {"build": round(built - began, 3), "draw": round((ended - built) / len(block), 4)}
            cost |= {"mb": round(peak.mb, 1)} if peak.mb is not None else {}
            self.verdicts.add(cell, block, judge(images, block), cost)
            self.drawn += len(block)


def runs(seeds: Iterable[int]) -> Iterator[list[int]]:
    """Neighbouring numbers together: noise goes by the first of a batch."""
    block: list[int] = []
    for seed in seeds:
        if block and seed != block[-1] + 1:
            yield block
            block = []
        block.append(seed)
    if block:
        yield block


class Peak:
    """The most memory this process held inside the block beyond what it held before, MB; None where nobody tells."""

    def __init__(self, on: bool):
        self.on, self.mb = on, None

    def __enter__(self) -> Peak:
        self.before = self._reset() if self.on else None
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            self.mb = (_status("VmHWM") or 0) - self.before

    @staticmethod
    def _reset() -> float | None:
        """Linux forgets its high-water mark when asked; freed memory must be given back first."""
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return None
        return _status("VmRSS")


def _status(field: str) -> float | None:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return None
