"""Small bases through the conformance matrix, and the shipped results: nothing may be silently wrong."""

from __future__ import annotations

import pytest
import torch
from tiny_models import random_state

from benchmarks.conformance import report
from benchmarks.conformance.bases import BASES
from benchmarks.conformance.names import Form
from benchmarks.conformance.updates import KINDS
from benchmarks.results_file import read_results

SMALL = ("SD3.5 medium", "FLUX.1", "Z-Image", "Wan 2.1", "LTX-Video")


@pytest.fixture(scope="module")
def bench_of(comfy, tmp_path_factory):
    import comfy.model_management
    import folder_paths

    from benchmarks.conformance.cells import Bench

    before = folder_paths.folder_names_and_paths["loras"]
    yield lambda name: Bench(next(base for base in BASES if base.name == name), tmp_path_factory.mktemp("loras"))
    folder_paths.folder_names_and_paths["loras"] = before
    comfy.model_management.unload_all_models()


@pytest.fixture(scope="module", params=SMALL)
def bench(request, bench_of):
    return bench_of(request.param)


def _some(forms: list[Form], number: int) -> list[Form]:
    """Two spellings a kind, others for each kind, so that all are met."""
    return [forms[number % len(forms)], forms[(number * 5 + 3) % len(forms)]]


@pytest.mark.slow
def test_every_kind_is_the_merge_or_refused_by_name(bench):
    forms, seen = bench.forms(), set()
    for number, kind in enumerate(KINDS):
        for form in _some(forms, number):
            cell = bench.cell(form, kind)
            if cell is not None:
                seen.add(cell.outcome)
                assert cell.outcome != "wrong", cell
                assert (cell.outcome == "refused") == kind.refused, cell
    assert seen == {"exact", "stock", "refused"}
    assert bench.clean_cell().outcome == "exact"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PEFT", "diffusers", "kohya, diffusers names"])
def test_a_unet_with_fewer_blocks_gets_every_layer_where_it_belongs(bench_of, name):
    """SSD-1B, Vega and KOALA number their blocks otherwise than SD1.5 and SDXL."""
    bench = bench_of("SD1.5")
    form = next(form for form in bench.forms() if form.name == name)
    cell = bench.cell(form, KINDS[0])
    assert (cell.outcome, cell.stock_layers) == ("exact", 0), cell


@pytest.mark.slow
def test_the_measure_sees_a_lora_that_does_nothing_and_one_of_half_strength(bench, monkeypatch):
    from benchmarks.conformance import applied

    form, kind = bench.forms()[0], KINDS[0]
    honest = applied.apply_sum
    monkeypatch.setattr(applied, "apply_sum", lambda model, name, strength: (model, "", 0))
    nothing = bench.cell(form, kind)
    assert nothing.outcome == "wrong" and nothing.error == pytest.approx(1.0)
    monkeypatch.setattr(applied, "apply_sum", lambda model, name, strength: honest(model, name, strength / 2))
    assert bench.cell(form, kind).outcome == "wrong"


def test_the_shipped_results_have_nothing_wrong():
    figures = read_results("conformance")["figures"]
    assert figures["cells_wrong"] == 0 and figures["coexistence_failures"] == 0
    parts = sum(figures[f"cells_{outcome}"] for outcome in report.OUTCOMES)
    assert figures["cells_total"] == parts > 2000


def test_the_page_is_what_the_results_say():
    assert report.PAGE.read_text(encoding="utf-8") == report.page(read_results("conformance"))


def test_packing_keeps_outcome_error_and_what_refusals_say():
    rows = [
        {"base": "a", "form": "f", "kind": "LoRA", "outcome": "exact", "error": 1.234e-6, "comfy_reads": False},
        {"base": "a", "form": "f", "kind": "IA³", "outcome": "refused", "error": None, "note": "no"},
    ]
    packed = report.packed(rows)
    cells = {"LoRA": ["exact", 1.2e-6], "IA³": ["refused", None, "no"]}
    assert packed == [{"base": "a", "form": "f", "cells": cells, "stock_loader_fails": 1}]
    figures = report.figures_of(rows, {"coexistence_cases": 3, "other": 1})
    assert figures["cells_total"] == 2 and figures["cells_exact"] == figures["cells_refused"] == 1
    assert figures["max_rel_error"] == 1.234e-6 and figures["coexistence_cases"] == 3 and "other" not in figures


def test_random_weights_are_the_same_every_time():
    layer = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    one, two = random_state(layer, scale=0.1), random_state(layer, scale=0.1)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
