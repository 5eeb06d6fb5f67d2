"""How far each threshold of Find LoRAs Like This stays from the files it keeps apart, on files made to choose it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from autolora_core.library import merges, relations
from autolora_core.library.relations import Measured, measure, rounding_limit
from autolora_core.library.weights import Weights
from autolora_core.lora.file import LoraFile
from benchmarks.duplicate_files import Origin, build, truth

# (name, the measured value, its threshold, positives lie below it?)
SAME = {"resaved", "rescaled", "refactorised", "part"}


def _held(path: Path) -> Weights:
    return Weights.of(LoraFile.open(path).updates())


class Sides:
    """Values of one threshold's measure on files that must lie below it and files that must lie above."""

    def __init__(self, name: str, threshold: float):
        self.name, self.threshold = name, threshold
        self.below: list[float] = []
        self.above: list[float] = []

    def add(self, value: float, is_below: bool) -> None:
        (self.below if is_below else self.above).append(value)

    def row(self) -> dict[str, Any]:
        return {
            "kind": "threshold", "name": self.name, "value": self.threshold,
            "highest_below": max(self.below, default=None), "lowest_above": min(self.above, default=None),
            "below": len(self.below), "above": len(self.above),
            "wrong": sum(v > self.threshold for v in self.below) + sum(v <= self.threshold for v in self.above),
        }  # fmt: skip


def margins(
    folder: Path, runs: Sequence[str], originals: dict[str, Path], epochs: dict[str, Origin], labels: dict[str, str]
) -> list[dict[str, Any]]:
    """Rows of kind ``threshold`` from copies and merges of ``runs`` and the checkpoints ``epochs`` (folder/epochs).

    ``labels``: what each run shows; two runs of one label by different creators must count as alike, not as epochs.
    """
    made = build(folder, originals, runs)
    sides = {
        "residual": Sides("residual / rounding limit", 1.0),
        "shortfall": Sides("shortfall of a truncation", relations.TRUNCATION_SHORTFALL),
        "merge": Sides("left over by a merge / its limit", 1.0),
        "epoch": Sides("cosine of epochs", relations.EPOCH),
        "aligned": Sides("cosine of the down matrices of epochs", relations.ALIGNED),
        "alike": Sides("cosine of two LoRAs of one subject", relations.ALIKE),
    }
    whole = {run: _held(originals[run]) for run in runs}
    for name, origin in made.items():
        other = _held(folder / name)
        if origin.parts:
            _merge_sides(sides["merge"], other, origin, whole)
        else:
            _copy_sides(sides, measure(whole[origin.run], other), truth(Origin(origin.run), origin))
    _epoch_sides(sides, {name: (_held(folder / "epochs" / name), o) for name, o in epochs.items()})
    for a, b in combinations(whole, 2):
        found = measure(whole[a], whole[b])
        sides["alike"].add(abs(found.cosine), labels[a] != labels[b])
        sides["epoch"].add(found.common_cosine, True)
        for short in (found.shortfall_a, found.shortfall_b):
            if short is not None:
                sides["shortfall"].add(short, False)
    return [side.row() for side in sides.values()]


def _copy_sides(sides: dict[str, Sides], found: Measured, kinds: set[str]) -> None:
    limit = rounding_limit(found.rounding)
    sides["residual"].add(found.residual_by_layer / limit, bool(kinds & SAME))
    if kinds == {"truncated"} and found.shortfall_b is not None:
        sides["shortfall"].add(found.shortfall_b, True)


def _merge_sides(side: Sides, other: Weights, origin: Origin, whole: dict[str, Weights]) -> None:
    (first, _), (second, _) = origin.parts
    wrong = [run for run in whole if run not in (first, second)][:3]
    pairs = [(first, second, True), *((first, run, False) for run in wrong)]
    for one, two, right in pairs:
        parts = (whole[one], whole[two])
        limit = merges.left_over_limit(other, *parts)
        fits = [fit(other, *parts) for fit in (merges.fit_sum, merges.fit_matrices)]
        side.add(min((fit.left_over for fit in fits if fit is not None), default=1.0) / limit, right)


def _epoch_sides(sides: dict[str, Sides], files: dict[str, tuple[Weights, Origin]]) -> None:
    """Epochs of one run above, runs of another subject from the same start, and of the same subject, below."""
    groups = defaultdict(list)
    for weights, origin in files.values():
        groups[origin.run].append((weights, origin))
    for (a, one), (b, other) in combinations(files.values(), 2):
        found = measure(a, b)
        same = one.run == other.run
        sides["epoch"].add(found.common_cosine, not same)
        sides["aligned"].add(found.aligned, not same)
        limit = rounding_limit(found.rounding)
        sides["residual"].add(found.residual_by_layer / limit, False)
        for short in (found.shortfall_a, found.shortfall_b):
            if short is not None:
                sides["shortfall"].add(short, False)
    for members in groups.values():
        for (a, _), (b, _), (c, _) in combinations(sorted(members, key=lambda m: m[1].step), 3):
            fit = merges.fit_sum(b, a, c)
            if fit is not None:
                sides["merge"].add(fit.left_over / merges.left_over_limit(b, a, c), False)
