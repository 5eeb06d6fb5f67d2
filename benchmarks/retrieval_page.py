"""``docs/retrieval.md`` from ``benchmarks/results/retrieval.json`` and the words of ``retrieval_page.md``.

python -m benchmarks.retrieval_page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.results_file import REPO, RESULTS, written

TEMPLATE = Path(__file__).with_suffix(".md")
PAGE = REPO / "docs" / "retrieval.md"
# Method in the results → what the page calls it, in its order.
METHODS = (
    ("ours", "ours: {parts}"),
    ("response, as captions speak", "what the LoRA's layers answer, asked as captions speak"),
    ("response, as Retrieve asks", "the same, phrase by phrase: **what the Retrieve node reads**"),
    ("response", "the same by z-scores alone (Retrieve below 300 LoRAs)"),
    ("response, text-side layers", "text side's layers alone, z-scores"),
    ("drawing, untrained", "what the LoRA draws unasked"),
    ("encoder", "learned encoder, with probes of the base"),
    ("encoder, file only", "learned encoder, file alone"),
    ("text only, names and metadata", "names and metadata, by meaning"),
    ("fuzzy words, names and metadata", "names and metadata, by words"),
    ("AutoLoRA", "AutoLoRA's encoder, faults mended"),
)
BASELINES = ("u1", "projector diagonals", "product sketch", "sigma and norm", "PCA of flat weights")
AIMS = (
    ("zs_recall_at_1", "right LoRA first", "0.70"),
    ("zs_recall_at_5", "among five", "0.90"),
    ("lead", "ahead of the best baseline (five)", "0.15"),
    ("set_recall_at_3", "subject and style both among three", "0.85"),
    ("none_auroc", "“none fits” told from “fits”, AUROC", "0.97"),
    ("none_recall_at_5fpr", "right ones kept when 5% of unfitting prompts may get one", ""),
    ("zs_style_recall_at_5", "styles, among five", ""),
    ("zs_recall_at_5_trigger_only", "LoRAs trained on a meaningless trigger, among five", ""),
    ("zs_keywords_recall_at_5", "keywords alone, among five", ""),
)


def percent(value: float) -> str:
    return f"{value:.0%}"


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    figures, rows = results["figures"], results["rows"]
    by: dict[str, dict[str, Any]] = {}
    for row in rows:
        by.setdefault(row.get("method", ""), row)  # the curves' rows come later
    figures = figures | {"lead": figures["zs_recall_at_5"] - figures["best_baseline_zs_recall_at_5"]}
    parts = by["parts of ours"]["names"]
    table = [f"| {label.format(parts=parts)} | {_cells(by[name])} |" for name, label in METHODS if name in by]
    weights = [row for name, row in by.items() if name.startswith(BASELINES)]
    best = max(weights, key=lambda row: row["zs_recall_at_5"])
    table.append(f"| best of ridge, CCA and kNN on u₁, projectors, sketch, σ and norm, PCA | {_cells(best)} |")
    table += [f"| {name} | {_cells(row)} |" for name, row in by.items() if name.startswith("control")]
    aims = [
        f"| {label} | {aim} | {figures[key]:.2f} | {_before(figures, key)} |"
        for key, label, aim in AIMS
        if key in figures
    ]
    return TEMPLATE.read_text(encoding="utf-8").format(
        table="\n".join(table), aims="\n".join(aims), low=percent(figures["zs_recall_at_5_low"]),
        high=percent(figures["zs_recall_at_5_high"]), command=results["command"], date=results["date"][:10],
        loras=round(figures["train_loras"]), pool=round(figures["pool"]), subjects=round(figures["test_subjects"]),
        styles=round(figures["test_styles"]), metadata=_metadata(figures), **_extra(figures),
    )  # fmt: skip


def _cells(row: dict[str, Any]) -> str:
    return f"{percent(row['zs_recall_at_1'])} | {percent(row['zs_recall_at_5'])}"


def _before(figures: dict[str, float], key: str) -> str:
    for name in (f"{key}_plain", key.replace("recall_at_5_trigger_only", "trigger_only_recall_at_5") + "_plain"):
        if name in figures:
            return f"{figures[name]:.2f}"
    return ""


def _metadata(figures: dict[str, float]) -> str:
    """One line a share of files that have metadata."""
    lines = []
    for share in (0, 30, 100):
        found = [
            f"{kind} {percent(figures[name])}"
            for kind in ("weights", "text", "both")
            if (name := f"nometa_recall_at_5_{share}_{kind}") in figures
        ]
        lines.append(f"{share}% of the files say something: {', '.join(found)}")
    return "; ".join(lines) + "."


def _extra(figures: dict[str, float]) -> dict[str, str]:
    names = ("set_recall_at_3_captioned", "set_recall_at_3_family", "none_auroc_no_relatives",
             "none_recall_at_5fpr_no_relatives", "zs_recall_at_1_no_drawing", "zs_recall_at_5_no_drawing")  # fmt: skip
    return {name: f"{figures[name]:.2f}" for name in names}


def main() -> None:
    results = json.loads((RESULTS / "retrieval.json").read_text(encoding="utf-8"))
    path = written(PAGE)
    path.write_text(page(results), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
