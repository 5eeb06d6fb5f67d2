"""Proves that the page on fusion says what its results say, on made-up results and on the real ones where they are."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import fusion_table
from benchmarks.fusion_page import PAGE, RETENTION_AIMS, digits, finely, inserts, page, points, share
from benchmarks.fusion_plots import BASELINES, OURS, OWN, Found, draw_all
from benchmarks.fusion_run import BASE, REAL, STYLE, SUBJECT
from benchmarks.fusion_store import ALONE, FUSED, UNASKED, Verdicts
from benchmarks.fusion_table import Table, report
from benchmarks.results_file import read_results

KS, SEEDS, PAIRS = (2, 3, 8), 3, 9
METHODS = ("sum", "np", "klora", OURS, "ours-timeless")
IMAGE = re.compile(r"!\[[^]]*]\(([^)]+)\)")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?%?")


def made_up(tmp_path, methods=METHODS, ks=KS, few: str = "klora") -> dict[str, Any]:
    """Results as ``fusion_table`` writes them, of verdicts drawn by lot; ``few`` has two pairs only."""
    rng, verdicts = np.random.default_rng(3), Verdicts(tmp_path / "none.jsonl")

    def keep(case: str, kind: str, k: int, method: str, chance: float) -> None:
        hits = rng.random((2, SEEDS)) < chance
        notes = {"named": hits[0].astype(int).tolist(), "style": (1 - hits[1]).tolist()}
        notes |= {key: rng.random(SEEDS).round(4).tolist() for key in ("distance", "pixels", "edges")}
        cost = {"build": 0.7, "draw": round(rng.random(), 4), "mb": round(90 * rng.random(), 1)}
        verdicts.keep({"case": case, "kind": kind, "k": k, "method": method, "seeds": list(range(SEEDS)),
                       "notes": notes, "cost": cost})  # fmt: skip

    cases = [SimpleNamespace(name=f"{i // 2}|{i}") for i in range(PAIRS)]
    for place, case in enumerate(cases):
        for k, method, chance in ((0, REAL, 0.9), (0, BASE, 0.1), (1, SUBJECT, 0.9), (1, STYLE, 0.9)):
            keep(case.name, ALONE, k, method, chance)
        keep(case.name, UNASKED, 0, BASE, 0.8)
        for k in ks:
            for method in methods:
                if method != few or place < 2:
                    for kind in (FUSED, UNASKED):
                        keep(case.name, kind, k, method, 0.8 if method == OURS else 0.4)
    own = [name for name in methods if name.startswith(OURS) or name in OWN]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion_table, "RESAMPLES", 60)
        made = report(Table(verdicts, cases, SEEDS), {name: name for name in methods}, own, ks)
    about = {"shelf": "sample", "part": "test", "sampler_steps": 12, "seeds": SEEDS, "pairs_planned": 40,
             "near_misses": 21}  # fmt: skip
    return {"command": "python -m made.up", "date": "3000-01-01T00:00", "figures": made.figures,
            "rows": [about, *made.rows]}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Any]:
    return made_up(tmp_path_factory.mktemp("fusion"))


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in ``text``."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_is_made_from_the_results():
    if PAGE.exists():
        found = read_results("fusion")
        assert found is not None, "a page whose figures are lost"
        text = PAGE.read_text(encoding="utf-8")
        assert text == page(found, *inserts())
        assert all((PAGE.parent / image).exists() for image in IMAGE.findall(text))


def said(results: dict[str, Any]) -> set[str]:
    """Every number of the results, in every way that the page writes numbers; and by how much aims are missed."""
    values: list[float] = [*results["figures"].values()]
    for row in results["rows"]:
        for value in row.values():
            values += [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int | float)]
    for k, aim in RETENTION_AIMS.items():
        values += [aim, aim - results["figures"].get(f"worst_retention_k{k}_ours", aim)]
    forms = [share, finely, points, digits(0), digits(2), digits(3), digits(3, "+")]
    return {form(value) for value in values for form in forms}


def test_every_number_is_a_figure(results):
    text = page(results).split("\n", 4)[-1]  # below the line with command and date
    words = {number for told in (BASELINES | OWN).values() for number in NUMBER.findall(told)}
    fixed = {"95", "0", "1"}  # intervals of 95 %, what the base itself has when nobody is asked for
    assert set(NUMBER.findall(text)) <= said(results) | words | fixed


def test_each_table_has_the_figures_of_its_methods_best_first(results):
    figures, text = results["figures"], page(results)
    for k in KS:
        rows = cells(section(text, f"K = {k}"))[2:]
        names = [row[0].strip("*") for row in rows]
        assert sorted(names) == sorted(METHODS)
        joint = [figures[f"joint_k{k}_{name}"] for name in names]
        assert joint == sorted(joint, reverse=True)
        for name, row in zip(names, rows, strict=True):
            assert row[1].startswith(f"{figures[f'joint_k{k}_{name}']:.1%} [")
            assert row[2] == f"{figures[f'subject_k{k}_{name}']:.0%}"
            assert row[5] == f"{figures[f'worst_retention_k{k}_{name}']:.2f}"
            assert row[-3] == f"{figures[f'seconds_k{k}_{name}']:.2f}"
            assert row[-1] == ("2" if name == "klora" else str(PAIRS))
        assert "**ours**" in text and "**ours-timeless**" not in text


def test_methods_that_are_missing_are_absent(results):
    text = page(results)
    assert "composite" not in text and "SSR" not in text
    assert "K-LoRA, arXiv 2502.18461" in text and "too few pairs" in text and "klora (2 at K = 2" in text
    assert "ours-timeless" in text


def changed(results: dict[str, Any], **bounds: Any) -> str:
    """The aims after the difference of ours to the best baseline, both right, was written over."""
    other = copy.deepcopy(results)
    for row in other["rows"]:
        if row.get("difference") == "joint" and row["method"] == OURS:
            row |= bounds
    return section(page(other), "Where the aims are met and missed")


def test_aims_are_met_only_beyond_doubt(results):
    assert changed(results, value=0.2, low=0.1, high=0.3, by_subject=(0.05, 0.4)).count("| met |") >= len(KS)
    assert "not with subjects drawn" in changed(results, value=0.2, low=0.1, high=0.3, by_subject=(-0.1, 0.4))
    assert "not clear of zero" in changed(results, value=0.2, low=-0.1, high=0.3)
    assert changed(results, value=-0.2, low=-0.3, high=-0.1).count("missed: not ahead") == len(KS)


@pytest.mark.parametrize(("value", "verdict"), [(0.97, "met"), (0.9, "missed by 0.050"), (0.95, "met")])
def test_retention_is_held_against_its_aim(results, value, verdict):
    other = copy.deepcopy(results)
    next(row for row in other["rows"] if row.get("figure") == "worst_retention_k3_ours")["value"] = value
    rows = cells(section(page(other), "Where the aims are met and missed"))
    assert next(row for row in rows if row[0] == "K = 3: worst retention at least 0.95")[-1] == verdict


def test_text_by_hand_and_the_sheet_come_in(results):
    bare, full = page(results), page(results, "# Notes\n\n### One\n\nIt failed.\n", True)
    assert "What was tried" not in bare and "fusion_sheet" not in bare
    assert full.endswith("## What was tried\n\n### One\n\nIt failed.\n") and "images/fusion_sheet.png" in full


def test_a_page_without_ours_or_the_base_right_is_a_page(tmp_path):
    made = made_up(tmp_path, ("sum", "np"), (2,), "np")
    next(row for row in made["rows"] if row.get("figure") == "unasked_kept_k2_sum").update(value=5e8, high=6e8)
    made["figures"]["unasked_kept_k2_sum"] = 5e8
    text = page(made)
    assert "Ours was not measured." in text and "00000" not in text


def test_plots_are_drawn(results, tmp_path):
    drawn = draw_all(Found.of(results), RETENTION_AIMS, tmp_path)
    linked = {image.split("/")[-1] for image in IMAGE.findall(page(results))}
    assert {path.name for path in drawn} == linked
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
