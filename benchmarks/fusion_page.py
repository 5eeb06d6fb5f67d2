"""``docs/fusion.md`` and its plots from ``benchmarks/results/fusion.json``.

    python -m benchmarks.fusion_page

Every number is read from the results; a method that was not measured is not on the page. What was tried is written by
hand in ``docs/fusion_tried.md`` (its headings of the third level), the sheet of pictures is drawn by
``python -m benchmarks.fusion --sheet``; both are on the page if they are there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from benchmarks.fusion_page_forms import (
    COLUMNS,
    DIFFERENCES,
    NOTHING,
    REFERENCES,
    bounded,
    digits,
    finely,
    kept_form,
    points,
    share,
    span,
    table,
)  # fmt: skip
from benchmarks.fusion_page_gates import pieces, second_section
from benchmarks.fusion_plots import BASELINES, IMAGES, OURS, OWN, PIECES, Found, draw_all
from benchmarks.results_file import REPO, RESULTS, read_results, written

PAGE, TRIED, SHEET = REPO / "docs" / "fusion.md", REPO / "docs" / "fusion_tried.md", IMAGES / "fusion_sheet.png"
# K → the least worst retention that ours should have.
RETENTION_AIMS = {3: 0.95, 8: 0.85}
SHELVES = {"sample": "a fair sample of the zoo's LoRAs", "scale": "all LoRAs of the zoo"}


def bold(name: str) -> str:
    return f"**{name}**" if name == OURS else name


def page(
    results: Mapping[str, Any], tried: str | None = None, sheet: bool = False, second: Mapping[str, Any] | None = None
) -> str:
    """The whole page. ``tried``: the text written by hand; ``sheet``: whether the sheet of pictures is there;
    ``second``: results of the second architecture."""
    found = Found.of(results)
    parts = [
        "# Fusing LoRAs: how much stays of what was asked for",
        f"Made by `python -m benchmarks.fusion_page` from `benchmarks/results/fusion.json` (`{results['command']}`, "
        f"{results['date'][:10]}).",
        _compared(found),
        _methods(found),
        *(_at(found, k) for k in found.ks),
        _differences(found),
        pieces(found),
        "## In plots",
        "![Both right, by method and K](images/fusion_joint.png)\n"
        "![Right subjects against right styles](images/fusion_subject_style.png)\n"
        "![Worst retention over K](images/fusion_retention.png)",
        _aims(found),
        second_section(second) if second else "",
    ]
    if sheet:
        parts.append("## Pictures\n\nPairs drawn by a fixed seed, failures included; the first picture of each.\n\n"
                     "![A sheet of pictures, every method in a column](images/fusion_sheet.png)")  # fmt: skip
    if tried:
        parts.append("## What was tried\n\n" + re.sub(r"\A# .*\n+", "", tried).strip())
    return "\n\n".join(part for part in parts if part) + "\n"


def _compared(found: Found) -> str:
    """What was asked for, by whom it is judged, and what can be had at all."""
    about = found.about
    measures = [(name, share) for name in ("subject", "style", "joint")] + [("distance", digits(3))]
    lines = [
        [label, *(bounded(found.rows.get(f"{m}_alone_{key}"), form) for m, form in measures), str(row["pairs"])]
        for key, label in REFERENCES
        if (row := found.rows.get(f"joint_alone_{key}"))
    ]
    ceiling = found.figures.get("single_ceiling")
    alone = "" if ceiling is None else f"\n\nAt {share(ceiling)} of the pictures each LoRA alone does its own part."
    measured = max((found.pairs(k, name) for k in found.ks for name in found.methods(k)), default=0)
    return f"""## What is compared

{about["pairs_planned"]} pairs of a subject and a style were drawn from {SHELVES.get(about["shelf"], about["shelf"])} ({about["part"]} part), and {measured} of them measured:
{about["seeds"]} pictures of each, {about["sampler_steps"]} steps. The base never saw either, no gate was trained on the pair, and a real picture of it exists.
K LoRAs are fused, K = {", ".join(map(str, found.ks))}: the two that the prompt names, and distractors that nobody asked for. For {about["near_misses"]}
of the pairs drawn the distractors are near misses, those LoRAs that answer most loudly to the prompt; for the others they are
drawn by lot. All methods get the same prompts and noise.

A judge that was trained on real pictures only names subject and style. "Both" is the share of pictures with both right,
"distance" how far its embedding is from that of the true picture. "Worst retention" is the smaller of two quotients, right subjects
(styles) under the method over those with that LoRA alone. "Unasked": all LoRAs are distractors; how far the pictures move from
the base's, and how many subjects are still right, the base's being 1. Seconds of one core a picture and MB beyond the base are
medians. Intervals (95 %) are of pairs drawn with replacement.

