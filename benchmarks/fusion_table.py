"""From stored verdicts to figures: shares, retention against one LoRA alone, differences with paired intervals.

Every figure is a mean over pairs of means over a pair's seeds; intervals (95 %) and differences resample pairs, the
same draws for both sides. Pairs of one subject stand or fall together, so rows also have the wider interval that comes
of resampling subjects. Worst retention is the smaller of two quotients, subject right under the method over subject
right with that LoRA alone, and likewise the style. A cell that nobody drew is absent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fusion_cases import Case
from benchmarks.fusion_judge import right
from benchmarks.fusion_run import BASE, OWN, REAL, STYLE, SUBJECT
from benchmarks.fusion_shelf import TEST
from benchmarks.fusion_store import ALONE, FUSED, UNASKED, Cell, Verdicts
from benchmarks.results_file import RESULTS, write_results

RESAMPLES, TINY, OURS = 2000, 1e-9, "ours"
COLUMNS = ("subject", "style", "joint", "distance", "pixels", "edges", "alone_subject", "alone_style")
AT = {name: i for i, name in enumerate(COLUMNS)}
Statistic = Callable[[np.ndarray], np.ndarray]  # (…, columns) → (…,)


def column(name: str) -> Statistic:
    return lambda x: x[..., AT[name]]


def harmonic(x: np.ndarray) -> np.ndarray:
    """Of the shares of right subjects and right styles."""
    a, b = x[..., AT["subject"]], x[..., AT["style"]]
    return 2 * a * b / np.maximum(a + b, TINY)


def retention(x: np.ndarray) -> np.ndarray:
    """Of the wanted LoRA that suffers most."""
    alone = [np.maximum(x[..., AT[f"alone_{what}"]], TINY) for what in ("subject", "style")]
    return np.minimum(x[..., AT["subject"]] / alone[0], x[..., AT["style"]] / alone[1])


STATISTICS: dict[str, Statistic] = {
    **{name: column(name) for name in ("joint", "subject", "style", "distance", "pixels", "edges")},
    "hmean": harmonic,
    "worst_retention": retention,
}


@dataclass
class Means:
    """``rows`` (n, columns): a pair's means over its seeds. ``pictures``: how many they rest on."""

    cases: list[str]
    rows: np.ndarray
    pictures: int

    def only(self, cases: Sequence[str]) -> Means:
        at = {case: i for i, case in enumerate(self.cases)}
        return Means(list(cases), self.rows[[at[case] for case in cases]], self.pictures)

    @property
    def subjects(self) -> list[str]:
        return [case.split("|")[0] for case in self.cases]


def interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)


def resampled(rows: np.ndarray, clusters: Sequence[str] | None = None) -> np.ndarray:
    """(RESAMPLES, columns): means of pairs, or of whole ``clusters`` of them, drawn with replacement; the same draws
    for tables of the same pairs."""
    which = np.arange(len(rows)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    n = int(which.max()) + 1
    counts = np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), RESAMPLES)[:, which]
    return counts @ rows / counts.sum(axis=1, keepdims=True)


def spreads(means: Means) -> tuple[np.ndarray, np.ndarray]:
    """Draws of pairs, and draws of subjects."""
    return resampled(means.rows), resampled(means.rows, means.subjects)


