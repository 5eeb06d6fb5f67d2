"""The matrix as ``benchmarks/results/conformance.json`` and as ``docs/conformance.md``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import REPO, read_results, write_results, written

from .bases import BASES, SEED

PAGE = REPO / "docs" / "conformance.md"
COMMAND = "python -m benchmarks.conformance"
OUTCOMES = ("exact", "stock", "refused", "wrong")
SIGNS = {"exact": "=", "stock": "→", "refused": "×", "wrong": "**wrong**"}
CLEAN = "no LoRA any more"
TEXT = ", text encoders"
Row = Mapping[str, Any]


def figures_of(rows: Sequence[Row], coexistence: Mapping[str, float]) -> dict[str, float]:
    """Counts of cells, the largest error of those that were applied, and how packs and features get on beside ours."""
    counts = {f"cells_{outcome}": sum(row["outcome"] == outcome for row in rows) for outcome in OUTCOMES}
    errors = [row["error"] for row in rows if row["outcome"] in ("exact", "stock") and row["error"] is not None]
    reads = [row for row in rows if row["outcome"] in ("exact", "stock") and "comfy_reads" in row]
    unread = sum(not row["comfy_reads"] for row in reads)
    return {
        "cells_total": len(rows),
        **counts,
        "max_rel_error": max(errors, default=0.0),
        "cells_the_stock_loader_does_not_read": unread,
        **{name: coexistence[name] for name in sorted(coexistence) if name.startswith("coexistence_")},
    }


def packed(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A row a base and spelling: kind → [outcome, error, note]; what a refusal says once a base and kind."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    told: set[tuple[str, str]] = set()
    for row in rows:
        line = table.setdefault((row["base"], row["form"]), {"base": row["base"], "form": row["form"], "cells": {}})
        said = (row["base"], row["kind"])
        refusal = row["outcome"] == "refused" and said not in told
        noted = row.get("note") and (refusal or row["outcome"] == "wrong" or row["form"].startswith("real"))
        told |= {said} if refusal else set()
        error = row["error"] if row["error"] is None else float(f"{row['error']:.1e}")
        cell = [row["outcome"], error] + ([row["note"]] if noted else [])
        line["cells"][row["kind"]] = cell
        if row["outcome"] in ("exact", "stock") and row.get("comfy_reads") is False:
            line["stock_loader_fails"] = line.get("stock_loader_fails", 0) + 1
    return list(table.values())


def write(rows: Sequence[Row], complete: bool = True) -> None:
    """Both files; of a part of the matrix only what it found is printed, as figures of a part would mislead."""
    if not complete:
        return
    coexistence = (read_results("coexistence") or {"figures": {}})["figures"]
    write_results("conformance", COMMAND, SEED, figures_of(rows, coexistence), packed(rows))
    write_page()


def write_page() -> None:
    """``docs/conformance.md`` from the results file alone."""
    written(PAGE).write_text(page(read_results("conformance")), encoding="utf-8", newline="\n")


def page(results: Mapping[str, Any]) -> str:
    """The text of the page. ``results``: the document of ``conformance.json``."""
    figures, lines = results["figures"], results["rows"]
    bases = [base.name for base in BASES if any(line["base"] == base.name for line in lines)]
    matrix = [line for line in lines if line["base"] in bases and line["form"] != CLEAN]
    text = [line for line in lines if line["base"].endswith(TEXT)]
    files = [line for line in lines if line not in matrix and line not in text and line["form"] != CLEAN]
    clean = [cell[0] for line in lines if line["form"] == CLEAN for cell in line["cells"].values()]
    counts = {name: f"{value:g}" for name, value in figures.items() if name.startswith("cells_")}
    return (Path(__file__).with_name("page.md").read_text(encoding="utf-8")).format(
        **counts,
        max_rel_error=f"{figures['max_rel_error']:.1e}",
        unread=counts["cells_the_stock_loader_does_not_read"],
        forms=_forms_table(bases, matrix),
        kinds=_kinds_table(bases, matrix),
        refusals=_refusals(matrix),
        files=_files_table(files),
        text=_text_table(text),
        unharmed=clean.count("exact"),
        clean=len(clean),
        beside=_beside(figures),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in cells)


def _forms_table(bases: Sequence[str], matrix: Sequence[Row]) -> str:
    forms = list(dict.fromkeys(line["form"] for line in matrix))
    found = {(line["base"], line["form"]): line for line in matrix}
    return _table(["base", *forms], ([base, *(_count(found.get((base, form))) for form in forms)] for base in bases))


def _count(line: Row | None) -> str:
    if line is None:
        return ""
    outcomes = [cell[0] for cell in line["cells"].values()]
    errors = [cell[1] for cell in line["cells"].values() if cell[0] in ("exact", "stock") and cell[1] is not None]
    parts = [f"{outcomes.count(outcome)} {SIGNS[outcome]}" for outcome in OUTCOMES if outcome in outcomes]
    return ", ".join([*parts, f"{max(errors, default=0):.0e}"])


def _kinds_table(bases: Sequence[str], matrix: Sequence[Row]) -> str:
    def signs(base: str, kind: str) -> str:
        have = {line["cells"][kind][0] for line in matrix if line["base"] == base and kind in line["cells"]}
        return " ".join(SIGNS[outcome] for outcome in OUTCOMES if outcome in have)

    kinds = dict.fromkeys(kind for line in matrix for kind in line["cells"])
    return _table(["kind", *bases], ([kind, *(signs(base, kind) for base in bases)] for kind in kinds))


def _refusals(matrix: Sequence[Row]) -> str:
    """One example a kind."""
    said: dict[str, str] = {}
    for line in matrix:
        for kind, cell in line["cells"].items():
            if cell[0] == "refused" and len(cell) > 2:
                said.setdefault(kind, f"{line['base']}, {line['form']}: {cell[2]}")
    return _table(["kind", "for example"], said.items())


def _files_table(files: Sequence[Row]) -> str:
    rows = []
    for line in files:
        for name, cell in line["cells"].items():
            note = cell[2] if len(cell) > 2 else ""
            rows.append([line["base"], name, cell[0], "" if cell[1] is None else f"{cell[1]:.0e}", note])
    return _table(["base", "file", "outcome", "error", ""], rows)


def _text_table(text: Sequence[Row]) -> str:
    rows = []
    for line in text:
        cells = ", ".join(f"{kind} {SIGNS[cell[0]]}" for kind, cell in line["cells"].items())
        rows.append([line["base"].removesuffix(TEXT), line["form"], cells])
    return _table(["text encoders of", "spelling", "cells"], rows)


def _beside(figures: Mapping[str, float]) -> str:
    if "coexistence_cases" not in figures:
        return ""
    return (
        f"Beside other nodes and features, on a running server: {figures['coexistence_cases']:g} cases, "
        f"{figures['coexistence_failures']:g} failures (`python -m benchmarks.coexistence`; "
        "[real packs](beside_other_packs.md))."
    )