{table(("", "subject", "style", "both", "distance", "pairs"), lines)}{alone}"""  # noqa: E501


def _methods(found: Found) -> str:
    """What each is, for those that were measured."""
    told = BASELINES | OWN
    rivals, own = (
        [f"{bold(n)}: {told.get(n, 'not described here')}" for n in found.names if (n in found.own) == mine]
        for mine in (False, True)
    )
    parts = [
        "## Methods", "Baselines, at the Apply node's defaults ([modes.md](modes.md)):",
        "\n".join(f"* {line}" for line in rivals),
        "Ours, and what becomes of it when something is left out or changed. " + ";\n".join(own) + "." if own else "",
        _few(found),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def _few(found: Found) -> str:
    """Which methods were drawn for too few pairs to stand beside the others."""
    told = []
    for name in (name for name in found.names if name not in PIECES):
        if short := [f"{found.pairs(k, name)} at K = {k}" for k in found.ks if name in found.few(k)]:
            told.append(f"{name} ({', '.join(short)})")
    return f"Measured on too few pairs to be compared with the others: {'; '.join(told)}." if told else ""


def _at(found: Found, k: int) -> str:
    """Everything that was measured at one K."""
    lines = []
    for name in found.methods(k):
        cells = [(found.value(measure, k, name), form) for measure, _, form in COLUMNS]
        shown = [NOTHING if value is None else form(value) for value, form in cells]
        lines.append([bold(name), bounded(found.row("joint", k, name), finely), *shown, str(found.pairs(k, name))])
    return f"## K = {k}\n\n" + table(("", "both", *(label for _, label, _ in COLUMNS), "pairs"), lines)


def _differences(found: Found) -> str:
    """Ours less the best baseline and less the sum."""
    lines = []
    for k in found.ks:
        for name in found.against(k):
            rows = [(found.differences.get((measure, k, OURS, name)), form) for measure, _, form in DIFFERENCES]
            cells = [
                "<br>".join((form(r["value"]), span((r["low"], r["high"]), form), span(r["by_subject"], form)))
                if r else NOTHING
                for r, form in rows
            ]  # fmt: skip
            pairs = found.differences["joint", k, OURS, name]["pairs"]
            lines.append([str(k), name + (" (best)" if name == found.best(k) else ""), *cells, str(pairs)])
    if not lines:
        return ""
    return (
        "## Ours less a baseline\n\nOn the pairs that both have; shares in points. Under each difference its interval "
        "with pairs drawn with replacement, and\nunder that with whole subjects. Less distance is better.\n\n"
    ) + table(("K", "less", *(label for _, label, _ in DIFFERENCES), "pairs"), lines)


def _aims(found: Found) -> str:
    """Each aim, what was found, and by how much it is missed."""
    lines = [line for k in found.ks for line in (_lead(found, k), _retained(found, k)) if line]
    head = "## Where the aims are met and missed\n\n"
    aims = table(("aim", "found", "highest baseline", ""), lines) if lines else "Ours was not measured."
    return head + aims + _unasked(found)


def _lead(found: Found, k: int) -> list[str] | None:
    """Whether ours has more pictures with both right than every baseline, beyond doubt."""
    best = found.best(k)
    row = found.differences.get(("joint", k, OURS, best)) if best else None
    if row is None:
        return None
    if row["low"] > 0:
        verdict = "met" if row["by_subject"][0] > 0 else "met by pairs, not with subjects drawn"
    else:
        verdict = "missed: ahead, not clear of zero" if row["value"] > 0 else "missed: not ahead"
    return [f"K = {k}: ahead of every baseline, both right", f"{bounded(row, points)} points",
            f"{best}, {finely(found.figures[f'best_baseline_joint_k{k}'])}", verdict]  # fmt: skip


def _retained(found: Found, k: int) -> list[str] | None:
    aim, row = RETENTION_AIMS.get(k), found.row("worst_retention", k, OURS)
    if aim is None or row is None:
        return None
    form = digits(3)
    rivals = [(v, n) for n in found.rivals(k) if (v := found.value("worst_retention", k, n)) is not None]
    best = f"{max(rivals)[1]}, {form(max(rivals)[0])}" if rivals else NOTHING
    verdict = "met" if row["value"] >= aim else f"missed by {form(aim - row['value'])}"
    return [f"K = {k}: worst retention at least {aim:.2f}", bounded(row, form), best, verdict]


def _unasked(found: Found) -> str:
    """LoRAs that nobody asked for: ours beside the best baseline and the sum."""
    lines = []
    for k in found.ks:
        mine, rival, plain = (_bystander(found, k, name) for name in (OURS, found.best(k), "sum"))
        if rival != NOTHING:
            rival = "the sum" if found.best(k) == "sum" else f"{found.best(k)}: {rival}"
        lines.append([str(k), mine, rival, plain])
    told = [line for line in lines if {*line[1:]} != {NOTHING}]
    text = "\n\nWith nothing but LoRAs that nobody asked for, pictures should be the base's own (kept 1, shift 0):\n\n"
    return text + table(("K", "ours", "best baseline", "sum"), told) if told else ""


def _bystander(found: Found, k: int, name: str | None) -> str:
    kept, shift = (found.row(f"unasked_{what}", k, name or "") for what in ("kept", "shift"))
    if not kept or not shift:
        return NOTHING
    return f"kept {bounded(kept, kept_form)}, shift {bounded(shift, digits(3))}, {kept['pairs']} pairs"


def inserts() -> tuple[str | None, bool, Mapping[str, Any] | None]:
    """What lies beside the results: the text written by hand, whether there is a sheet, the second architecture."""
    tried = TRIED.read_text(encoding="utf-8") if TRIED.exists() else None
    return tried, SHEET.exists(), read_results("fusion_second")


def main() -> None:
    results = json.loads((RESULTS / "fusion.json").read_text(encoding="utf-8"))
    draw_all(Found.of(results), RETENTION_AIMS)
    path = written(PAGE)
    path.write_text(page(results, *inserts()), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