class Table:
    """The cells of some cases, by (kind, K, method)."""

    def __init__(self, verdicts: Verdicts, cases: Iterable[Case], seeds: int):
        self.verdicts, self.cases, self.seeds = verdicts, [c.name for c in cases], seeds

    def seeds_of(self, case: str, kind: str, k: int, method: str) -> dict[int, dict[str, float]]:
        found = self.verdicts.cells.get(Cell(case, kind, k, method), {})
        return {seed: note for seed, note in found.items() if seed < self.seeds}

    def right(self, case: str, kind: str, k: int, method: str) -> dict[str, dict[int, bool]]:
        """Measure → seed → whether it is right."""
        found = self.seeds_of(case, kind, k, method)
        if not found:
            return {"subject": {}, "style": {}, "joint": {}}
        hits = right({key: [note[key] for note in found.values()] for key in ("named", "style")})
        return {key: dict(zip(found, values.tolist(), strict=True)) for key, values in hits.items()}

    def means(self, kind: str, k: int, method: str) -> Means | None:
        """Of the cases that have both this cell and those of the single LoRAs, over the seeds of all three."""
        names, rows, pictures = [], [], 0
        for case in self.cases:
            found, hits = self.seeds_of(case, kind, k, method), self.right(case, kind, k, method)
            subject = self.right(case, ALONE, 1, SUBJECT)["subject"]
            style = self.right(case, ALONE, 1, STYLE)["style"]
            seeds = sorted(set(found) & set(subject) & set(style)) if method != REAL else sorted(found)
            if not seeds:
                continue
            own = [[hits[key][s] for s in seeds] for key in ("subject", "style", "joint")]
            far = [[found[s].get(key, np.nan) for s in seeds] for key in ("distance", "pixels", "edges")]
            alone = [[hit.get(s, np.nan) for s in seeds] for hit in (subject, style)]
            names.append(case)
            rows.append([float(np.mean(values)) for values in (*own, *far, *alone)])
            pictures += len(seeds)
        return Means(names, np.array(rows), pictures) if names else None

    def ceiling(self) -> tuple[list[float], int]:
        """Of each case the share of seeds at which each of the two LoRAs alone did its part."""
        out, pictures = [], 0
        for case in self.cases:
            subject = self.right(case, ALONE, 1, SUBJECT)["subject"]
            style = self.right(case, ALONE, 1, STYLE)["style"]
            if both := sorted(set(subject) & set(style)):
                out.append(float(np.mean([subject[s] and style[s] for s in both])))
                pictures += len(both)
        return out, pictures


@dataclass
class Report:
    """Flat figures and the rows behind them."""

    figures: dict[str, float]
    rows: list[dict[str, Any]]

    def note(self, name: str, value: float, spread: np.ndarray | None, pairs: int, pictures: int, **more: Any) -> None:
        if not np.isfinite(value):
            return
        self.figures[name] = round(float(value), 4)
        low, high = interval(spread) if spread is not None else (None, None)
        self.rows.append({"figure": name, "value": self.figures[name], "low": low, "high": high, "pairs": pairs,
                          "pictures": pictures, **more})  # fmt: skip

    def note_all(self, means: Means, measures: Iterable[str], name: Callable[[str], str]) -> None:
        """Every measure of one cell, under ``name(measure)``."""
        pairs, subjects = spreads(means)
        for measure in measures:
            statistic = STATISTICS[measure]
            self.note(name(measure), statistic(means.rows.mean(0)), statistic(pairs), len(means.rows), means.pictures,
                      by_subject=interval(statistic(subjects)))  # fmt: skip


def report(table: Table, methods: Mapping[str, str], ours: Sequence[str], ks: Iterable[int]) -> Report:
    """``methods``: name → key in the store."""
    out = Report({}, [])
    _references(table, out)
    for k in ks:
        found = {name: means for name, key in methods.items() if (means := table.means(FUSED, k, key)) is not None}
        for name, means in found.items():
            out.note_all(means, STATISTICS, lambda measure, k=k, name=name: f"{measure}_k{k}_{name}")
            _costs(table, out, k, name, methods[name])
        _differences(out, found, ours, k)
        for name, key in methods.items():
            _unasked(table, out, k, name, key)
    return out


def _references(table: Table, out: Report) -> None:
    """What can be had at all: the judge on the real pictures, the base alone, one LoRA alone."""
    for k, method in ((0, REAL), (0, BASE), (1, SUBJECT), (1, STYLE), (1, OWN)):
        if (means := table.means(ALONE, k, method)) is not None:
            measures = ("subject", "style", "joint", "distance")
            out.note_all(means, measures, lambda measure, method=method: f"{measure}_alone_{method}")
    ceiling, pictures = table.ceiling()
    if ceiling:
        rows = np.array(ceiling)[:, None]
        out.note("single_ceiling", float(rows.mean()), resampled(rows)[:, 0], len(rows), pictures)


