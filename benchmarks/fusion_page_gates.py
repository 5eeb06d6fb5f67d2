"""The page's sections on gates that were trained: their pieces, and the universal one on a second architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.fusion_page_forms import COLUMNS, DIFFERENCES, bounded, digits, finely, points, share, span, table
from benchmarks.fusion_plots import PIECES_AGAINST, Found


def pieces(found: Found) -> str:
    """Trained gates, the published one and ours with a piece left out, less the sum of what is asked for."""
    lines = []
    for k in found.ks:
        for name in found.pieces(k):
            rows = [(found.differences[m, k, name, PIECES_AGAINST], form) for m, _, form in DIFFERENCES]
            cells = [f"{form(r['value'])}<br>{span((r['low'], r['high']), form)}" for r, form in rows]
            lines.append([str(k), name, *cells, str(rows[0][0]["pairs"])])
    if not lines:
        return ""
    text = (
        "## What the trained gates and their pieces bring\n\nEach less sum-asked, which needs no training, on the "
        "pairs that both have: few, so the intervals are wide.\nThe published gate is not told which LoRAs are asked "
        "for; at K = 2 all are.\n\n"
    )
    return text + table(("K", "", *(label for _, label, _ in DIFFERENCES), "pairs"), lines)


def second_section(results: Mapping[str, Any]) -> str:
    """The universal gate on an architecture that it never saw."""
    found = Found.of(results)
    about, lines, lead = found.about, [], []
    for k in found.ks:
        for name in found.measured(k):
            cells = [bounded(found.row("joint", k, name), finely)]
            cells += [form(found.value(m, k, name)) for m, _, form in COLUMNS[:5]]
            lines.append([str(k), name, *cells])
        for against in ("sum-asked", "sum"):
            name = "scalar" if against == "sum-asked" else "scalar-unasked"
            if row := found.differences.get(("joint", k, name, against)):
                far = found.differences["distance", k, name, against]
                lead.append(f"* K = {k}, {name} less {against}: both right {bounded(row, points)} points, "
                            f"distance {bounded(far, digits(3, '+'))}")  # fmt: skip
    alone = found.figures.get("single_ceiling", 0.0)
    return f"""## The universal gate on a second architecture

`python -m benchmarks.fusion_second` (`{results["date"][:10]}`): a small Flux-class network, {about["base_steps"]} steps on the same pictures, with
{about["loras"]} LoRAs of its own (`zoo.train_second`); {about["pairs_planned"]} pairs, {found.pairs(found.ks[0], "sum")} of them measured. The gate `scalar`, five numbers for each kind of layer, was
trained on the demo base and never saw this network. Each LoRA alone does its part at {share(alone)} of the pictures.

{table(("K", "", "both", *(label for _, label, _ in COLUMNS[:5])), lines)}

{chr(10).join(lead)}"""  # noqa: E501