def _differences(out: Report, found: Mapping[str, Means], ours: Sequence[str], k: int) -> None:
    """The best baseline by joint, of those drawn for nearly all pairs; every method against it and against the sum, on
    the pairs that both have.
    """
    rivals = {name: means for name, means in found.items() if name not in ours}
    if not rivals:
        return
    most = max(len(means.cases) for means in rivals.values())
    whole = {name: means for name, means in rivals.items() if len(means.cases) >= 0.9 * most}
    best = max(whole, key=lambda name: whole[name].rows[:, AT["joint"]].mean())
    out.note(f"best_baseline_joint_k{k}", rivals[best].rows[:, AT["joint"]].mean(), None, len(rivals[best].rows),
             rivals[best].pictures, method=best)  # fmt: skip
    if OURS in found:
        out.note(f"ours_joint_k{k}", found[OURS].rows[:, AT["joint"]].mean(), None, len(found[OURS].rows),
                 found[OURS].pictures, method=OURS)  # fmt: skip
    for against in dict.fromkeys((best, "sum", "sum-asked")):
        for name, means in found.items():
            if against in found and name != against:
                out.rows += [difference(name, means, against, found[against], measure, k) for measure in STATISTICS]


def difference(name: str, mine: Means, against: str, theirs: Means, measure: str, k: int) -> dict[str, Any]:
    """One row: how much higher ``name`` is than ``against``, with the interval of the paired bootstrap."""
    both = [case for case in mine.cases if case in set(theirs.cases)]
    a, b, statistic = mine.only(both), theirs.only(both), STATISTICS[measure]
    value = statistic(a.rows.mean(0)) - statistic(b.rows.mean(0))
    pairs, subjects = (interval(statistic(x) - statistic(y)) for x, y in zip(spreads(a), spreads(b), strict=True))
    return {"difference": measure, "k": k, "method": name, "against": against, "value": round(float(value), 4),
            "low": pairs[0], "high": pairs[1], "by_subject": subjects, "pairs": len(both)}  # fmt: skip


def _costs(table: Table, out: Report, k: int, name: str, key: str) -> None:
    """Median seconds of one core a picture (fusing shared out over a pair's seeds), median MB beyond the base."""
    noted = [c for case in table.cases for c in table.verdicts.costs.get(Cell(case, FUSED, k, key), [])]
    if noted:
        drawn, built = (float(np.median([c[what] for c in noted])) for what in ("draw", "build"))
        out.note(f"seconds_k{k}_{name}", drawn + built / table.seeds, None, len(noted), len(noted) * table.seeds,
                 draw=round(drawn, 3), fuse_once=round(built, 3))  # fmt: skip
    weighed = [c["mb"] for c in noted if "mb" in c]
    if weighed:
        out.note(f"memory_mb_k{k}_{name}", float(np.median(weighed)), None, len(weighed), len(weighed) * table.seeds)


def _unasked(table: Table, out: Report, k: int, name: str, key: str) -> None:
    """LoRAs that nobody asked for: how far pictures move from the base's, and how many subjects survive."""
    moved, kept, pictures = [], [], 0
    for case in table.cases:
        found, base = table.seeds_of(case, UNASKED, k, key), table.seeds_of(case, UNASKED, 0, BASE)
        if seeds := sorted(set(found) & set(base)):
            moved.append(float(np.mean([found[s]["distance"] for s in seeds])))
            kept.append([np.mean([v[s]["named"] for s in seeds]) for v in (found, base)])
            pictures += len(seeds)
    if not moved:
        return
    rows, shares = np.array(moved)[:, None], np.array(kept)
    out.note(f"unasked_shift_k{k}_{name}", float(rows.mean()), resampled(rows)[:, 0], len(rows), pictures)
    if shares[:, 1].any():  # of subjects that the base itself cannot draw nothing can survive
        spread = resampled(shares)
        out.note(f"unasked_kept_k{k}_{name}", shares[:, 0].mean() / shares[:, 1].mean(),
                 spread[:, 0] / np.maximum(spread[:, 1], TINY), len(rows), pictures)  # fmt: skip


def write_table(
    verdicts: Verdicts, cases: Sequence[Case], methods: Mapping[str, str], ours: Sequence[str], command: str,
    args: argparse.Namespace,
) -> Path:  # fmt: skip
    """``fusion.json`` of the test part of the large zoo or its sample; of anything else a file beside the verdicts."""
    made = report(Table(verdicts, cases, args.seeds), methods, ours, args.k)
    about = {"shelf": args.shelf, "part": args.part, "sampler_steps": args.steps, "seeds": args.seeds,
             "pairs_planned": len(cases), "near_misses": sum(c.near for c in cases)}  # fmt: skip
    published = args.shelf != "shipped" and args.part == TEST
    name, folder = ("fusion", RESULTS) if published else (verdicts.path.stem, verdicts.path.parent)
    return write_results(name, command, 0, made.figures, [about, *made.rows], folder)
